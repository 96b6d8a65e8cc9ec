"""Run GGUF language models inside a Python process, with explicit control of their memory."""

from __future__ import annotations

import os

# ggml would fork a debugger into this process when it aborts, and replace std::terminate.
# It reads this when the native module is loaded, so it must be there before.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_runner._core import set_log_level
    from llama_runner.errors import (
        ChatTemplateError,
        ClosedError,
        ContextBusyError,
        ContextFullError,
        DecodeError,
        DownloadError,
        FileWriteError,
        ForkedProcessError,
        InvalidParameterError,
        LlamaError,
        LlamaRuntimeError,
        LlamaSystemError,
        LogicError,
        MissingDependencyError,
        ModelError,
        ModelLoadError,
        ModelMetadataError,
        ModelNotFoundError,
        ModelValidationError,
        NoDiskSpaceError,
        OutOfMemoryError,
        PromptTooLongError,
        SnapshotError,
        SnapshotNotFoundError,
        TokenizationError,
        UnsupportedModelError,
    )
    from llama_runner.generation import Stream
    from llama_runner.loaders import (
        ModelMetadata,
        estimate_memory,
        load_model,
        read_gguf,
        validate_model,
    )
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
    "ChatTemplateError": "errors",
    "Chunk": "results",
    "ClosedError": "errors",
    "Completion": "results",
    "ContextBusyError": "errors",
    "ContextFullError": "errors",
    "ContextInfo": "results",
    "ContextParams": "params",
    "DecodeError": "errors",
    "Detokenizer": "tokens",
    "DownloadError": "errors",
    "FileWriteError": "errors",
    "ForkedProcessError": "errors",
    "GcReport": "results",
    "GenerationParams": "params",
    "InvalidParameterError": "errors",
    "LlamaError": "errors",
    "LlamaRunner": "runner",
    "LlamaRuntimeError": "errors",
    "LlamaSystemError": "errors",
    "LogicError": "errors",
    "MissingDependencyError": "errors",
    "ModelError": "errors",
    "ModelLoadError": "errors",
    "ModelMetadata": "loaders",
    "ModelMetadataError": "errors",
    "ModelNotFoundError": "errors",
    "ModelParams": "params",
    "ModelValidationError": "errors",
    "NoDiskSpaceError": "errors",
    "OutOfMemoryError": "errors",
    "PromptTooLongError": "errors",
    "Session": "session",
    "SnapshotError": "errors",
    "SnapshotNotFoundError": "errors",
    "Stream": "generation",
    "TokenizationError": "errors",
    "Tokenizer": "tokens",
    "UnsupportedModelError": "errors",
    "build_batch": "tokens",
    "create_sampler": "tokens",
    "estimate_memory": "loaders",
    "generate_once": "quick",
    "load_model": "loaders",
    "read_gguf": "loaders",
    "set_log_level": "_core",
    "validate_model": "loaders",
}

__all__ = [
    "Batch",
    "ChatTemplateError",
    "Chunk",
    "ClosedError",
    "Completion",
    "ContextBusyError",
    "ContextFullError",
    "ContextInfo",
    "ContextParams",
    "DecodeError",
    "Detokenizer",
    "DownloadError",
    "FileWriteError",
    "ForkedProcessError",
    "GcReport",
    "GenerationParams",
    "InvalidParameterError",
    "LlamaError",
    "LlamaRunner",
    "LlamaRuntimeError",
    "LlamaSystemError",
    "LogicError",
    "MissingDependencyError",
    "ModelError",
    "ModelLoadError",
    "ModelMetadata",
    "ModelMetadataError",
    "ModelNotFoundError",
    "ModelParams",
    "ModelValidationError",
    "NoDiskSpaceError",
    "OutOfMemoryError",
    "PromptTooLongError",
    "Session",
    "SnapshotError",
    "SnapshotNotFoundError",
    "Stream",
    "TokenizationError",
    "Tokenizer",
    "UnsupportedModelError",
    "__version__",
    "build_batch",
    "create_sampler",
    "estimate_memory",
    "generate_once",
    "load_model",
    "read_gguf",
    "set_log_level",
    "validate_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
