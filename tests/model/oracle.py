"""Greedy decoding by llama.cpp's own functions, in a program of a few lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llama_cpp_src import features

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "native"


class Choice(NamedTuple):
    """A token that the oracle generated."""

    token: int
    margin: float
    """How far its logit is above the runner-up's."""


@dataclass(frozen=True)
class Oracle:
    """The compiled program, and what to run it with."""

    program: Path
    model: Path

    def __call__(
        self, prompt: Sequence[int], n_predict: int, *, n_ctx: int = 1024, n_threads: int = 1
    ) -> list[Choice]:
        """What follows on these tokens."""
        command = [self.program, self.model, str(n_ctx), str(n_threads), str(n_predict)]
        printed = subprocess.run(
            command, input=" ".join(map(str, prompt)), capture_output=True, text=True, check=True
        )
        pairs = (line.split() for line in printed.stdout.splitlines())
        return [Choice(int(token), float(margin)) for token, margin in pairs]


def compile_oracle(folder: Path, name: str = "greedy") -> Path:
    """Link a program with the very libraries that the extension module was linked with.

    Raises:
        FileNotFoundError: They are not there.
    """
    machine = features.detect(local=True)
    native = ROOT / "build" / f"native-{machine.tag}"
    includes = json.loads((native / "native.json").read_text())["include_dirs"]
    libraries = [
        str(native / item) if (native / item).is_file() else item
        for item in (native / "link_line.txt").read_text().split()
    ]
    program = folder / name
    command = [machine.cxx_compiler, "-std=c++17", "-O1", "-pthread", "-o", str(program)]
    command += [f"-I{include}" for include in includes]
    subprocess.run([*command, str(SOURCES / f"{name}.cpp"), *libraries], check=True)
    return program
