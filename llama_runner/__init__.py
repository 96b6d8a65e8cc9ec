"""Run GGUF language models inside a Python process, with explicit control of their memory."""

from __future__ import annotations

import os

# ggml would fork a debugger into this process when it aborts, and replace std::terminate.
# It reads this when the native module is loaded, so it must be there before.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives; loaded on first use, because numpy, pydantic and the native module
# take far longer to import than most programs that only look at the package should wait.
_HOME = {
    "Batch": "tokens",
    "CatalogueEntry": "loaders",
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
    "FileReadError": "errors",
    "FileWriteError": "errors",
    "ForkedProcessError": "errors",
    "GcPolicy": "memory",
    "GcReport": "results",
    "GenerationOptions": "params",
    "GenerationParams": "params",
    "GgufArray": "loaders",
    "GgufInfo": "loaders",
    "InvalidParameterError": "errors",
    "LlamaError": "errors",
    "LlamaRunner": "runner",
    "LlamaRuntimeError": "errors",
    "LlamaSystemError": "errors",
    "LogicError": "errors",
    "MemoryEstimate": "loaders",
    "Message": "prompts.messages",
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
    "Prompt": "prompts.messages",
    "PromptTooLongError": "errors",
    "Receipt": "results",
    "RunnerOptions": "params",
    "Sampler": "_core",
    "SamplingDefaults": "loaders",
    "Session": "conversation.session",
    "SessionMark": "conversation.session",
    "SnapshotError": "errors",
    "SnapshotNotFoundError": "errors",
    "SnapshotReadError": "errors",
    "Span": "results",
    "Stream": "generation.stream",
    "TensorInfo": "loaders",
    "Timings": "results",
    "TokenizationError": "errors",
    "Tokenizer": "tokens",
    "UnsupportedModelError": "errors",
    "Usage": "results",
    "ValidationReport": "loaders",
    "Vocab": "_core",
    "build_batch": "tokens",
    "create_sampler": "tokens",
    "estimate_memory": "loaders",
    "find_model": "loaders",
    "generate_once": "quick",
    "list_models": "loaders",
    "load_model": "loaders",
    "pull": "loaders",
    "read_gguf": "loaders",
    "set_log_level": "_core",
    "validate_model": "loaders",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
