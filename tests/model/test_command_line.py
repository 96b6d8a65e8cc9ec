"""The command line with a real model, in processes of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from llama_runner.errors import ModelNotFoundError
from llama_runner.loaders import default_model

PROGRAM = [sys.executable, "-m", "llama_runner"]
# Greedy, this goes on for longer than any of these tests.
ENDLESS = ["-t0", "-n", "3000", "-c", "4096"]
PATIENCE_S = 120


@pytest.fixture(autouse=True, scope="module")
def model() -> None:
    try:
        default_model()
    except ModelNotFoundError as error:
        pytest.skip(str(error))


def test_the_same_greedy_answer_streamed_and_as_json() -> None:
    command = [*PROGRAM, "generate", "-q", "--raw", "-t0", "-n12", "The capital of France is"]
    streamed, whole = (
        subprocess.run(
            [*command, *more], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        for more in ([], ["--json"])
    )
    assert streamed.stderr == whole.stderr == ""
    assert "Paris" in streamed.stdout
    assert repr(streamed.stdout.removesuffix("\n"))[1:-1] in whole.stdout


def test_ctrl_c_ends_a_generation_quietly() -> None:
    command = [*PROGRAM, "generate", "-q", "--raw", *ENDLESS, "Once upon a time"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err.strip() == b""


class Terminal:
    """A program on a terminal, and somebody who reads and types."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.unread = b""

    def expect(self, text: bytes) -> bytes:
        """Wait until the program has written a text; returns what came before it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.unread:
            assert time.monotonic() < deadline, f"no {text!r} in {self.unread!r}"
            if select.select([self.fd], [], [], 1)[0]:
                self.unread += os.read(self.fd, 4096)
        before, _, self.unread = self.unread.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def exit_status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def chat() -> Iterator[Terminal]:
    terminal = Terminal([*PROGRAM, "chat", *ENDLESS])
    yield terminal
    os.close(terminal.fd)


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends_the_chat(chat: Terminal) -> None:
    chat.expect(b"Ctrl-D to leave")
    chat.expect(b"> ")
    chat.type(b"Tell me a very long story about a dragon.\n")
    chat.expect(b"dragon.\r\n")
    chat.expect(b" ")
    chat.type(b"\x03")
    chat.expect(b"[stopped]")
    chat.expect(b"> ")
    chat.type(b"/info\n")
    chat.expect(b"user: ")
    chat.expect(b"assistant: ")
    chat.expect(b"> ")
    chat.type(b"\x04")
    assert chat.exit_status() == 0
