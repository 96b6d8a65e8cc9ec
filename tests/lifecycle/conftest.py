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
PRELUDE = '''
import gc, os, signal, sys, threading, time
from llama_runner import LlamaRunner
from tests import inside
from llama_runner.errors import *

def new_runner(**options):
    return LlamaRunner(sys.argv[1], **{"n_ctx": 1024, "n_threads": 1, **options})

GREEDY = {"temperature": 0.0}
ENDLESS = {"temperature": 0.0, "ignore_eos": True}

def signal_when(condition, kind=signal.SIGINT):
    """Send ourselves a signal once the condition holds; it is asked inside the generation."""
    def look(*_):
        if condition():
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), kind)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

def wait_for_computing():
    """Return when other threads are inside a long computation."""
    start = time.process_time()
    while time.process_time() < start + 0.2:
        time.sleep(0.01)
'''


@pytest.fixture
def python(model_path: Path) -> Python:
    """Run a program after PRELUDE; returns what it printed. It must end well and in silence."""

    def run(program: str, *flags: str) -> str:
        answer = subprocess.run(
            [sys.executable, *flags, "-c", PRELUDE + textwrap.dedent(program), str(model_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=900,  # a guard against hanging: a busy machine may take long
        )
        assert answer.stderr == "", answer.stderr
        assert answer.returncode == 0
        return answer.stdout

    return run
