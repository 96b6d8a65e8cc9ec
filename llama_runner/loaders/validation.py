"""Deciding whether a file may be handed to llama.cpp at all.

llama.cpp trusts a model file in many places: it aborts the process on metadata values that parse
well, and reads past the end of a truncated file. These checks refuse such files first, with one
line that says why, in time and memory that the file cannot drive up. They cannot rule out a bug
in native code behind values that are in range; for files from strangers there is loading in a
child process.

Bytes after the last tensor are accepted, as llama.cpp does not look at them, and reported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ModelValidationError
from .gguf import GgufInfo, read_open_gguf
from .header import ModelPath, open_model, quoted

__all__ = ["ValidationReport", "validate_model"]

Level = Literal["header", "full"]


@dataclass(frozen=True)
class ValidationReport:
    """What was found in a model that may be loaded.

    Attributes:
        info: The file's header.
        level: How much was checked.
        notes: Oddities that do no harm, one line each.
    """

    info: GgufInfo
    level: Level
    notes: tuple[str, ...]


def validate_model(path: ModelPath, level: Level = "full") -> ValidationReport:
    """Check that a GGUF model can be loaded safely.

    Args:
        path: The model file.
        level: ``header`` checks the file's structure: that it is a GGUF file and that every tensor
            lies inside it. ``full`` also checks every value that llama.cpp would stumble over.

    Raises:
        ModelNotFoundError: No such file.
        ModelValidationError: It must not be loaded; ``field`` names the key or tensor at fault.
    """
    with open_model(path) as file:
        info = read_open_gguf(file, Path(os.fspath(path)))
    notes = check_tensor_layout(info)
    return ValidationReport(info, level, tuple(notes))


def check_tensor_layout(info: GgufInfo) -> list[str]:
    """Check that the tensors lie one after the other, inside the file."""
    alignment = info.alignment
    expected = 0
    for tensor in info.tensors:
        if tensor.offset != expected:
            _fail(
                info,
                tensor.name,
                f"{quoted(tensor.name)} is at offset {tensor.offset}, not at {expected}",
            )
        end = info.data_offset + expected + tensor.nbytes
        if end > info.size:
            _fail(
                info,
                tensor.name,
                f"the file is truncated: {quoted(tensor.name)} ends at byte {end}, "
                f"the file at {info.size}; fetch it again",
            )
        expected += -(-tensor.nbytes // alignment) * alignment
    trailing = info.size - (info.data_offset + expected)
    return [f"{trailing} bytes follow the last tensor"] if info.tensors and trailing > 0 else []


def _fail(info: GgufInfo, field: str, problem: str) -> None:
    raise ModelValidationError(
        f"{quoted(str(info.path), limit=200)} is not a valid model: {problem}", field=field
    )
