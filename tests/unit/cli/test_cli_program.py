"""The command line as a program: where it prints, what it loads, how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from llama_runner.cli import output
from tests.unit.cli.fakes import FakeRunner, Run
from tests.unit.loaders.model_files import tiny_llama


def test_a_terminal_gets_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.bar("a model", count_bytes=True) as update:
        update(50, 100, "loading")
    printed = capsys.readouterr()
    assert "loading a model" in printed.err
    assert printed.out == ""


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "llama_runner", "info", str(model), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_help_loads_neither_the_core_nor_what_is_slow() -> None:
    slow = ["llama_runner._core", "numpy", "pydantic", "rich"]
    code = (
        "import sys\nfrom llama_runner.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "generate" in done.stdout


@pytest.mark.parametrize("module", ["llama_runner.cli.program", "click", "llama_runner.errors"])
def test_ctrl_c_while_the_program_starts_is_quiet(module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from llama_runner.cli import main\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_a_warning_is_one_plain_line(
    fake: type[FakeRunner], model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = fake.__init__

    def warn(self: FakeRunner, *arguments: Any, **options: Any) -> None:
        warnings.warn("n_ctx=9:\nlong", UserWarning, stacklevel=2)
        make(self, *arguments, **options)

    monkeypatch.setattr(fake, "__init__", warn)
    status, out, err = run("generate", "-q", "-m", model, "Hi")
    assert (status, out, err) == (0, "Hello\n", "warning: n_ctx=9:\\nlong\n")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("llama-runner", f"'{sys.executable}' -m llama_runner")],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("command", ["models", "models --json", "info {}", "info --json {}"])
def test_output_that_cannot_be_written_is_an_error(command: str, model: Path) -> None:
    done = shell(f"llama-runner {command.format(model)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_reader_that_has_had_enough_is_no_error(model: Path) -> None:
    assert shell(f"llama-runner info --tensors {model} | true").stderr == ""


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_like_empty_ones(closing: str, tmp_path: Path) -> None:
    model = tiny_llama().write(tmp_path / "tiny.gguf")
    done = shell(f"llama-runner info {model} {closing}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["x" * 300, "~nouser/x.gguf"])
def test_a_name_that_nothing_can_have_is_one_line(run: Run, name: str) -> None:
    for command in (("info", name), ("generate", "-m", name, "Hi")):
        status, _, err = run(*command)
        assert status == 1
        assert err.startswith("error: no model file")
        assert err.count("\n") == 1
