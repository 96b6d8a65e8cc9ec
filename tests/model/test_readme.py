"""The README's examples run, print what it says, and its tables agree with the code."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from llama_runner.cli.program import commands
from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL, find_entry
from llama_runner.params import ContextParams, GenerationParams, ModelParams

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PRINTED = re.compile(r"# -> (.*)")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, each padded so that line numbers are the README's."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return ["\n" * TEXT[: match.start(1)].count("\n") + match[1] for match in found]


@pytest.fixture
def default_model_in_place(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights under the name that the README calls them by, wherever they are."""
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path))
    entry = find_entry(DEFAULT_MODEL)
    if model_path.stat().st_size != entry.metadata.size:
        pytest.skip(f"the README's answers are those of {DEFAULT_MODEL}, not of {model_path}")
    entry.path.parent.mkdir(parents=True)
    entry.path.symlink_to(model_path)
    monkeypatch.chdir(tmp_path)  # an example writes a file


@pytest.mark.usefixtures("default_model_in_place")
def test_the_python_examples_print_what_they_say() -> None:
    names: dict[str, Any] = {}
    try:
        for block in blocks("python"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, str(README), "exec"), names)
            expected = "".join(f"{line}\n" for line in PRINTED.findall(block))
            if expected:
                matches = doctest.OutputChecker().check_output(expected, out.getvalue(), OPTIONS)
                assert matches, (
                    f"printed\n{out.getvalue()}instead of\n{expected}in\n{block.lstrip()}"
                )
    finally:
        if "runner" in names:
            names["runner"].close()


def command_lines() -> list[str]:
    lines = [line.partition(" #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("llama-runner ")]


@pytest.mark.parametrize("line", command_lines())
def test_the_commands_and_options_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    commands.commands[name].make_context(name, arguments)


def test_the_parameter_table_names_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, re.MULTILINE)
    fields = GenerationParams.model_fields | ModelParams.model_fields | ContextParams.model_fields
    stated = {name: default for name, default in rows if name in fields}
    assert {"max_tokens", "temperature", "n_ctx", "n_gpu_layers"} <= stated.keys()
    for name, default in stated.items():
        if default.startswith("`"):
            assert default == f"`{fields[name].default!r}`", name
