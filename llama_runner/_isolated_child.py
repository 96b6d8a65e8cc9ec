"""The program that tries a model in a process of its own; see ``loading/isolated.py``."""

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
        return NO_MEMORY
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


if __name__ == "__main__":
    sys.exit(main())
