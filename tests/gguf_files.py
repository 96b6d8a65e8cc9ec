"""The writer of all model files that the tests make, whole ones and broken ones.

Unlike the ``gguf`` package, it writes whatever it is told, however wrong.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = dict(enumerate("BbHhIif?saQqd"))

# A tensor that claims more than this gets no more data than this.
MAX_TENSOR_BYTES = 1 << 20

TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, _, TOKEN_BYTE = range(1, 7)

TENSOR_F32, TENSOR_F16, TENSOR_Q4_0, TENSOR_Q8_0 = 0, 1, 2, 8


Keys = dict[str | bytes, tuple[int, Any]]


def text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(type_id: int, value: Any) -> bytes:
    return text(value) if type_id == STRING else struct.pack(f"<{_FORMATS[type_id]}", value)


@dataclass
class Array:
    """An array value; ``length`` may lie."""

    type_id: int
    values: list[Any]
    length: int | None = None

    def to_bytes(self) -> bytes:
        length = len(self.values) if self.length is None else self.length
        head = struct.pack("<IQ", self.type_id, length)
        return head + b"".join(scalar(self.type_id, value) for value in self.values)


@dataclass
class Encoded:
    """A value as another file spells it."""

    data: bytes

    def to_bytes(self) -> bytes:
        return self.data


def typed(values: Mapping[str, Any]) -> Keys:
    """Give each value the type that model files usually have for it."""
    return {name: _typed(value) for name, value in values.items()}


def _typed(value: Any) -> tuple[int, Any]:
    match value:
        case bool():
            return BOOL, value
        case int():
            return U32, value
        case float():
            return F32, value
        case str():
            return STRING, value
    kind = {str: STRING, float: F32}.get(type(value[0]), I32)
    return ARRAY, Array(kind, list(value))


def read_keys(path: Path) -> Keys:
    """Read the keys of a sound file, with values that are copied and not decoded."""
    data = path.read_bytes()
    _, _, _, n_keys = struct.unpack_from("<4sIQQ", data)
    at, keys = struct.calcsize("<4sIQQ"), Keys()
    for _ in range(n_keys):
        start, at = at + 8, _skip(data, at, STRING)
        name = data[start:at].decode()
        (type_id,) = struct.unpack_from("<I", data, at)
        start, at = at + 4, _skip(data, at + 4, type_id)
        keys[name] = type_id, Encoded(data[start:at])
    return keys


def _skip(data: bytes, at: int, type_id: int) -> int:
    """Return where a value ends."""
    if type_id == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return at + 8 + int(length)
    if type_id == ARRAY:
        item, length = struct.unpack_from("<IQ", data, at)
        at += 12
        if item not in (STRING, ARRAY):
            return at + int(length) * struct.calcsize(f"<{_FORMATS[item]}")
        for _ in range(length):
            at = _skip(data, at, item)
        return at
    return at + struct.calcsize(f"<{_FORMATS[type_id]}")


@dataclass
class Tensor:
    """A tensor of small random 4-byte floats unless told otherwise.

    ``offset`` and ``nbytes`` may lie.
    """

    name: str | bytes
    shape: tuple[int, ...]
    type_id: int = TENSOR_F32
    offset: int | None = None
    nbytes: int | None = None
    n_dims: int | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, name: str, array: np.ndarray[Any, Any]) -> Tensor:
        """Make a tensor of an array of 4-byte floats."""
        assert array.dtype == np.float32
        return cls(name, array.shape[::-1], data=array.tobytes())

    def size(self) -> int:
        if self.nbytes is not None:
            return self.nbytes
        elements = 1
        for dimension in self.shape:
            elements *= dimension
        return elements * 4


@dataclass
class GgufFile:
    """A GGUF file to be written. Every field that is None is worked out from the others."""

    keys: Keys = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    tail: bytes = b""

    def with_keys(self, **changes: tuple[int, Any] | None) -> GgufFile:
        """A copy with some keys set, or removed where None; ``__`` stands for a dot."""
        keys = dict(self.keys)
        for name, value in changes.items():
            key = name.replace("__", ".")
            if value is None:
                keys.pop(key)
            else:
                keys[key] = value
        return replace(self, keys=keys)

    def with_tensor(self, name: str, /, **changes: Any) -> GgufFile:
        """A copy with one tensor changed."""
        assert any(tensor.name == name for tensor in self.tensors)
        changed = [replace(t, **changes) if t.name == name else t for t in self.tensors]
        return replace(self, tensors=changed)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [struct.pack("<4sIQQ", self.magic, self.version, n_tensors, n_keys)]
        for key, (type_id, value) in self.keys.items():
            is_encoded = isinstance(value, Array | Encoded)
            payload = value.to_bytes() if is_encoded else scalar(type_id, value)
            parts += [text(key), struct.pack("<I", type_id), payload]
        offset = 0
        for tensor in self.tensors:
            n_dims = len(tensor.shape) if tensor.n_dims is None else tensor.n_dims
            start = offset % 2**64 if tensor.offset is None else tensor.offset
            parts += [text(tensor.name), struct.pack("<I", n_dims)]
            parts += [struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)]
            parts += [struct.pack("<IQ", tensor.type_id, start)]
            offset += _padded(tensor.size(), self.alignment)
        return b"".join(parts)

    def to_bytes(self) -> bytes:
        header = self.header()
        parts = [header, bytes(_padded(len(header), self.alignment) - len(header))]
        for tensor in self.tensors:
            data = tensor.data
            if data is None:
                data = _weights(min(tensor.size(), MAX_TENSOR_BYTES))
            parts += [data, bytes(_padded(len(data), self.alignment) - len(data))]
        return b"".join(parts) + self.tail

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


@functools.cache
def _random_floats() -> bytes:
    numbers = random.Random(0)
    return struct.pack("<4093f", *(numbers.uniform(-0.1, 0.1) for _ in range(4093)))


def _weights(size: int) -> bytes:
    """Small random floats, the same ones over and over in an odd rhythm."""
    floats = _random_floats()
    return (floats * (size // len(floats) + 1))[:size]
