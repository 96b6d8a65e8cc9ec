"""Trials of LoRA adapters that are odd: a model can be used with them, or they are refused."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from pathlib import Path

from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError
from tests.fuzz.architectures import RUNNABLE, discover
from tests.fuzz.model_mutants import sized
from tests.fuzz.survival import in_rows
from tests.gguf_files import F32, STRING, GgufFile, Tensor

__all__ = ["batches", "trial"]

_IN_A_ROW = 25  # trials of one model
_TYPES = (*[0] * 12, 1, 1, 2, 8, 26, 30)


def batches(numbers: Iterable[int]) -> list[list[int]]:
    """Group trials by model, so that each is loaded once."""
    return in_rows(numbers, _IN_A_ROW)


def trial(number: int, folder: Path) -> str:
    """Make an adapter, load it, and generate with it and without it."""
    chance = random.Random(number)
    model, runner = _runner(number // _IN_A_ROW, folder)
    path = _adapter(number, model).write(folder / "adapter.gguf")
    name = f"adapter {number}"
    scale = chance.choice((1.0, 0.0, -2.0, 100.0))
    try:
        runner.load_lora(path, name=name)
    except LlamaError as error:
        return f"not loaded: {type(error).__name__}"
    try:
        runner.generate_stateless("the the", max_tokens=2, ignore_eos=True, lora={name: scale})
    except LlamaError as error:
        word = f"not run: {type(error).__name__}"
        _runner.cache_clear()
        runner.close()
        return word
    runner.generate_stateless("the the", max_tokens=1, ignore_eos=True)
    return "ran"


def _adapter(number: int, model: GgufFile) -> GgufFile:
    """Pairs for some of the model's tensors, most of which fit."""
    chance = random.Random(number)
    keys = {
        "general.type": (STRING, "adapter"),
        "general.architecture": model.keys["general.architecture"],
        "adapter.type": (STRING, "lora"),
        "adapter.lora.alpha": (F32, chance.choice((8.0, 0.0, -1.0, 1e5))),
    }
    rank = chance.choice((1, 2, 4, 32, 64))
    tensors: list[Tensor] = []
    targets = [tensor for tensor in model.tensors if len(tensor.shape) > 1 or not number % 20]
    for target in chance.sample(targets, min(chance.choice((1, 1, 2, 4)), len(targets))):
        tensors += _pair(chance, target, rank)
    if chance.random() < 0.15:
        tensors.pop(chance.randrange(len(tensors)))
    return GgufFile(keys=keys, tensors=tensors)


def _pair(chance: random.Random, target: Tensor, rank: int) -> list[Tensor]:
    columns, rows, *more = (*target.shape, 1)
    if len(target.shape) > 1:
        more.pop()
    down, up = [columns, rank, *more], [rank, rows, *more]
    if str(target.name).endswith("token_embd.weight") and chance.random() < 0.7:
        down, up = [rank, rows], [rank, columns]
    for shape in (down, up):
        match chance.randrange(20):
            case 0:
                shape[chance.randrange(len(shape))] += chance.choice((1, 2, 31))
            case 1:
                shape.reverse()
            case 2:
                shape.append(chance.choice((2, 3)))
            case 3:
                shape[chance.randrange(len(shape))] = 1
    name = str(target.name)
    if chance.random() < 0.05:
        name = chance.choice((name + "x", "blk.99.attn_q.weight", "output.weight", "a.weight"))
    suffixes = ("lora_a", "lora_b")
    return [
        sized(Tensor(f"{name}.{suffix}", tuple(shape[:4]), type_id=chance.choice(_TYPES)))
        for suffix, shape in zip(suffixes, (down, up), strict=True)
    ]


@functools.cache
def _runner(row: int, folder: Path) -> tuple[GgufFile, LlamaRunner]:
    """The row's model, sound and open, or the next one that can be opened."""
    path = folder / "model.gguf"
    for step in range(len(RUNNABLE)):
        architecture = RUNNABLE[(row * 37 + step) % len(RUNNABLE)]
        try:
            found = discover(architecture, path, experts=bool(row % 2))
            found.model.write(path)
            runner = LlamaRunner(path, n_ctx=256, n_threads=2, n_threads_batch=2)
        except (LookupError, LlamaError):
            continue
        return found.model, runner
    raise AssertionError("no model can be opened")
