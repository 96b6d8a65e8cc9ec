"""Sampling, held against llama.cpp's own chain and against plain numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_runner._core import Sampler
from llama_runner.errors import DecodeError, InvalidParameterError, TokenizationError
from llama_runner.params import GenerationParams

Logits = NDArray[np.float32]

VOCABULARY_SIZES = (700, 5_000, 49_152)
NO_TRUNCATION = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def distinct_logits(seed: int, size: int, spread: float) -> Logits:
    """No two are equal: which of two equals comes first, llama.cpp leaves open."""
    random = np.random.default_rng(seed)
    values = np.unique(random.standard_normal(2 * size).astype(np.float32) * np.float32(spread))
    return random.choice(values, size, replace=False)


all_logits = st.builds(
    distinct_logits,
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from(VOCABULARY_SIZES),
    spread=st.sampled_from([0.5, 2.0, 8.0]),
)
recipes = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 5),
        # Where it is larger than a vocabulary's share, both ways are one.
        "top_k": st.integers(1, 60),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0, 1),
        "seed": st.integers(0, 2**32 - 2),
    }
)
penalties = st.fixed_dictionaries(
    {
        "repeat_penalty": st.floats(0.5, 3),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "penalty_last_n": st.integers(0, 12),
    }
)


def penalised(logits: Logits, history: list[int], params: GenerationParams) -> Logits:
    """The definition of the three penalties."""
    changed = logits.copy()
    window = history[-params.penalty_last_n :] if params.penalty_last_n else []
    for token, count in Counter(window).items():
        logit = logits[token]
        weakened = logit / params.repeat_penalty if logit > 0 else logit * params.repeat_penalty
        changed[token] = weakened - count * params.frequency_penalty - params.presence_penalty
    return changed


def distribution(logits: Logits, params: GenerationParams) -> dict[int, float]:
    """The definition of top-k, top-p, min-p and temperature: token to probability."""
    order = np.argsort(-logits)[: params.top_k or None]
    probabilities = np.exp(logits[order].astype(np.float64) - logits[order[0]])
    probabilities /= probabilities.sum()
    n_kept = int(np.searchsorted(np.cumsum(probabilities), params.top_p)) + 1
    kept = range(min(n_kept, len(order)))
    kept = [i for i in kept if probabilities[i] >= params.min_p * probabilities[0]]
    weights = np.exp((logits[order[kept]] - logits[order[0]]).astype(float) / params.temperature)
    return dict(zip(order[kept].tolist(), weights / weights.sum(), strict=True))


@settings(deadline=None)
@given(logits=all_logits, recipe=recipes, penalty=penalties, data=st.data())
def test_the_fused_path_is_llama_cpps_chain(
    logits: Logits, recipe: dict[str, float], penalty: dict[str, float], data: st.DataObject
) -> None:
    params = GenerationParams(**recipe, **penalty)
    fused, chain = Sampler(params), Sampler(params, use_chain=True)
    history = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=20), label="history")
    for _ in range(8):
        token = fused.sample(logits, history)
        assert chain.sample(logits, history) == token
        history.append(token)


@settings(deadline=None)
@given(logits=all_logits, penalty=penalties, data=st.data())
def test_penalties_are_what_they_are_defined_as(
    logits: Logits, penalty: dict[str, float], data: st.DataObject
) -> None:
    # Of the tokens that come into question, each is in the history now and then.
    likely = np.argsort(-logits)[:8].tolist()
    history = data.draw(st.lists(st.sampled_from(likely), max_size=20), label="history")
    params = GenerationParams(temperature=0, seed=0, **penalty)
    expected = penalised(logits, history, params)
    token = Sampler(params).sample(logits, history)
    # Rounding may exchange two that are as good as equal.
    assert expected[token] >= expected.max() - 1e-5 * (1 + abs(expected.max()))


@pytest.mark.parametrize("use_chain", [False, True])
@pytest.mark.parametrize(
    "recipe",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "min_p": 0.3},
        {"temperature": 3.0, "top_k": 4, "top_p": 0.95, "min_p": 0.02},
    ],
)
def test_tokens_come_as_often_as_they_should(recipe: dict[str, float], use_chain: bool) -> None:
    logits = distinct_logits(seed=1, size=700, spread=2.0)
    logits[100:105] = [9.0, 8.5, 8.0, 7.0, 6.0]  # the only ones that matter
    params = GenerationParams(seed=5, **(NO_TRUNCATION | {"top_k": 5} | recipe))
    expected = distribution(logits, params)
    sampler = Sampler(params, use_chain=use_chain)
    n = 20_000
    counts = Counter(sampler.sample(logits) for _ in range(n))
    assert counts.keys() <= expected.keys()
    for token, probability in expected.items():
        # Four standard deviations; the seed is fixed.
        tolerance = 4 * np.sqrt(probability * (1 - probability) / n)
        assert counts[token] / n == pytest.approx(probability, abs=tolerance)


@settings(deadline=None)
@given(logits=all_logits)
def test_greedy_is_the_first_of_the_largest(logits: Logits) -> None:
    params = GenerationParams(temperature=0, seed=0)
    assert Sampler(params).sample(logits) == int(np.argmax(logits))
    logits[[3, 500]] = logits.max() + 1
    assert Sampler(params).sample(logits) == 3


@settings(deadline=None)
@given(logits=all_logits, recipe=recipes)
def test_the_same_seed_gives_the_same_tokens(logits: Logits, recipe: dict[str, float]) -> None:
    params = GenerationParams(**recipe)
    one, other = Sampler(params), Sampler(params)
    assert [one.sample(logits) for _ in range(8)] == [other.sample(logits) for _ in range(8)]


def test_other_seeds_give_other_tokens() -> None:
    logits = distinct_logits(seed=2, size=5_000, spread=0.5)
    samplers = [Sampler(GenerationParams(temperature=2, seed=seed)) for seed in range(20)]
    assert len({tuple(sampler.sample(logits) for _ in range(8)) for sampler in samplers}) == 20


@settings(deadline=None)
@given(
    logits=all_logits,
    recipe=recipes | st.just({"temperature": 0, "seed": 0}),
    bad=st.sampled_from([-np.inf, np.nan]),
    n_good=st.integers(1, 20),
    data=st.data(),
)
def test_what_is_not_finite_is_never_chosen(
    logits: Logits, recipe: dict[str, float], bad: float, n_good: int, data: st.DataObject
) -> None:
    indices = st.integers(0, len(logits) - 1)
    good = data.draw(st.lists(indices, min_size=n_good, max_size=n_good), label="good")
    masked = np.full_like(logits, bad)
    masked[good] = logits[good]
    params = GenerationParams(**recipe)
    for use_chain in (False, True):
        sampler = Sampler(params, use_chain=use_chain)
        assert {sampler.sample(masked) for _ in range(4)} <= set(good)


@settings(deadline=None)
@given(logits=all_logits, recipe=recipes, n_bad=st.integers(1, 30), data=st.data())
def test_a_few_nans_change_nothing_else(
    logits: Logits, recipe: dict[str, float], n_bad: int, data: st.DataObject
) -> None:
    indices = st.integers(0, len(logits) - 1)
    bad = data.draw(st.lists(indices, min_size=n_bad, max_size=n_bad), label="bad")
    holes, bottom = logits.copy(), logits.copy()
    holes[bad], bottom[bad] = np.nan, -np.inf
    for params in (GenerationParams(**recipe), GenerationParams(temperature=0, seed=0)):
        one, other = Sampler(params), Sampler(params)
        for _ in range(4):
            assert one.sample(holes) == other.sample(bottom)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("use_chain", [False, True])
@pytest.mark.parametrize("temperature", [0, 1])
def test_no_finite_logit_is_an_error(value: float, use_chain: bool, temperature: float) -> None:
    sampler = Sampler(GenerationParams(temperature=temperature, seed=1), use_chain=use_chain)
    with pytest.raises(DecodeError, match="finite"):
        sampler.sample(np.full(6_000, value, np.float32))
    with pytest.raises(DecodeError):
        sampler.sample(np.empty(0, np.float32))
    if value == np.inf:  # one is enough: it would be certain
        overflown = distinct_logits(seed=3, size=6_000, spread=2.0)
        overflown[17] = value
        for few in (overflown, overflown[:30]):
            with pytest.raises(DecodeError, match="finite"):
                sampler.sample(few)
    # The sampler is as good as before.
    good = distinct_logits(seed=3, size=6_000, spread=2.0)
    assert 0 <= sampler.sample(good) < 6_000


@settings(deadline=None)
@given(logits=all_logits, recipe=recipes, penalty=penalties)
def test_the_logits_are_as_before(
    logits: Logits, recipe: dict[str, float], penalty: dict[str, float]
) -> None:
    before = logits.copy()
    history = np.argsort(-logits)[:12].tolist()
    Sampler(GenerationParams(**recipe, **penalty)).sample(logits, history)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits.astype(np.float64),
        lambda logits: logits.tolist(),
        lambda logits: np.repeat(logits, 2)[::2],
        lambda logits: memoryview(logits).toreadonly(),
        lambda logits: logits.astype(">f4"),
    ],
    ids=["float64", "list", "strided", "read-only", "big-endian"],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_in_any_form(form: Callable[[Logits], Any], temperature: float) -> None:
    logits = distinct_logits(seed=6, size=700, spread=2.0)
    params = GenerationParams(temperature=temperature, seed=1, repeat_penalty=2)
    history = np.argsort(-logits)[:12]
    expected = Sampler(params).sample(logits, history)
    assert Sampler(params).sample(form(logits), history) == expected


def test_threads_may_use_one_sampler() -> None:
    logits = distinct_logits(seed=7, size=50_000, spread=2.0)
    before = logits.copy()
    histories = [np.argsort(-logits)[i : i + 20_000] for i in range(40)]
    params = GenerationParams(temperature=0, repeat_penalty=3, penalty_last_n=20_000, seed=1)
    expected = [Sampler(params).sample(logits, history) for history in histories]
    sampler = Sampler(params)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(sampler.sample, logits, history) for history in histories * 10]
    assert [call.result() for call in calls] == expected * 10
    assert np.array_equal(logits, before)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        5,
        "abc",
        ["1.5"],
        [None],
        [[1.0], [2.0]],
        [1j],
        [True],
        iter([1.0]),
        np.ones((2, 3), np.float32),
        np.ma.array([1, 2], mask=[True, False], dtype=np.float32),
        np.array([(1.0,)], dtype=[("logit", "f4")]),
    ],
    ids=repr,
)
def test_a_value_that_is_not_logits_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidParameterError, match="logits: must be an array of numbers"):
        Sampler(GenerationParams(seed=1)).sample(wrong)


@pytest.mark.parametrize("token", [-1, 700, 2**40])
def test_a_history_of_other_tokens_is_refused(token: int) -> None:
    sampler = Sampler(GenerationParams(seed=1))
    with pytest.raises(TokenizationError):
        sampler.sample(distinct_logits(seed=4, size=700, spread=1.0), [token])


def test_a_value_that_is_not_a_sampler_recipe_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"must be GenerationParams .*got int"):
        Sampler(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="with a seed"):
        Sampler(GenerationParams())
