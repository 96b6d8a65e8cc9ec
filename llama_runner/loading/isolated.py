"""Try a model in a child process first, so that a native crash becomes an exception here.

The child is a new Python process (``python -m llama_runner._isolated_child``), not a fork. It loads
the model as the runner is about to do, and decodes one token. It reports in JSON, which the parent
can read without trusting it. Its memory and its time are limited.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from llama_runner import errors
from llama_runner._support.files import size_of
from llama_runner._support.hardware import free_memory
from llama_runner.errors import (
    LlamaError,
    LlamaSystemError,
    ModelLoadError,
    OutOfMemoryError,
    of_the_call,
)
from llama_runner.loaders.gguf.read import part_names
from llama_runner.params import ContextParams, ModelParams

__all__ = ["NO_MEMORY", "probe"]

# Seconds for the start and the token, and bytes that even a slow disk reads per second.
_TIME_LIMIT: Final = 60.0
_SLOWEST_DISK: Final = 20e6
# The exit code of a child that ran out of memory.
NO_MEMORY: Final = 77


def probe(
    path: Path, chat_template: str | None, for_model: ModelParams, for_context: ContextParams
) -> None:
    """Load a model in a child process and decode one token.

    Args:
        path: The model.
        chat_template: A template to use instead of the model's own.
        for_model: How to load it.
        for_context: The context to make.

    Raises:
        ModelLoadError: The child crashed, took too long, or could not decode a token.
        OutOfMemoryError: The child asked for more memory than is free.
        LlamaSystemError: The child could not be started.
        LlamaError: The runner in the child raised this error.
    """
    if not sys.executable:
        raise LlamaSystemError(
            f"isolated=True starts a Python, but sys.executable={sys.executable!r} does not name "
            "one"
        )
    options = for_model.model_dump(exclude_unset=True) | for_context.model_dump(exclude_unset=True)
    memory = free_memory()
    request = {
        "path": os.fspath(path),
        "chat_template": chat_template,
        "options": options,
        "memory": memory,
    }
    size = size_of(path.with_name(name) for name in part_names(path.name))
    limit = _TIME_LIMIT + size / _SLOWEST_DISK
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "llama_runner._isolated_child"],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadError(
            f"{str(path)!r} was tried in a child process, which did not finish in {limit:.0f} s"
        ) from None
    except of_the_call(OSError) as error:
        raise LlamaSystemError(
            f"isolated=True cannot start a child process with {sys.executable!r}: {error.strerror}"
        ) from None
    if child.returncode == 0:
        return
    if child.returncode == NO_MEMORY:
        raise OutOfMemoryError(
            f"{str(path)!r} was tried in a child process, which asked for more memory than the "
            f"{memory / 1e9:.1f} GB that are free"
        )
    raise _reported(child.stdout) or ModelLoadError(
        f"{str(path)!r} was tried in a child process, which {_end(child.returncode)}: "
        "do not load it in this one",
        native=_last_line(child.stderr),
    )


def _reported(output: bytes) -> LlamaError | None:
    """Return the error that the child printed; None if it printed anything else."""
    try:
        name, message, field, native = json.loads(output)
    except (ValueError, TypeError):
        return None
    if name not in errors.__all__ or not isinstance(message, str):
        return None
    kind: type[LlamaError] = getattr(errors, name)
    return kind(message, field=field, native=native)


def _end(code: int) -> str:
    """Describe in words how a child ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", perhaps because memory ran out" * (name == "SIGKILL"))


def _last_line(text: bytes) -> str | None:
    lines = text.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
