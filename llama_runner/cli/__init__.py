"""The command line, ``llama-runner``.

One module per command; what is slow to import, each imports when it runs. Answers go to standard
output, everything else to standard error. Exit status: 0, 1 for an error, 2 for wrong usage,
130 after Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from llama_runner import __version__
from llama_runner.cli.chat import chat
from llama_runner.cli.doctor import doctor
from llama_runner.cli.generate import generate
from llama_runner.cli.info import info
from llama_runner.cli.models import models, pull, rm, verify
from llama_runner.cli.output import note, printable
from llama_runner.errors import LlamaError, of_the_call

__all__ = ["commands", "main"]

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def commands() -> None:
    """Run GGUF language models in this process, with llama.cpp linked in."""


for _command in (generate, chat, info, models, pull, verify, rm, doctor):
    commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: What stands after the program's name; by default what the shell gave.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, Path(os.devnull).open("r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal lacks must not end a half-written answer.
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # a letter that cannot be read must not be lost
    try:
        status = commands.main(arguments, prog_name="llama-runner", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        status = INTERRUPTED
    except LlamaError as error:
        note(f"error: {printable(str(error))}")
        status = 1
    except of_the_call(UnicodeDecodeError) as error:
        note(f"error: standard input is not {error.encoding} (byte {error.start}): convert it")
        status = 1
    except of_the_call(OSError) as error:  # all others are LlamaErrors: this is the output's
        if not isinstance(error, BrokenPipeError):  # who reads it has had enough
            note(f"error: the output cannot be written: {error.strerror}")
        _give_up_output()
        status = 1
    sys.exit(status)


def _give_up_output() -> None:
    """Let what is still in the buffer go nowhere: Python would complain about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
