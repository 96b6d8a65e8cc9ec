"""Typed access to a header's metadata, with one error for every way in which a value can be wrong.

llama.cpp reads each key as one exact type. It refuses any other type or, for some keys, aborts. So
the type of a value is checked together with its range.
"""

from __future__ import annotations

import math
from typing import NoReturn

from llama_runner.loaders.gguf.header import GgufArray, quoted, refuse
from llama_runner.loaders.gguf.info import GgufInfo

__all__ = ["Facts"]


class Facts:
    """The metadata of one file, for checks.

    Attributes:
        info: The header that the metadata comes from.
        architecture: The architecture, or an empty string, which ``full`` checks refuse.
        notes: Harmless oddities found by the checks.
    """

    def __init__(self, info: GgufInfo) -> None:
        self.info = info
        self.architecture = info.architecture or ""
        self.notes: list[str] = []

    def fail(self, field: str, problem: str) -> NoReturn:
        """Refuse the model; the message names the file with the tensor or the keys at fault.

        Raises:
            ModelValidationError: Always.
        """
        parts = self.info.parts
        with_it = (part for part in parts if any(field == tensor.name for tensor in part.tensors))
        refuse(next(with_it, self.info).path, field, problem)

    def key(self, suffix: str) -> str:
        """Return a key with the architecture's prefix."""
        return f"{self.architecture}.{suffix}"

    def has(self, key: str) -> bool:
        """Return whether the key is there."""
        return key in self.info.keys

    def integer(self, key: str, low: int, high: int) -> int | None:
        """Return a u32 between two bounds, or None if the key is missing."""
        if key not in self.info.keys:  # first, because most keys are missing
            return None
        value = self._typed(key, "u32")
        assert isinstance(value, int)
        if not low <= value <= high:
            self.fail(key, f"{quoted(key)} is {value}; it must be between {low} and {high}")
        return value

    def required_integer(self, key: str, low: int, high: int) -> int:
        """Return a u32 between two bounds; a missing key is refused."""
        value = self.integer(key, low, high)
        if value is None:
            self.fail(key, f"the key {quoted(key)} is missing")
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        """Return a finite f32 between two bounds, or None if the key is missing."""
        value = self._typed(key, "f32")
        if value is None:
            return None
        assert isinstance(value, float)
        if not (math.isfinite(value) and low <= value <= high):
            self.fail(key, f"{quoted(key)} is {value}; it must be between {low:g} and {high:g}")
        return value

    def text(self, key: str) -> str | None:
        """Return a string, or None if the key is missing."""
        value = self._typed(key, "str")
        assert value is None or isinstance(value, str)
        return value

    def flag(self, key: str) -> bool | None:
        """Return a bool, or None if the key is missing."""
        value = self._typed(key, "bool")
        return None if value is None else bool(value)

    def array(self, key: str, *element_types: str) -> GgufArray | None:
        """Return an array of one of these element types, or None if the key is missing."""
        value = self._typed(key, "arr")
        if value is None:
            return None
        assert isinstance(value, GgufArray)
        if value.element_type not in element_types:
            wanted = " or ".join(element_types)
            self.fail(key, f"{quoted(key)} is an array of {value.element_type} instead of {wanted}")
        return value

    def per_layer(self, suffix: str, n_layers: int, high: int) -> tuple[int, ...] | None:
        """Return one count per layer, stored as an array or as one number; None if missing."""
        key = self.key(suffix)
        if self.info.value_types.get(key) != "arr":
            value = self.integer(key, 0, high)
            return None if value is None else (value,) * n_layers
        array = self.array(key, "u32", "i32", "bool")
        assert array is not None
        if len(array) != n_layers:
            self.fail(key, f"{quoted(key)} has {len(array)} values for {n_layers} layers")
        counts = tuple(int(value) for value in array.values())
        if not all(0 <= count <= high for count in counts):
            self.fail(key, f"{quoted(key)} has values outside of 0 to {high}")
        return counts

    def _typed(self, key: str, wanted: str) -> object:
        found = self.info.value_types.get(key)
        if found is None:
            return None
        if found != wanted:
            self.fail(key, f"{quoted(key)} is of type {found} instead of {wanted}")
        return self.info.keys[key]
