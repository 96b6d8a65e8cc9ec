"""The commands of the command line, and how a run of one ends.

There is one module per command. What is slow to import is imported when a command runs.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from llama_runner import __version__
from llama_runner.cli.chat import chat
from llama_runner.cli.doctor import doctor
from llama_runner.cli.generate import generate
from llama_runner.cli.info import info
from llama_runner.cli.models import models, pull, rm, verify
from llama_runner.cli.output import note, printable
from llama_runner.errors import LlamaError, of_the_call

__all__ = ["commands", "run"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def commands() -> None:
    """Run GGUF language models in this process, with llama.cpp linked in."""


for _command in (generate, chat, info, models, pull, verify, rm, doctor):
    commands.add_command(_command)


def run(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit status.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it.
    """
    _prepare_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = commands.main(arguments, prog_name="llama-runner", standalone_mode=False)
        return int(status or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except LlamaError as error:
        note(f"error: {printable(str(error))}")
    except of_the_call(UnicodeDecodeError) as error:
        note(f"error: standard input is not {error.encoding} (byte {error.start}): convert it")
    except of_the_call(OSError) as error:  # all others are LlamaErrors: this is the output's
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe: that is fine
            note(f"error: the output cannot be written: {error.strerror}")
        _discard_output()
    return 1


def _prepare_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, Path(os.devnull).open("r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal lacks must not break off an answer.
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # an unreadable letter must not be lost silently


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    note(f"warning: {printable(str(message))}")


def _discard_output() -> None:
    """Send what is still in the output buffer nowhere; Python would complain about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
