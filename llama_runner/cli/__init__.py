"""The command line, ``llama-runner``.

Answers go to standard output, everything else to standard error. Exit status: 0, 1 for an error, 2
for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: The arguments after the program's name; by default those of this process.
    """
    try:
        # Imported here, because it takes a moment in which Ctrl-C must be quiet too.
        from llama_runner.cli.program import run

        status = run(arguments)
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
