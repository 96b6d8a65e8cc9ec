"""What tests of a process's life share: a Python of their own to start, interrupt and end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Python = Callable[..., str]

# One thread computes: these tests are about order and ends, and hold on a busy machine too.
PRELUDE = """
import gc, os, signal, sys, threading
from llama_runner import LlamaRunner
from llama_runner.errors import *

def new_runner(**options):
    return LlamaRunner(sys.argv[1], **{"n_ctx": 1024, "n_threads": 1, **options})

GREEDY = {"temperature": 0.0}
ENDLESS = {"temperature": 0.0, "ignore_eos": True}
"""


@pytest.fixture
def python(model_path: Path) -> Python:
    """Run a program after PRELUDE; returns what it printed. It must end well and in silence."""

    def run(program: str, *flags: str) -> str:
        answer = subprocess.run(
            [sys.executable, *flags, "-c", PRELUDE + textwrap.dedent(program), str(model_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        return answer.stdout

    return run
