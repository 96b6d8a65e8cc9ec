"""Sampling parameters at the ends of their ranges, held against plain float64 arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_runner._core import Sampler
from llama_runner.errors import InvalidParameterError
from llama_runner.params import GenerationParams

Logits = NDArray[np.float32]

DENORMAL = float(np.finfo(np.float32).smallest_subnormal)
BELOW_FLOAT32 = 1e-46
SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

# Of each parameter: what float32 cannot tell from 0, denormal, smallest, usual, and largest values.
ENDS: dict[str, list[float]] = {
    "temperature": [0, BELOW_FLOAT32, DENORMAL, 1e-40, SMALLEST, 1e-37, 6e-38, 0.7, 100],
    "top_k": [0, 1, 7, 2**31 - 1],
    "top_p": [BELOW_FLOAT32, DENORMAL, SMALLEST, 0.5, float(np.nextafter(1, 0)), 1],
    "min_p": [0, BELOW_FLOAT32, DENORMAL, SMALLEST, 0.5, float(np.nextafter(1, 0)), 1],
    "repeat_penalty": [0.01, 1 - 1e-16, 1, 100],
    "frequency_penalty": [-2, -DENORMAL, 0, DENORMAL, BELOW_FLOAT32, 2],
    "presence_penalty": [-2, -SMALLEST, 0, DENORMAL, 2],
    "penalty_last_n": [0, 1, 2**31 - 1],
}
USUAL: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 7,
    "top_p": 1.0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "penalty_last_n": 64,
    "seed": 3,
}
N_VOCAB = 2_000  # so many that top_k=7 takes the fused path
HISTORY = [5, 5, 9, 1_500, 5]


def logits_of(shape: str) -> Logits:
    random = np.random.default_rng(8)
    noise = random.standard_normal(N_VOCAB).astype(np.float32)
    made: dict[str, Logits] = {
        "peaked": noise.copy(),
        "flat": np.full(N_VOCAB, 0.25, np.float32),
        "zero": np.zeros(N_VOCAB, np.float32),
        "tied": np.sign(noise).astype(np.float32),
        "tiny": noise * np.float32(DENORMAL * 64),
        "large": noise * np.float32(LARGEST / 8),
        "low": -np.abs(noise) * np.float32(LARGEST / 8),
        "masked": np.where(np.arange(N_VOCAB) % 50 == 5, noise, -np.inf).astype(np.float32),
        "ends": np.where(noise > 0, LARGEST, -LARGEST).astype(np.float32),
    }
    made["peaked"][[5, 9]] = 20, 19
    return made[shape]


SHAPES = ["peaked", "flat", "zero", "tied", "tiny", "large", "low", "masked", "ends"]


def allowed(logits: Logits, params: GenerationParams) -> set[int]:
    """The tokens that the parameters allow, in float64; with those on the edge of being allowed."""
    values = logits.astype(np.float64)
    window = HISTORY[-params.penalty_last_n :] if params.penalty_last_n else []
    for token, count in Counter(window).items():
        factor = params.repeat_penalty
        weaker = values[token] / factor if values[token] > 0 else values[token] * factor
        values[token] = weaker - count * params.frequency_penalty - params.presence_penalty
    best = values.max()
    rounding = 1e-5 * max(1.0, min(abs(best), LARGEST))
    near_best = values >= min(best, LARGEST) - rounding
    with np.errstate(over="ignore"):
        is_greedy = params.temperature == 0 or np.float32(params.temperature) == 0
    if is_greedy:
        return set(np.flatnonzero(near_best).tolist())
    kept = np.isfinite(values)
    if params.top_k:
        order = np.sort(values)[::-1]
        kept &= values >= order[min(params.top_k, N_VOCAB) - 1] - rounding
    weights = np.where(kept, np.exp(np.minimum(values - best, 0)), 0.0)
    shares = weights / weights.sum()
    order = np.sort(shares)[::-1]
    n_top = int(np.searchsorted(np.cumsum(order), params.top_p + 1e-5))
    kept &= shares >= order[min(n_top, N_VOCAB - 1)] - 1e-7
    kept &= shares >= shares.max() * (params.min_p - 1e-5)
    # What is so far below the best that its weight is 0 cannot be drawn.
    with np.errstate(over="ignore"):
        kept &= (values - best) / params.temperature > -110
    return set(np.flatnonzero(kept | near_best).tolist())


def check(logits: Logits, recipe: dict[str, Any]) -> None:
    params = GenerationParams(**(USUAL | recipe))
    before = logits.copy()
    expected = allowed(logits, params)
    fused, chain = Sampler(params), Sampler(params, use_chain=True)
    for _ in range(4):
        token, other = fused.sample(logits, HISTORY), chain.sample(logits, HISTORY)
        assert token in expected
        assert other in expected
        # Which of two equal logits comes first, llama.cpp leaves open.
        penalised = {5, 9, 1_500}
        if token != other:
            assert logits[token] == logits[other] or {token, other} & penalised
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ENDS.items() for value in values]
)
def test_each_parameter_at_its_ends(name: str, value: float, shape: str) -> None:
    check(logits_of(shape), {name: value})


@settings(deadline=None, max_examples=400)
@given(
    shape=st.sampled_from(SHAPES),
    recipe=st.fixed_dictionaries({name: st.sampled_from(ends) for name, ends in ENDS.items()}),
    seed=st.integers(0, 2**32 - 2),
)
def test_all_parameters_at_their_ends_together(
    shape: str, recipe: dict[str, float], seed: int
) -> None:
    check(logits_of(shape), recipe | {"seed": seed})


@pytest.mark.parametrize("use_chain", [False, True])
@pytest.mark.parametrize("temperature", [DENORMAL, 1e-40, SMALLEST, 6e-38])
def test_the_lowest_temperatures_are_greedy(temperature: float, use_chain: bool) -> None:
    for shape in ("peaked", "large", "low", "masked"):
        logits = logits_of(shape)
        params = GenerationParams(temperature=temperature, seed=1)
        sampler = Sampler(params, use_chain=use_chain)
        assert {sampler.sample(logits) for _ in range(4)} == {int(np.argmax(logits))}


@pytest.mark.parametrize("use_chain", [False, True])
def test_a_penalty_makes_no_logit_infinite(use_chain: bool) -> None:
    logits = np.full(N_VOCAB, -LARGEST / 2, np.float32)
    logits[5] = LARGEST / 2
    for temperature, factor in itertools.product([0, 0.5, 1, 100], [0.01, 100]):
        params = GenerationParams(temperature=temperature, repeat_penalty=factor, seed=1)
        sampler = Sampler(params, use_chain=use_chain)
        assert sampler.sample(logits, range(N_VOCAB)) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -DENORMAL),
        ("temperature", 100.001),
        ("top_p", 0),
        ("top_p", 1.001),
        ("min_p", -DENORMAL),
        ("min_p", 1.001),
        ("repeat_penalty", 0.0099),
        ("repeat_penalty", 100.001),
        ("frequency_penalty", 2.001),
        ("presence_penalty", -2.001),
        ("temperature", float("inf")),
        ("min_p", float("nan")),
    ],
)
def test_what_is_beyond_the_ends_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        GenerationParams(**{name: value})
