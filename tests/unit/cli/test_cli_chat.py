"""``llama-runner chat``, with a runner that needs no model."""

from __future__ import annotations

import os
import pty
import sys
import types
from pathlib import Path

import pytest

from llama_runner.cli.chat import _lines
from llama_runner.errors import ContextFullError
from tests.unit.cli.fakes import FakeRunner, Run, Terminal


def test_chat_answers_each_line_and_sends_the_system_prompt_once(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    status, out, _ = run("chat", "-m", model, "-s", "Be kind", stdin="one\n\ntwo\n")
    assert (status, out) == (0, "Hello\nHello\n")
    (runner,) = fake.made
    assert [prompt for prompt, _ in runner.asked] == [
        [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "one"}],
        [{"role": "user", "content": "two"}],
    ]
    assert runner.closed


def test_chat_commands(fake: type[FakeRunner], model: Path, run: Run) -> None:
    typed = "one\n/info\n/gc\n/help\n/nonsense\n/clear\nagain\n/quit\nnever\n"
    status, out, err = run("chat", "-m", model, "-s", "Be kind", stdin=typed)
    assert (status, out) == (0, "Hello\nHello\n")
    assert "10 of 100 tokens (10%)" in err
    assert "system: 4 tokens, pinned" in err
    assert "dropped 5 tokens" in err
    assert "unknown command /nonsense" in err
    assert all(command in err for command in ("/info", "/gc", "/clear", "/help", "/quit"))
    asked = [prompt for prompt, _ in fake.made[0].asked]
    assert [len(prompt) for prompt in asked] == [2, 2]  # the system prompt again after /clear


def test_ctrl_c_stops_the_answer_not_the_chat(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.words = ["Hel", KeyboardInterrupt()]
    status, out, err = run("chat", "-m", model, stdin="one\ntwo\n")
    assert (status, out) == (0, "HelHel")
    assert err.count("[stopped]") == 2
    assert all(stream.closed for stream in fake.made[0].streams)


def test_an_error_in_an_answer_does_not_end_the_chat(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.words = [ContextFullError("no room")]
    status, _, err = run("chat", "-m", model, stdin="one\ntwo\n")
    assert status == 1  # for the program that piped the questions in
    assert err.count("error: no room") == 2


def test_who_saw_an_error_on_the_terminal_is_not_told_again(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.words = [ContextFullError("no room")]
    assert run("chat", "-m", model, stdin=Terminal("one\n"))[0] == 0


def test_chat_says_when_an_answer_was_cut_off(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.finish_reason = "length"
    assert "[cut off" in run("chat", "-m", model, stdin="one\n")[2]
    assert run("chat", "-q", "-m", model, stdin="one\n") == (0, "Hello\n", "")


def test_chat_needs_a_template(fake: type[FakeRunner], model: Path, run: Run) -> None:
    fake.has_template = False
    status, _, err = run("chat", "-m", model, stdin="one\n")
    assert status == 1
    assert "no chat template" in err


def test_on_a_terminal_ctrl_c_clears_the_line_and_ctrl_d_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed: list[str | type[BaseException]] = [" one ", KeyboardInterrupt, "two", EOFError]

    def type_in(prompt: str) -> str:
        item = typed.pop(0)
        if isinstance(item, str):
            return item
        raise item

    monkeypatch.setattr("builtins.input", type_in)
    nothing_typed, never_written = os.pipe()
    terminal = types.SimpleNamespace(isatty=lambda: True, fileno=lambda: nothing_typed)
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, terminal)
    assert list(_lines()) == ["one", "two"]
    for descriptor in (nothing_typed, never_written):
        os.close(descriptor)


PASTED = """
from llama_runner.cli.chat import _lines
for line in _lines():
    print("question", repr(line), flush=True)
"""


@pytest.mark.parametrize("marked", [True, False])
def test_lines_that_are_pasted_together_are_one_question(marked: bool) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", PASTED])
    shown = b""

    def read_until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 1000)
        shown = shown.split(text, 1)[1]

    read_until(b"> ")
    pasted = b"\x1b[200~one\ntwo\x1b[201~\r" if marked else b"one\rtwo\r"
    os.write(terminal, pasted)
    read_until(b"question 'one\\ntwo'")
    read_until(b"> ")
    os.write(terminal, b"three\r")
    read_until(b"question 'three'")
    read_until(b"> ")  # before it, the terminal would not take Ctrl-D for the end
    os.write(terminal, b"\x04")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)


def test_the_help_says_one_default_for_the_length_of_an_answer(run: Run) -> None:
    for command, default in (("chat", "1000"), ("generate", "200")):
        said = " ".join(run(command, "--help")[1].split())
        assert f"full. [default: ({default})]" in said
        assert "1000" not in said.replace(f"({default})", "")
