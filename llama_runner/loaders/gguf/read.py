"""Reading the header of a model from its file, or from all files that it is split into.

llama.cpp finds the parts by their names, in one folder: ``model-00001-of-00003.gguf`` and so on.
The first part has the metadata; each part has its own tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import IO, Final

from llama_runner._support.files import about_file
from llama_runner.errors import ModelNotFoundError
from llama_runner.loaders.gguf.header import (
    FIRST_READ,
    Limits,
    ModelPath,
    open_model,
    quoted,
    refuse,
)
from llama_runner.loaders.gguf.info import GgufInfo, read_file

__all__ = ["part_names", "read_gguf"]

MAX_PARTS: Final = 256
# A part after the first has only three keys and its tensor records.
_PART_READ: Final = 16 << 10
_SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a model, given the name of one part or of the only file."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MAX_PARTS:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def read_gguf(model: ModelPath | IO[bytes]) -> GgufInfo:
    """Read a GGUF model's metadata and tensor records: its header, never its weights.

    The time depends only on the vocabulary's size: milliseconds, even for a file of 50 GB. Any part
    of a split model stands for the whole.

    Args:
        model: A path, or a file open for reading bytes.

    Raises:
        InvalidParameterError: It is neither a path nor an open file.
        ModelNotFoundError: There is no such file, or a part of the model is missing.
        FileReadError: The system does not allow reading it.
        ModelValidationError: It is not a GGUF file, or its header is broken; ``field`` says where.
    """
    limits = Limits()
    with open_model(model) as (file, path):
        info = read_file(file, path, limits, FIRST_READ)
    return _read_parts(info, limits) if info.split_count > 1 else info


def _read_parts(given: GgufInfo, limits: Limits) -> GgufInfo:
    for key in ("split.no", "split.count"):
        value_type = given.value_types.get(key)
        if value_type != "u16":
            refuse(given.path, key, f"{key} must be of type u16, not {value_type}")
    names = part_names(given.path.name)
    if len(names) != given.split_count:
        refuse(
            given.path,
            "split.count",
            f"it is one of {given.split_count} parts, but is not named like one "
            f"(NAME-00001-of-{given.split_count:05}.gguf)",
        )
    first = _read_part(given, names[0], 0, limits)
    parts = [first]
    for number, name in enumerate(names[1:], 1):
        part = _read_part(given, name, number, limits)
        kept = [key for key in _SPLIT_KEYS if key in part.keys]
        keys = {key: part.keys[key] for key in kept}
        value_types = {key: part.value_types[key] for key in kept}
        parts.append(replace(part, keys=keys, value_types=value_types))
    place: dict[str, str] = {}
    for part in parts:
        for tensor in part.tensors:
            other = place.setdefault(tensor.name, part.path.name)
            if other != part.path.name:
                refuse(
                    part.path,
                    tensor.name,
                    f"{quoted(tensor.name)} is in two parts: it is also in {quoted(other, 200)}",
                )
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    claimed = first.keys.get("split.tensors.count")
    if claimed != len(tensors) or first.value_types["split.tensors.count"] != "i32":
        refuse(
            first.path,
            "split.tensors.count",
            f"its parts have {len(tensors)} tensors, split.tensors.count says {claimed!r}",
        )
    size = sum(part.size for part in parts)
    return replace(first, size=size, tensors=tensors, parts=tuple(parts))


def _read_part(given: GgufInfo, name: str, number: int, limits: Limits) -> GgufInfo:
    """Read one part, and check that its number and the count of parts are right and u16."""
    path = given.path.with_name(name)
    if name == given.path.name:
        part = given
    else:
        try:
            with open_model(path) as (file, _):
                part = read_file(file, path, limits, _PART_READ if number else FIRST_READ)
        except ModelNotFoundError as error:
            missing = ModelNotFoundError(
                f"the model is split into {given.split_count} files; {quoted(name, 200)} is "
                "missing next to the others",
                field="split.count",
            )
            raise about_file(missing, path, error) from None
    for key, wanted in (("split.no", number), ("split.count", given.split_count)):
        found = part.keys.get(key)
        if found != wanted or part.value_types[key] != "u16":
            refuse(part.path, key, f"{key} must be {wanted} of type u16, not {found!r}")
    return part
