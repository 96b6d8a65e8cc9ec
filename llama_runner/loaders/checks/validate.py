"""Checking whether a model file is safe to give to llama.cpp.

llama.cpp trusts a model file in many places: it aborts the process on well-formed metadata with
impossible values, and reads past the end of a truncated file. These checks refuse such files first,
with one line that says why, and in bounded time and memory. They cannot rule out a bug in native
code that values within their range reach; load files from strangers in a child process.

Bytes after the last tensor are accepted, because llama.cpp does not look at them, and reported.
"""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from typing import IO, Final, Literal

from llama_runner.errors import InvalidParameterError
from llama_runner.loaders.checks.chat_template import check_chat_templates
from llama_runner.loaders.checks.hyperparameters import check_hyperparameters
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.checks.tensors import (
    check_needed_tensors,
    check_plain_tensors,
    check_tensor_layout,
    check_tensor_types,
)
from llama_runner.loaders.checks.vocabulary import check_vocabulary
from llama_runner.loaders.gguf.header import ModelPath
from llama_runner.loaders.gguf.info import GgufInfo, require_weights
from llama_runner.loaders.gguf.read import read_gguf

__all__ = ["ValidationReport", "validate_model"]

# Tokens of context for building the graphs; the kinds of graphs do not depend on it.
_TRIED: Final = 256

Level = Literal["header", "full", "graph"]


@dataclass(frozen=True)
class ValidationReport:
    """Findings about a model that is safe to load; ``str()`` of it is a readable line.

    Attributes:
        info: The model's header; for a split model, with those of all its parts.
        level: How much was checked.
        notes: Harmless oddities, one line each.
    """

    info: GgufInfo
    level: Level
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.info}; the {self.level} check passed, with {len(self.notes)} notes"


def validate_model(model: ModelPath | IO[bytes], level: Level = "full") -> ValidationReport:
    """Check that a GGUF model can be loaded safely.

    Args:
        model: The path of the model, or of any part of it if it is split; or the file, open for
            reading bytes, so that the same file can be loaded after the check.
        level: ``header`` checks the files' structure: that they are GGUF files, that they belong
            together, and that every tensor lies inside its file. ``full`` also checks every value
            that llama.cpp would stumble over. ``graph`` also makes llama.cpp itself read the
            vocabulary, make the tensors without their data, and build the graphs of a context,
            because it knows which tensors an architecture needs and in which shapes. That takes as
            long as loading the vocabulary. A runner does not need it, because loading does the
            same.

    Raises:
        InvalidParameterError: The level is unknown, or the model is neither a path nor an open
            file.
        ModelNotFoundError: There is no such file.
        FileReadError: The system does not allow reading it.
        ModelValidationError: It must not be loaded; ``field`` names the key or tensor at fault.
        ModelLoadError: It holds no weights, or llama.cpp cannot build the model or its graphs
            (only ``graph`` raises this and the next two).
        UnsupportedModelError: It is not a model that generates text.
        OutOfMemoryError: There is not enough memory for its vocabulary.
    """
    if level not in ("header", "full", "graph"):
        raise InvalidParameterError(
            f"level={reprlib.repr(level)}: must be 'header', 'full' or 'graph'", field="level"
        )
    info = read_gguf(model)
    facts = Facts(info)
    for part in info.parts or (info,):
        check_tensor_layout(facts, part)
    if level != "header":
        check_hyperparameters(facts)
        check_tensor_types(facts)
        check_plain_tensors(facts)
        check_needed_tensors(facts)
        check_chat_templates(facts)
        check_vocabulary(facts)
    if level == "graph":
        _build_graphs(info, None if isinstance(model, str | os.PathLike) else model)
    return ValidationReport(info, level, tuple(facts.notes))


def _build_graphs(info: GgufInfo, file: IO[bytes] | None) -> None:
    """Make a model without its data and a context on it, which plans the largest graphs."""
    from llama_runner._core import Context, Model

    require_weights(info)
    with Model(info.path, file=file, no_alloc=True) as model:
        Context(model, n_ctx=min(_TRIED, model.n_ctx_train))
