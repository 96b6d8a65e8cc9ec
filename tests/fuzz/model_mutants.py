"""Models whose structure is odd: other sizes, shapes, types and tensors than llama.cpp expects.

Each is a well-formed GGUF of a known architecture. Some hold together, since their tensors were
fitted to their numbers; the others say one thing in the numbers and another in the tensors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_runner.loaders.gguf.types import TENSOR_TYPES
from tests.fuzz.architectures import ASKED, Found, completed
from tests.gguf_files import ARRAY, BOOL, F32, I32, U32, Array, GgufFile, Tensor

__all__ = ["mutant", "sized"]

_TYPES = (0, 1, 2, 8, 12, 26, 30)  # F32, F16, Q4_0, Q8_0, Q4_K, I32, BF16
_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 96, 127, 128, 255)
_LARGE = (256, 512, 1000, 4096, 65535, 1 << 20, (1 << 31) - 1)
_MOST_BYTES = 1 << 20

Mutation = Callable[[random.Random, Found, Path], Found]


def mutant(seed: int, found: Found, path: Path) -> GgufFile:
    """Change a sound model in one to three ways; the same for the same seed.

    Args:
        seed: Which mutant.
        found: The model to change.
        path: Where llama.cpp may be asked for missing tensors.
    """
    chance = random.Random(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3))):
        found = chance.choices(_MUTATIONS, _WEIGHTS)[0](chance, found, path)
    tensors = [sized(tensor) for tensor in found.model.tensors]
    return replace(found.model, tensors=[t for t in tensors if t.size() <= _MOST_BYTES])


def sized(tensor: Tensor) -> Tensor:
    """The tensor with the bytes that its type takes; of floats, if its rows are no whole blocks."""
    _, block, block_bytes = TENSOR_TYPES[tensor.type_id]
    if tensor.shape[0] % block:
        return replace(tensor, type_id=0)
    return replace(tensor, nbytes=math.prod(tensor.shape) // block * block_bytes)


def _numbers(chance: random.Random, found: Found, path: Path) -> Found:
    """Other hyperparameters, with the tensors as they were."""
    model = found.model
    for _ in range(chance.choice((1, 1, 2, 3))):
        model = _other_number(chance, model)
    return replace(found, model=model)


def _consistent(chance: random.Random, found: Found, path: Path) -> Found:
    """Other hyperparameters, and tensors that fit them."""
    found = _numbers(chance, found, path)
    architecture = found.model.keys["general.architecture"][1]
    try:
        fitted = completed(found.model, architecture, path, optional=False, most_answers=100)
    except LookupError:
        return found
    return replace(found, model=fitted.model)


def _other_number(chance: random.Random, model: GgufFile) -> GgufFile:
    architecture = model.keys["general.architecture"][1]
    prefix = f"{architecture}."
    there = [key for key in model.keys if isinstance(key, str) and key.startswith(prefix)]
    key = chance.choice(there)
    type_id, value = model.keys[key]
    if chance.random() < 0.25:
        name = chance.choice(list(ASKED))
        key = prefix + name
        type_id, value = ASKED[name]
    return replace(model, keys=model.keys | {key: _other_value(chance, type_id, value)})


def _other_value(chance: random.Random, type_id: int, value: Any) -> tuple[int, Any]:
    if type_id == ARRAY:
        values = list(value.values)
        at = chance.randrange(len(values))
        values[at] = _other_scalar(chance, value.type_id, values[at])
        if chance.random() < 0.2:
            return value.type_id, values[at]  # one for all layers
        if chance.random() < 0.2:
            values = values[:-1] or values
        return ARRAY, Array(value.type_id, values)
    if type_id in (U32, I32) and chance.random() < 0.15:
        return ARRAY, Array(type_id, [_number(chance, value), _number(chance, value)])
    return type_id, _other_scalar(chance, type_id, value)


def _other_scalar(chance: random.Random, type_id: int, value: Any) -> Any:
    if type_id == BOOL:
        return not value
    if type_id == F32:
        return chance.choice((0.0, -1.0, 1e-30, 1e30, 0.5, 2.0, value * 3))
    return _number(chance, value) if type_id in (U32, I32) else value


def _number(chance: random.Random, value: int) -> int:
    near = (value - 1, value + 1, value * 2, value // 2, value * 3, value + 2)
    pool = chance.choice((near, near, _NUMBERS, _NUMBERS, _LARGE))
    return max(0, chance.choice(pool)) % (1 << 31)


def _shapes(chance: random.Random, found: Found, path: Path) -> Found:
    """A tensor or all of one kind in another shape."""
    tensors = list(found.model.tensors)
    chosen = chance.choice(tensors)
    kind = chosen.name.split(".", 2)[-1] if chance.random() < 0.3 else None
    shape = _other_shape(chance, chosen.shape)
    for at, tensor in enumerate(tensors):
        if tensor is chosen or (kind and tensor.name.endswith(kind)):
            tensors[at] = replace(tensor, shape=shape)
    return replace(found, model=replace(found.model, tensors=tensors))


def _other_shape(chance: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = list(shape)
    at = chance.randrange(len(sizes))
    match chance.randrange(6):
        case 0:
            sizes[at] = max(1, sizes[at] + chance.choice((-1, 1)))
        case 1:
            sizes[at] *= 2
        case 2:
            sizes[at] = max(1, sizes[at] // 2)
        case 3:
            sizes.reverse()
        case 4:
            sizes = [*sizes, chance.choice((1, 2, 3))][:4]
        case _:
            sizes[at] = chance.choice((1, 2, 3, 8, 33, 512))
    return tuple(sizes)


def _left_out(chance: random.Random, found: Found, path: Path) -> Found:
    """Without a tensor, or without one kind of it."""
    tensors = found.model.tensors
    chosen = chance.choice(tensors)
    kind = chosen.name.split(".", 2)[-1] if chance.random() < 0.4 else None
    kept = [t for t in tensors if t is not chosen and not (kind and t.name.endswith(kind))]
    return replace(found, model=replace(found.model, tensors=kept or tensors))


def _added(chance: random.Random, found: Found, path: Path) -> Found:
    """With some of the tensors that are optional, for all layers or for one."""
    if not found.optional:
        return found
    share = chance.choice((0.05, 0.1, 0.3, 0.6, 1.0))
    kinds = {tensor.name.split(".", 2)[-1] for tensor in found.optional}
    chosen = {kind for kind in sorted(kinds) if chance.random() < share}
    there = {tensor.name for tensor in found.model.tensors}
    more = [
        tensor
        for tensor in found.optional
        if tensor.name not in there
        and tensor.name.split(".", 2)[-1] in chosen
        and (chance.random() < 0.95)
    ]
    return replace(found, model=replace(found.model, tensors=[*found.model.tensors, *more]))


def _replaced(chance: random.Random, found: Found, path: Path) -> Found:
    """With optional tensors, and without others: another way to write the same layer."""
    return _left_out(chance, _added(chance, found, path), path)


def _types(chance: random.Random, found: Found, path: Path) -> Found:
    """Some tensors in other types."""
    share = chance.choice((0.02, 0.2, 1.0))
    type_id = chance.choice(_TYPES)
    tensors = [
        replace(tensor, type_id=type_id) if chance.random() < share else tensor
        for tensor in found.model.tensors
    ]
    return replace(found, model=replace(found.model, tensors=tensors))


def _vocabulary(chance: random.Random, found: Found, path: Path) -> Found:
    """More or fewer rows than tokens."""
    size = len(found.model.keys["tokenizer.ggml.tokens"][1].values)
    rows = chance.choice((size - 1, size + 1, size * 2, 1, 3))
    names = [name for name in ("token_embd.weight", "output.weight") if chance.random() < 0.6]
    tensors = [
        replace(tensor, shape=(tensor.shape[0], rows)) if tensor.name in names else tensor
        for tensor in found.model.tensors
    ]
    model = replace(found.model, tensors=tensors)
    if chance.random() < 0.5:
        key = f"{model.keys['general.architecture'][1]}.vocab_size"
        model = replace(model, keys=model.keys | {key: (U32, rows)})
    return replace(found, model=model)


_MUTATIONS: tuple[Mutation, ...] = (
    _numbers,
    _consistent,
    _shapes,
    _left_out,
    _added,
    _replaced,
    _types,
    _vocabulary,
)
_WEIGHTS = (3, 6, 3, 2, 3, 3, 1, 1)
