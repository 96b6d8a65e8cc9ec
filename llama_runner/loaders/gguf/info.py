"""Reading the header of a GGUF file: its metadata and tensor records, without any weights.

The layout: magic, version, counts; metadata keys with typed values; one record per tensor; then
padding and the tensors' data. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, NamedTuple

from llama_runner.errors import ModelLoadError
from llama_runner.loaders.gguf.header import (
    MAX_KEYS,
    MAX_TENSORS,
    GgufArray,
    HeaderReader,
    Limits,
    Scalar,
    quoted,
)
from llama_runner.loaders.gguf.types import ARRAY, FILE_TYPES, STRING, TENSOR_TYPES, VALUE_TYPES

__all__ = ["GgufInfo", "TensorInfo", "read_file", "require_weights"]

MAX_KEY_BYTES: Final = 65535
MAX_TENSOR_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
DEFAULT_ALIGNMENT: Final = 32

# The shortest key (length, one letter, type, one byte of value) and the shortest tensor record
# (empty name, one dimension) bound how many of them the rest of a file can hold.
_MIN_KEY_BYTES: Final = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8
_SIGNED_64_BITS: Final = 1 << 63

_PREAMBLE: Final = struct.Struct("<4sIQQ")
_U32: Final = struct.Struct("<I")
_ARRAY_HEAD: Final = struct.Struct("<IQ")
_TENSOR_TAILS: Final = tuple(struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1))

GgufValue = Scalar | GgufArray


class TensorInfo(NamedTuple):
    """One tensor: its shape in GGUF's order (fastest dimension first), its type and its place.

    ``offset`` counts bytes from the start of its file's tensor data; ``nbytes`` excludes padding.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    n_elements: int


@dataclass(frozen=True)
class GgufInfo:
    """The header of a GGUF model; ``str()`` of it is a readable line.

    Immutable, picklable, and equal to another with the same content.

    Attributes:
        path: The file; the first one of a split model.
        size: Length in bytes; for a split model, of all files together.
        version: GGUF format version.
        keys: Metadata in file order; arrays are decoded on demand.
        value_types: The type of each key: ``u32``, ``str``, ``arr`` ...
        tensors: The tensor records in file order.
        alignment: Every tensor starts at a multiple of this many bytes.
        data_offset: Where the tensor data starts, in bytes.
        parts: The headers of a split model's files; empty if the model is not split. Those after
            the first keep only the keys about the split.
    """

    path: Path
    size: int
    version: int
    keys: Mapping[str, GgufValue] = field(repr=False, hash=False)
    value_types: Mapping[str, str] = field(repr=False, hash=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    alignment: int
    data_offset: int
    parts: tuple[GgufInfo, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("keys", "value_types"):
            object.__setattr__(self, name, MappingProxyType(getattr(self, name)))

    def __reduce__(self) -> tuple[object, ...]:
        values = (getattr(self, field.name) for field in fields(self))
        # A MappingProxyType cannot be pickled.
        return GgufInfo, tuple(
            dict(value) if isinstance(value, MappingProxyType) else value for value in values
        )

    def __str__(self) -> str:
        return (
            f"{quoted(str(self.path), limit=200)}: architecture {quoted(self.architecture or '')}, "
            f"{self.quantization}, {self.n_params:,} weights in {len(self.tensors):,} tensors, "
            f"{self.size / 2**20:,.1f} MiB"
        )

    @property
    def architecture(self) -> str | None:
        """``general.architecture``, such as ``llama``."""
        return self._text("general.architecture")

    @property
    def name(self) -> str | None:
        """The name given by the model's makers."""
        return self._text("general.name")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that turns messages into a prompt."""
        return self._text("tokenizer.chat_template")

    @property
    def context_length(self) -> int | None:
        """The context length that the model was trained with, in tokens."""
        return self.number("context_length")

    @property
    def vocab_size(self) -> int | None:
        """The number of tokens in the vocabulary."""
        tokens = self.keys.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, GgufArray) else self.number("vocab_size")

    @cached_property
    def n_params(self) -> int:
        """The number of weights."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """The size of the weights in bytes, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def quantization(self) -> str | None:
        """The quantization recipe (``Q4_K_M``), or the tensor type that takes most bytes."""
        file_type = self.keys.get("general.file_type")
        if isinstance(file_type, int) and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        bytes_by_type: Counter[str] = Counter()
        for tensor in self.tensors:
            bytes_by_type[tensor.type] += tensor.nbytes
        return bytes_by_type.most_common(1)[0][0] if bytes_by_type else None

    @property
    def split_count(self) -> int:
        """The number of files that the model is split into; 1 if it is not split."""
        count = self.keys.get("split.count")
        return count if isinstance(count, int) and count > 0 else 1

    def number(self, suffix: str) -> int | None:
        """Return an integer under the architecture's prefix, such as ``block_count``, if any."""
        value = self.keys.get(f"{self.architecture}.{suffix}")
        return value if isinstance(value, int) else None

    def _text(self, key: str) -> str | None:
        value = self.keys.get(key)
        return value if isinstance(value, str) else None


def read_file(file: IO[bytes], path: Path, limits: Limits, first_read: int) -> GgufInfo:
    """Read one open file's header.

    Args:
        file: The file.
        path: Its name in messages.
        limits: The limits of the header; what is read is subtracted from them.
        first_read: The number of bytes to read first, probably enough for the whole header.

    Raises:
        ModelValidationError: Not a GGUF file, or its header cannot be read; ``field`` says where.
    """
    reader = HeaderReader(file, path, limits, first_read)
    version, n_tensors, n_keys = _read_preamble(reader, limits)
    keys, value_types = _read_keys(reader, n_keys)
    alignment = _alignment(reader, keys, value_types)
    tensors = tuple(_read_tensors(reader, n_tensors))
    limits.header_bytes -= reader.position
    data_offset = -(-reader.position // alignment) * alignment
    return GgufInfo(
        path, reader.file_size, version, keys, value_types, tensors, alignment, data_offset
    )


def require_weights(info: GgufInfo) -> None:
    """Refuse a file that holds a vocabulary alone.

    Raises:
        ModelLoadError: It has no tensors.
    """
    if not info.tensors:
        raise ModelLoadError(
            f"{quoted(str(info.path), limit=200)} holds no weights; only vocab_only=True can open "
            "it",
            field="vocab_only",
        )


def _read_preamble(reader: HeaderReader, limits: Limits) -> tuple[int, int, int]:
    if reader.file_size == 0:
        reader.fail("magic", "the file is empty")
    if reader.file_size < 4:
        reader.fail("magic", f"{reader.file_size} bytes are too few for a GGUF file")
    reader.need(4, "magic")
    if reader.buffer[:4] != b"GGUF":
        start = f"it starts with {quoted(reader.buffer[:4])}, not with 'GGUF'"
        reader.fail("magic", start + _what_it_is(reader.buffer))
    _, version, n_tensors, n_keys = reader.unpack(_PREAMBLE, "header")
    if version and not version & 0xFFFF:
        reader.fail("version", "it was written for big-endian machines; convert it again")
    if version not in (2, 3):
        reader.fail("version", f"GGUF version {version} is not supported (2 and 3 are)")
    limits.keys -= n_keys
    limits.tensors -= n_tensors
    for what, count, limit, left, least in (
        ("n_kv", n_keys, MAX_KEYS, limits.keys, _MIN_KEY_BYTES),
        ("n_tensors", n_tensors, MAX_TENSORS, limits.tensors, _MIN_TENSOR_BYTES),
    ):
        if left < 0:
            reader.fail(what, f"{what} is {count}; a model may have at most {limit} in all")
        if count * least > reader.file_size - reader.position:
            reader.fail(what, f"{what} is {count}, too many for the file; is it truncated?")
    return version, n_tensors, n_keys


def _what_it_is(content: bytes) -> str:
    """Name what is most often downloaded instead of a model, as the end of a message."""
    beginning = content[:64].lstrip().lower()
    if beginning.startswith(b"version https://git-lfs"):
        return ": this is a git-LFS pointer; fetch the file with git lfs pull"
    if beginning.startswith((b"<!doctype html", b"<html")):
        return ": this is a web page; download the file itself"
    return ""


def _read_keys(reader: HeaderReader, count: int) -> tuple[dict[str, GgufValue], dict[str, str]]:
    keys: dict[str, GgufValue] = {}
    value_types: dict[str, str] = {}
    for index in range(count):
        key = _read_key(reader, index)
        if key in keys:
            reader.fail(key, f"the key {quoted(key)} occurs twice")
        (type_id,) = reader.unpack(_U32, key)
        if type_id >= len(VALUE_TYPES):
            reader.fail(key, f"{quoted(key)} has the unknown value type {type_id}")
        value_types[key] = VALUE_TYPES[type_id].name
        scalar = VALUE_TYPES[type_id].scalar
        if scalar is not None:
            (keys[key],) = reader.unpack(scalar, key)
        elif type_id == STRING:
            keys[key] = reader.any_text(key)
        else:
            keys[key] = _read_array(reader, key)
    return keys, value_types


def _read_key(reader: HeaderReader, index: int) -> str:
    raw = reader.text(MAX_KEY_BYTES, f"key {index}")
    try:
        key = raw.decode()
    except UnicodeDecodeError:
        reader.fail(f"key {index}", f"key {index} is not UTF-8: {quoted(raw)}")
    if not key or "\0" in key:
        reader.fail(f"key {index}", f"key {index} is {'empty' if not key else 'cut by a NUL'}")
    return key


def _read_array(reader: HeaderReader, key: str) -> GgufArray:
    element_type, length = reader.unpack(_ARRAY_HEAD, key)
    if element_type == ARRAY:
        reader.fail(key, f"{quoted(key)} is an array of arrays, which GGUF does not have")
    if element_type >= len(VALUE_TYPES):
        reader.fail(key, f"{quoted(key)} has the unknown element type {element_type}")
    return reader.array(element_type, length, key)


def _alignment(
    reader: HeaderReader, keys: Mapping[str, GgufValue], value_types: Mapping[str, str]
) -> int:
    field = "general.alignment"
    alignment = keys.get(field, DEFAULT_ALIGNMENT)
    if field in keys and value_types[field] != "u32":
        reader.fail(field, f"{field} must be of type u32, not {value_types[field]}")
    assert isinstance(alignment, int)
    if not 8 <= alignment <= 65536 or alignment & (alignment - 1):
        reader.fail(field, f"{field} is {alignment}; it must be a power of 2 from 8 to 65536")
    return alignment


def _read_tensors(reader: HeaderReader, count: int) -> list[TensorInfo]:
    tensors = []
    seen: set[str] = set()
    for index in range(count):
        tensor = _read_tensor(reader, f"tensor {index}")
        if tensor.name in seen:
            reader.fail(tensor.name, f"the tensor {quoted(tensor.name)} occurs twice")
        seen.add(tensor.name)
        tensors.append(tensor)
    return tensors


def _read_tensor(reader: HeaderReader, field: str) -> TensorInfo:
    raw = reader.text(MAX_TENSOR_NAME_BYTES, field)
    if not raw or b"\0" in raw:
        reader.fail(field, f"the name of {field} is {'empty' if not raw else 'cut by a NUL'}")
    name = raw.decode("utf-8", "replace")
    (n_dimensions,) = reader.unpack(_U32, name)
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        reader.fail(name, f"{quoted(name)} has {n_dimensions} dimensions; 1 to 4 are possible")
    *shape, type_id, offset = reader.unpack(_TENSOR_TAILS[n_dimensions], name)
    layout = TENSOR_TYPES.get(type_id)
    if layout is None:
        reader.fail(name, f"{quoted(name)} has the tensor type {type_id}, unknown to llama.cpp")
    n_elements = 1
    for dimension in shape:
        n_elements *= dimension
    if n_elements == 0:
        reader.fail(name, f"{quoted(name)} has a dimension of 0")
    if shape[0] % layout.block:
        reader.fail(
            name,
            f"the rows of {quoted(name)} have {shape[0]} elements, "
            f"not a multiple of {layout.block} as {layout.name} needs",
        )
    nbytes = n_elements // layout.block * layout.block_bytes
    if max(n_elements, nbytes) >= _SIGNED_64_BITS:
        reader.fail(name, f"the shape of {quoted(name)} is too large: {tuple(shape)}")
    return TensorInfo(name, tuple(shape), layout.name, offset, nbytes, n_elements)
