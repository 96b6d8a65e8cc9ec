"""Run GGUF language models inside a Python process, with explicit control of their memory."""

from __future__ import annotations

import os

# ggml would fork a debugger into this process when it aborts, and replace std::terminate.
# It reads this when the native module is loaded, so it must be there before.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_runner.errors import (
        LlamaError,
        LlamaRuntimeError,
        LlamaSystemError,
        LogicError,
        ModelError,
    )
    from llama_runner.generation import Stream
    from llama_runner.params import ContextParams, GenerationParams, ModelParams
    from llama_runner.quick import generate_once
    from llama_runner.results import Chunk, Completion, ContextInfo, GcReport
    from llama_runner.runner import LlamaRunner
    from llama_runner.session import Session
    from llama_runner.tokens import Batch, Detokenizer, Tokenizer, build_batch, create_sampler

__version__ = "0.1.0"

# Where each public name lives; loaded on first use, because numpy, pydantic and the native module
# take far longer to import than most programs that only look at the package should wait.
_HOME = {
    "Batch": "tokens",
    "Chunk": "results",
    "Completion": "results",
    "ContextInfo": "results",
    "ContextParams": "params",
    "Detokenizer": "tokens",
    "GcReport": "results",
    "GenerationParams": "params",
    "LlamaError": "errors",
    "LlamaRunner": "runner",
    "LlamaRuntimeError": "errors",
    "LlamaSystemError": "errors",
    "LogicError": "errors",
    "ModelError": "errors",
    "ModelParams": "params",
    "Session": "session",
    "Stream": "generation",
    "Tokenizer": "tokens",
    "build_batch": "tokens",
    "create_sampler": "tokens",
    "generate_once": "quick",
}

__all__ = [
    "Batch",
    "Chunk",
    "Completion",
    "ContextInfo",
    "ContextParams",
    "Detokenizer",
    "GcReport",
    "GenerationParams",
    "LlamaError",
    "LlamaRunner",
    "LlamaRuntimeError",
    "LlamaSystemError",
    "LogicError",
    "ModelError",
    "ModelParams",
    "Session",
    "Stream",
    "Tokenizer",
    "__version__",
    "build_batch",
    "create_sampler",
    "generate_once",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
