"""The errors that llama_runner raises.

There is one base class and four categories. Most leaf classes also derive from the builtin that a
Python programmer would expect, so both ``except LlamaError`` and ``except FileNotFoundError``
work::

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

A message is one line: what is wrong, the offending value, and what to do.
``native`` is the last error line that llama.cpp logged during the call, if it logged one.
An error that is an OSError about one file has its ``errno`` and ``filename``.
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
    """Catch only what the call itself raised: ``except of_the_call(OSError) as error``.

    Python runs signal handlers between instructions and inside system calls that a signal
    interrupts. An exception that a handler raises can therefore come out of any line, and if it is
    a TimeoutError, it is an OSError. It is meant for the program and says nothing about a file.

    Returns:
        ``kinds``, or an empty tuple if a signal handler raised the exception being handled.
    """
    error = sys.exception()
    return () if error is not None and raised_by_handler(error) else kinds


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler, or a function that it called, raised this error.

    A handler is recognised by its argument, the frame that it interrupted: other functions that
    raise hold no frame. Unlike a comparison with the installed handlers, this also recognises one
    that has been replaced since.
    """
    return any(
        isinstance(held, FrameType)
        for frame, _ in walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
        for held in (value if type(value) is tuple else (value,))
    )


class LlamaError(Exception):
    """Base of all errors that llama_runner raises on purpose.

    Args:
        message: One line: what is wrong and what to do.
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
        # The __str__ of OSError and ImportError would ignore our message.
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
    """Tokenising, decoding or sampling could not continue."""


class LogicError(LlamaError):
    """The calling program did something that can never work."""


class MissingDependencyError(LlamaSystemError, ImportError):
    """An optional package that this call needs is not installed."""


class DownloadError(LlamaSystemError, OSError):
    """A model could not be fetched or arrived damaged."""


class FileReadError(LlamaSystemError, OSError):
    """A file exists, but the system does not allow reading it."""


class FileWriteError(LlamaSystemError, OSError):
    """A file cannot be written to its destination."""


class NoDiskSpaceError(LlamaSystemError, OSError):
    """The disk has no room for the data to write."""


class OutOfMemoryError(LlamaSystemError, MemoryError):
    """There is not enough memory on the machine, in its cgroup limit or on the accelerator."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no model with this path or name."""


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
    """The KV cache has no room left for the request."""


class PromptTooLongError(ContextFullError, ValueError):
    """The prompt alone is longer than the context."""


class TokenizationError(LlamaRuntimeError, ValueError):
    """The vocabulary cannot take the text or the token ids."""


class DecodeError(LlamaRuntimeError, RuntimeError):
    """llama.cpp failed to compute a batch."""


class ContextBusyError(LlamaRuntimeError, RuntimeError):
    """Another thread is using this object in a way that cannot be shared."""


class SnapshotError(LlamaRuntimeError, ValueError):
    """A saved conversation is damaged, or belongs to another model."""


class SnapshotNotFoundError(SnapshotError, FileNotFoundError):
    """There is no saved conversation at this path."""


class SnapshotReadError(SnapshotError, OSError):
    """The file of a saved conversation cannot be read."""


class InvalidParameterError(LogicError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class ClosedError(LogicError, RuntimeError):
    """The object was closed before this call."""


class ForkedProcessError(LogicError, RuntimeError):
    """The object was made before ``os.fork()`` and is used in the child."""
