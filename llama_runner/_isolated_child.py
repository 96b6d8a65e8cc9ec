"""The program that tries a model in a separate process; see ``loading/isolated.py``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from llama_runner._support.hardware import data_size
from llama_runner.errors import LlamaError, LlamaRuntimeError, ModelLoadError
from llama_runner.loading.isolated import NO_MEMORY

__all__ = ["main"]


def main() -> int:
    """Load the model that standard input asks for, print any error, and return the exit status."""
    from llama_runner.runner import LlamaRunner  # before the memory limit, which is for the model

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
        # If it fails to generate here, that is the fault of the model file.
        kind = ModelLoadError if isinstance(error, LlamaRuntimeError) else type(error)
        report = [kind.__name__, error.message, error.field, error.native]
        print(json.dumps(report), flush=True)
        return 1
    except (MemoryError, ImportError):  # the parent has all modules, so memory ran out
        return NO_MEMORY
    return 0


def _limit_memory(n_bytes: int) -> None:
    """Allow this process this much more memory, and make it the first to be killed if none is left.

    Pages mapped from a file do not count, because the system can take them back.
    """
    import resource

    limit = data_size() + n_bytes
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
