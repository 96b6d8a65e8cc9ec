"""Trying a model in a child process first, so that a native crash is an error and not our end.

The child is a Python of its own (``python -m llama_runner._probe``), not a fork. It does what the
runner is about to do, and decodes one token. What it has to say is JSON, which the parent can
read without trusting it. It may take the memory that is free, and some time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from llama_runner import errors
from llama_runner.errors import (
    LlamaError,
    LlamaRuntimeError,
    LlamaSystemError,
    ModelLoadError,
    OutOfMemoryError,
    of_the_call,
)
from llama_runner.loaders.files import size_of
from llama_runner.loaders.reading import part_names
from llama_runner.params import ContextParams, ModelParams
from llama_runner.system import data_size, free_memory

__all__ = ["main", "probe"]

# Seconds for the start and the token, and bytes that even a slow disk reads in a second.
_TIME_LIMIT: Final = 60.0
_SLOWEST_DISK: Final = 20e6
# The exit code of a child that got no more memory.
_NO_MEMORY: Final = 77


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
        ModelLoadError: The child crashed or took too long, or could not decode a token.
        OutOfMemoryError: It asked for more memory than is free.
        LlamaSystemError: No child could be started.
        LlamaError: What the runner in the child raised.
    """
    if not sys.executable:
        raise LlamaSystemError(
            f"isolated=True starts a Python, and sys.executable={sys.executable!r} names none"
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
            [sys.executable, "-P", "-m", "llama_runner._probe"],
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
    if child.returncode == _NO_MEMORY:
        raise OutOfMemoryError(
            f"{str(path)!r} was tried in a child process, which asked for more memory than the "
            f"{memory / 1e9:.1f} GB that are free"
        )
    raise _reported(child.stdout) or ModelLoadError(
        f"{str(path)!r} was tried in a child process, which {_end(child.returncode)}: "
        "do not load it in this one",
        native=_last_line(child.stderr),
    )


def main() -> int:
    """Load the model that standard input asks for; prints the error, if there is one."""
    from llama_runner.runner import LlamaRunner  # before the limit, which is for the model

    request = json.load(sys.stdin)
    _limit_memory(request["memory"])
    try:
        with LlamaRunner(
            request["path"],
            chat_template=request["chat_template"],
            validate=False,
            **request["options"],
        ) as runner:
            if not runner.model_params.vocab_only:
                runner.generate_stateless([runner.model.vocab.bos or 0], 1, temperature=0.0)
    except LlamaError as error:
        # That it cannot be computed with is the model's fault here.
        kind = ModelLoadError if isinstance(error, LlamaRuntimeError) else type(error)
        report = [kind.__name__, error.message, error.field, error.native]
        print(json.dumps(report), flush=True)
        return 1
    except (MemoryError, ImportError):  # the parent has these modules: there is no room for them
        return _NO_MEMORY
    return 0


def _limit_memory(n_bytes: int) -> None:
    """Let this process take so much more, and be the first to go where memory runs out.

    What is mapped from a file does not count: those pages can be given back.
    """
    import resource

    limit = data_size() + n_bytes
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _reported(output: bytes) -> LlamaError | None:
    """The error that the child printed, if what it printed is one."""
    try:
        name, message, field, native = json.loads(output)
    except (ValueError, TypeError):
        return None
    if name not in errors.__all__ or not isinstance(message, str):
        return None
    kind: type[LlamaError] = getattr(errors, name)
    return kind(message, field=field, native=native)


def _end(code: int) -> str:
    """How a child ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", perhaps for want of memory" * (name == "SIGKILL"))


def _last_line(text: bytes) -> str | None:
    lines = text.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


if __name__ == "__main__":
    sys.exit(main())
