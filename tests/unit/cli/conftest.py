"""What tests of the command line share."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

from llama_runner.cli import main
from tests.gguf_files import GgufFile, Tensor, typed
from tests.unit.cli.fakes import FakeRunner, Run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    class Runner(FakeRunner):
        made: ClassVar[list[FakeRunner]] = []

    module = types.ModuleType("llama_runner.runner")
    module.LlamaRunner = Runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_runner.runner", module)
    return Runner


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF file with a hostile name."""
    values = {
        "general.architecture": "llama",
        "general.name": "evil\x1b[31m\nname",
        "llama.context_length": 64,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    file = GgufFile(keys=typed(values), tensors=[Tensor("token_embd.weight", (32, 3))])
    return file.write(tmp_path / "tiny.gguf")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.delenv("LLAMA_RUNNER_MODEL", raising=False)

    def run(*arguments: str | Path, stdin: str | io.TextIOBase = "") -> tuple[int, str, str]:
        typed = io.StringIO(stdin) if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return run
