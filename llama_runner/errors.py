"""Every error that llama_runner raises.

One base, four categories, and leaves that are also the builtin a Python programmer would
expect, so both ``except LlamaError`` and ``except FileNotFoundError`` work::

    LlamaError
    ├── LlamaSystemError           the machine: dependencies, permissions, memory, network
    │   ├── MissingDependencyError     (ImportError)
    │   ├── DownloadError              (OSError)
    │   ├── FileReadError              (OSError)
    │   ├── FileWriteError             (OSError)
    │   ├── NoDiskSpaceError           (OSError)
    │   └── OutOfMemoryError           (MemoryError)
    ├── ModelError                 the model file
    │   ├── ModelNotFoundError         (FileNotFoundError)
    │   ├── ModelValidationError       (ValueError)
    │   ├── ModelLoadError             (RuntimeError)
    │   ├── ModelMetadataError         (ValueError)
    │   ├── UnsupportedModelError      (NotImplementedError)
    │   └── ChatTemplateError          (ValueError)
    ├── LlamaRuntimeError          while tokenising or generating
    │   ├── ContextFullError           (RuntimeError)
    │   │   └── PromptTooLongError     (ValueError)
    │   ├── TokenizationError          (ValueError)
    │   ├── DecodeError                (RuntimeError)
    │   ├── ContextBusyError           (RuntimeError)
    │   └── SnapshotError              (ValueError)
    │       ├── SnapshotNotFoundError  (FileNotFoundError)
    │       └── SnapshotReadError      (OSError)
    └── LogicError                 the calling program
        ├── InvalidParameterError      (ValueError)
        ├── ClosedError                (RuntimeError)
        └── ForkedProcessError         (RuntimeError)

A message is one line: what was wrong, the offending value, and what to do.
``native`` is the last error line that llama.cpp logged during the call, where there was one.
Those that are an OSError about one file have its ``errno`` and ``filename``.
"""

from __future__ import annotations

import sys
from traceback import walk_tb
from types import FrameType
from typing import TypeVar

__all__ = [
    "ChatTemplateError",
    "ClosedError",
    "ContextBusyError",
    "ContextFullError",
    "DecodeError",
    "DownloadError",
    "FileReadError",
    "FileWriteError",
    "ForkedProcessError",
    "InvalidParameterError",
    "LlamaError",
    "LlamaRuntimeError",
    "LlamaSystemError",
    "LogicError",
    "MissingDependencyError",
    "ModelError",
    "ModelLoadError",
    "ModelMetadataError",
    "ModelNotFoundError",
    "ModelValidationError",
    "NoDiskSpaceError",
    "OutOfMemoryError",
    "PromptTooLongError",
    "SnapshotError",
    "SnapshotNotFoundError",
    "SnapshotReadError",
    "TokenizationError",
    "UnsupportedModelError",
]


_AnyError = TypeVar("_AnyError", bound=BaseException)


def of_the_call(*kinds: type[_AnyError]) -> tuple[type[_AnyError], ...]:
    """Take only what the call itself raised: ``except of_the_call(OSError) as error``.

    Python runs signal handlers between two instructions, and inside system calls that a signal
    interrupts. So what a handler raises can come out of any line, and its TimeoutError is an
    OSError. It is for the program, and no word about a file.

    Returns:
        ``kinds``, or nothing if a signal handler raised the exception that is being handled.
    """
    error = sys.exception()
    return () if error is not None and raised_by_handler(error) else kinds


def raised_by_handler(error: BaseException) -> bool:
    """Tell whether a signal handler raised this, or something that it called.

    A handler is given the frame that it interrupts. Other functions that raise hold no frame, and
    unlike the handlers that are installed now, this is also true of one that was replaced since.
    """
    return any(
        isinstance(held, FrameType)
        for frame, _ in walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
        for held in (value if type(value) is tuple else (value,))
    )


class LlamaError(Exception):
    """Base of everything that llama_runner raises on purpose.

    Args:
        message: One line: what was wrong and what to do.
        field: The parameter or file field at fault, if there is one.
        native: The last error line that llama.cpp logged during the call.
    """

    def __init__(
        self, message: str, *, field: str | None = None, native: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.native = native

    def __str__(self) -> str:
        # OSError and ImportError have a __str__ of their own that ignores our message.
        return f"{self.message} (llama.cpp: {self.native})" if self.native else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries (multiprocessing, loading in a child process).
        known = (type(self), self.message, self.field, self.native)
        if not isinstance(self, OSError):
            return (_rebuild, known)
        names = ("errno", "strerror", "filename")
        return (_rebuild, known, {name: getattr(self, name) for name in names})


def _rebuild(
    kind: type[LlamaError], message: str, field: str | None, native: str | None
) -> LlamaError:
    return kind(message, field=field, native=native)


class LlamaSystemError(LlamaError):
    """The machine lacks something: a dependency, a permission, memory, the network."""


class ModelError(LlamaError):
    """The model file is missing, broken or unsupported."""


class LlamaRuntimeError(LlamaError):
    """Tokenising, decoding or sampling could not go on."""


class LogicError(LlamaError):
    """The calling program did something that can never work."""


class MissingDependencyError(LlamaSystemError, ImportError):
    """An optional package that this call needs is not installed."""


class DownloadError(LlamaSystemError, OSError):
    """A model could not be fetched or arrived damaged."""


class FileReadError(LlamaSystemError, OSError):
    """A file is there, but the system does not let it be read."""


class FileWriteError(LlamaSystemError, OSError):
    """A file cannot be written where it should be."""


class NoDiskSpaceError(LlamaSystemError, OSError):
    """The disk has no room for what is to be written."""


class OutOfMemoryError(LlamaSystemError, MemoryError):
    """The machine, its cgroup limit or the accelerator has no room for what was asked."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model under this path or name."""


class ModelValidationError(ModelError, ValueError):
    """The file is not a GGUF model that can be loaded safely."""


class ModelLoadError(ModelError, RuntimeError):
    """llama.cpp refused the model, or its loading was cancelled."""


class ModelMetadataError(ModelError, ValueError):
    """A model's JSON metadata cannot be read or contradicts the model file."""


class UnsupportedModelError(ModelError, NotImplementedError):
    """The model cannot do what was asked (for example generate with an encoder-only model)."""


class ChatTemplateError(ModelError, ValueError):
    """The model has no chat template, or its template failed on these messages."""


class ContextFullError(LlamaRuntimeError, RuntimeError):
    """The KV cache has no room left for what was asked."""


class PromptTooLongError(ContextFullError, ValueError):
    """The prompt alone is longer than the context."""


class TokenizationError(LlamaRuntimeError, ValueError):
    """Text or token ids that the vocabulary cannot take."""


class DecodeError(LlamaRuntimeError, RuntimeError):
    """llama.cpp failed to compute a batch."""


class ContextBusyError(LlamaRuntimeError, RuntimeError):
    """Another thread is using this object in a way that cannot be shared."""


class SnapshotError(LlamaRuntimeError, ValueError):
    """A saved conversation is damaged, or belongs to another model."""


class SnapshotNotFoundError(SnapshotError, FileNotFoundError):
    """There is no saved conversation under this path."""


class SnapshotReadError(SnapshotError, OSError):
    """The file of a saved conversation cannot be read."""


class InvalidParameterError(LogicError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class ClosedError(LogicError, RuntimeError):
    """The object was closed before this call."""


class ForkedProcessError(LogicError, RuntimeError):
    """The object was made before ``os.fork()`` and is used in the child."""
