"""Run GGUF language models inside a Python process, with explicit control of their memory."""

from __future__ import annotations

import os

# ggml would fork a debugger into this process when it aborts, and replace std::terminate.
# It reads this when the native module is loaded, so it must be there before.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_runner._core import Sampler, Vocab, set_log_level
    from llama_runner.conversation.session import Session, SessionMark
    from llama_runner.errors import (
        ChatTemplateError,
        ClosedError,
        ContextBusyError,
        ContextFullError,
        DecodeError,
        DownloadError,
        FileReadError,
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
        SnapshotReadError,
        TokenizationError,
        UnsupportedModelError,
    )
    from llama_runner.generation.stream import Stream
    from llama_runner.loaders import (
        CatalogueEntry,
        GgufArray,
        GgufInfo,
        MemoryEstimate,
        ModelMetadata,
        SamplingDefaults,
        TensorInfo,
        ValidationReport,
        estimate_memory,
        find_model,
        list_models,
        load_model,
        pull,
        read_gguf,
        validate_model,
    )
    from llama_runner.memory import GcPolicy
    from llama_runner.params import (
        ContextParams,
        GenerationOptions,
        GenerationParams,
        ModelParams,
        RunnerOptions,
    )
    from llama_runner.prompts.messages import Message, Prompt
    from llama_runner.quick import generate_once
    from llama_runner.results import (
        Chunk,
        Completion,
        ContextInfo,
        GcReport,
        Receipt,
        Span,
        Timings,
        Usage,
    )
    from llama_runner.runner import LlamaRunner
    from llama_runner.tokens import Batch, Detokenizer, Tokenizer, build_batch, create_sampler

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

__all__ = [
    "Batch",
    "CatalogueEntry",
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
    "FileReadError",
    "FileWriteError",
    "ForkedProcessError",
    "GcPolicy",
    "GcReport",
    "GenerationOptions",
    "GenerationParams",
    "GgufArray",
    "GgufInfo",
    "InvalidParameterError",
    "LlamaError",
    "LlamaRunner",
    "LlamaRuntimeError",
    "LlamaSystemError",
    "LogicError",
    "MemoryEstimate",
    "Message",
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
    "Prompt",
    "PromptTooLongError",
    "Receipt",
    "RunnerOptions",
    "Sampler",
    "SamplingDefaults",
    "Session",
    "SessionMark",
    "SnapshotError",
    "SnapshotNotFoundError",
    "SnapshotReadError",
    "Span",
    "Stream",
    "TensorInfo",
    "Timings",
    "TokenizationError",
    "Tokenizer",
    "UnsupportedModelError",
    "Usage",
    "ValidationReport",
    "Vocab",
    "__version__",
    "build_batch",
    "create_sampler",
    "estimate_memory",
    "find_model",
    "generate_once",
    "list_models",
    "load_model",
    "pull",
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
