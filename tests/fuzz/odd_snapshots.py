"""Trials of snapshots that were changed and signed again: they can be used, or are refused."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from llama_runner import LlamaRunner, Session
from llama_runner.conversation.snapshot import Header, Snapshot
from llama_runner.errors import LlamaError
from tests.fuzz.architectures import discover
from tests.fuzz.survival import in_rows

__all__ = ["batches", "trial"]

# One of each kind of memory.
_MODELS = ("llama", "gemma2", "mamba", "rwkv6", "lfm2", "falcon-h1", "qwen2vl", "gpt2", "qwen3next")
_IN_A_ROW = 50  # trials of one model
_NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 257, 65535, 1 << 20, (1 << 31) - 1, 1 << 31)
_LARGE = (*_NUMBERS, (1 << 32) - 1, (1 << 32) - 2)
# The counts, positions and types of a state are in its first bytes and before each layer.
_HEAD = 96


def batches(numbers: Iterable[int]) -> list[list[int]]:
    """Group trials by model, so that each is loaded once."""
    return in_rows(numbers, _IN_A_ROW)


def trial(number: int, folder: Path) -> str:
    """Change a snapshot, restore it, and go on with the conversation."""
    chance = random.Random(number)
    runner, snapshot = _runner(number // _IN_A_ROW, folder)
    try:
        changed = _changed(chance, Snapshot.from_bytes(snapshot))
    except (ValidationError, OverflowError):
        return "no header"
    with runner.session() as session:
        try:
            session.restore(changed)
        except LlamaError as error:
            return f"not restored: {type(error).__name__}"
        try:
            _use(chance, session)
        except LlamaError as error:
            word = f"not used: {type(error).__name__}"
        else:
            word = "used"
    with runner.session() as session:
        session.restore(snapshot)
        _use(chance, session)
    return word


def _use(chance: random.Random, session: Session) -> None:
    session.generate("the", max_tokens=2, ignore_eos=True, temperature=0)
    session.snapshot()
    if chance.random() < 0.3:
        with session.fork() as other:
            other.generate("the", max_tokens=1)
    if chance.random() < 0.3:
        session.gc(0)
    session.generate("he", max_tokens=1)


def _changed(chance: random.Random, snapshot: Snapshot) -> bytes:
    header = snapshot.header.model_dump()
    tokens = snapshot.tokens.copy()
    state = bytearray(snapshot.state)
    for _ in range(chance.choice((1, 1, 2, 3))):
        match chance.randrange(10):
            case 0 | 1:
                _change_header(chance, header)
            case 2:
                tokens[chance.randrange(len(tokens))] = chance.choice((-1, -(1 << 31), 1 << 20, 0))
            case 3:
                tokens = _resized(chance, tokens)
                header["n_tokens"] = len(tokens)
            case 4:
                _cut(chance, state)
            case _:
                _change_state(chance, state)
    if chance.random() < 0.9:  # so that it fits in itself
        header["n_tokens"], header["n_state"] = len(tokens), len(state)
        for part in header["parts"][:-1]:
            part["n_tokens"] = min(part["n_tokens"], len(tokens))
        others = sum(part["n_tokens"] for part in header["parts"][:-1])
        if header["parts"]:
            header["parts"][-1]["n_tokens"] = max(0, len(tokens) - others)
    return Snapshot(Header(**header), tokens, bytes(state)).to_bytes()


def _change_header(chance: random.Random, header: dict[str, Any]) -> None:
    match chance.randrange(6):
        case 0:
            name = chance.choice(("n_cells", "n_exact", "turn", "n_state", "n_tokens"))
            near = (header[name] - 1, header[name] + 1, header[name] // 2)
            header[name] = max(0, chance.choice((*near, *_LARGE)))
        case 1 | 2:
            part = chance.choice(header["parts"])
            name = chance.choice(("n_tokens", "turn"))
            part[name] = chance.choice(_LARGE)
        case 3:
            part = chance.choice(header["parts"])
            part["role"] = chance.choice(("", "system", "tool", "text", "x" * 1000))
            part["pinned"] = not part["pinned"]
        case 4:
            chance.choice(header["parts"])["messages"] = chance.choice(
                ([], [{}], [{"role": 3}], [{"role": "user", "content": None}], [{"a": [[]]}])
            )
        case _:
            header["parts"] = header["parts"][: chance.randrange(len(header["parts"]) + 1)]
            header["parts"] = header["parts"] or []


def _resized(chance: random.Random, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if chance.random() < 0.5:
        return tokens[: chance.randrange(len(tokens) + 1)]
    return np.concatenate([tokens] * chance.choice((2, 5, 20)))


def _cut(chance: random.Random, state: bytearray) -> None:
    if not state:
        return
    match chance.randrange(3):
        case 0:
            del state[chance.randrange(len(state)) :]
        case 1:
            state += bytes(chance.choice((1, 4, 100)))
        case _:
            at = chance.randrange(len(state))
            del state[at : at + chance.choice((1, 4, 8, 64))]


def _change_state(chance: random.Random, state: bytearray) -> None:
    if len(state) < 8:
        return
    near_start = chance.random() < 0.7
    at = chance.randrange(min(_HEAD, len(state) - 4) if near_start else len(state) - 4)
    if chance.random() < 0.7:
        at -= at % 4
    old = struct.unpack_from("<I", state, at)[0]
    new = chance.choice((*_LARGE, old + 1, max(0, old - 1), old ^ 1, old * 2)) % (1 << 32)
    struct.pack_into("<I", state, at, new)


@functools.cache
def _runner(row: int, folder: Path) -> tuple[LlamaRunner, bytes]:
    path = folder / "model.gguf"
    discover(_MODELS[row % len(_MODELS)], path).model.write(path)
    chance = random.Random(row)
    runner = LlamaRunner(
        path,
        n_ctx=256,
        n_seq_max=chance.choice((2, 3)),
        n_threads=2,
        n_threads_batch=2,
        swa_full=chance.choice((True, False)),
        kv_layout=chance.choice(("unified", "streams")),
    )
    with runner.session() as session:
        for text in ("the the he", "the th", "he the"):
            session.generate(text, max_tokens=3, ignore_eos=True, seed=1)
        return runner, session.snapshot()
