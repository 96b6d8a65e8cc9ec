"""Writes small GGUF files, whole ones and broken ones, for the tests of everything that reads them.

Unlike the ``gguf`` package, it writes whatever it is told, however wrong.
"""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = dict(enumerate("BbHhIif?saQqd"))

# A tensor that claims more than this gets no more data than this.
MAX_TENSOR_BYTES = 1 << 20

TENSOR_F32, TENSOR_F16, TENSOR_Q4_0, TENSOR_Q8_0 = 0, 1, 2, 8


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
class Tensor:
    """A tensor of 4-byte floats unless told otherwise; ``offset`` and ``nbytes`` may lie."""

    name: str | bytes
    shape: tuple[int, ...]
    type_id: int = TENSOR_F32
    offset: int | None = None
    nbytes: int | None = None
    n_dims: int | None = None

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

    keys: dict[str | bytes, tuple[int, Any]] = field(default_factory=dict)
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
            payload = value.to_bytes() if isinstance(value, Array) else scalar(type_id, value)
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
            size = min(tensor.size(), MAX_TENSOR_BYTES)
            parts += [_weights(size), bytes(_padded(size, self.alignment) - size)]
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
