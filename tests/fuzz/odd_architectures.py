"""Trials of models of every architecture whose structure is odd: they run, or are refused."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from pathlib import Path

from llama_runner import LlamaRunner
from llama_runner._support.hardware import usable_cpus
from llama_runner.errors import LlamaError, ModelValidationError
from llama_runner.loaders import validate_model
from tests.fuzz.architectures import RUNNABLE, Found, discover
from tests.fuzz.model_mutants import mutant

__all__ = ["architecture_of", "batches", "trial"]

_THREADS = (1, usable_cpus())
_TRIES = 8  # mutants to make, until there is one that is worth loading
_IN_A_ROW = 10  # trials of one architecture, which share what was found of it


def batches(numbers: Iterable[int]) -> list[list[int]]:
    """Trials by architecture, so that each is asked for once."""
    by_kind: dict[tuple[str, bool, int], list[int]] = {}
    for number in numbers:
        by_kind.setdefault((*_kind(number), number // 500), []).append(number)
    return list(by_kind.values())


def trial(number: int, folder: Path) -> str:
    """Make a mutant, load it, and let it write a few tokens."""
    path = folder / f"{number}.gguf"
    found = _found(*_kind(number), folder)
    try:
        for seed in range(number * _TRIES, (number + 1) * _TRIES):
            mutant(seed, found, path).write(path)
            try:
                validate_model(path)
            except ModelValidationError:
                continue
            return _used(number, path)
        return "invalid"
    finally:
        path.unlink(missing_ok=True)


def _used(number: int, path: Path) -> str:
    chance = random.Random(-number)
    options = {
        "n_ctx": chance.choice((256, 256, 512, 1024)),
        "n_threads": chance.choice(_THREADS),
        "n_threads_batch": chance.choice(_THREADS),
        "n_ubatch": chance.choice((512, 512, 16)),
        "flash_attention": chance.choice(("auto", "auto", False, True)),
        "swa_full": chance.choice((True, False)),
        "repack": chance.choice((True, False)),
    }
    try:
        runner = LlamaRunner(path, **options)
    except LlamaError as error:
        return f"not loaded: {type(error).__name__}"
    with runner:
        vocab = runner.model.vocab
        tokens = [chance.randrange(vocab.n_tokens) for _ in range(chance.choice((1, 5, 40)))]
        tokens[-1] = vocab.n_tokens - 1
        try:
            runner.generate_stateless(tokens, max_tokens=4, ignore_eos=True, temperature=0)
            with runner.session() as session:
                session.generate(tokens, max_tokens=2, ignore_eos=True)
        except LlamaError as error:
            return f"not run: {type(error).__name__}"
    return "ran"


def architecture_of(number: int) -> str:
    """Which architecture a trial is of."""
    return _kind(number)[0]


def _kind(number: int) -> tuple[str, bool]:
    row = number // _IN_A_ROW
    return RUNNABLE[row * 37 % len(RUNNABLE)], bool(row // len(RUNNABLE) % 2)


@functools.cache
def _found(architecture: str, experts: bool, folder: Path) -> Found:
    path = folder / "asked.gguf"
    try:
        return discover(architecture, path, experts=experts)
    except LookupError:
        if not experts:
            raise
        return discover(architecture, path)
