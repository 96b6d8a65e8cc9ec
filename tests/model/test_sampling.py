"""Sampling inside a generation: seeds, penalties, tokens that must not come, broken weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner._core import Sampler
from llama_runner.errors import DecodeError
from llama_runner.params import GenerationParams
from tests import inside
from tests.model.tiny_models import EOS, N_VOCAB, write_model

PROMPT = "Once upon a time, in a village between two rivers,"
EVERYTHING = {"temperature": 20.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def tiny_runner(path: Path) -> LlamaRunner:
    return LlamaRunner(path, n_ctx=1024, n_threads=1, validate=False)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"temperature": 1.5, "top_k": 100, "top_p": 0.99, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0},  # llama.cpp's chain
        {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.3},
        {"temperature": 0.0, "repeat_penalty": 1.5, "penalty_last_n": 10},
    ],
)
def test_a_generation_samples_as_the_sampler_does(
    runner: LlamaRunner, recipe: dict[str, Any]
) -> None:
    """Token by token: the penalties see prompt and answer, each token takes one random number."""
    params = GenerationParams(seed=7, max_tokens=20, ignore_eos=True, **recipe)
    sequence = inside.context(runner).new_sequence()
    sequence.append(runner.tokenize(PROMPT))
    sampler = Sampler(params)
    ends = [token for token in range(len(runner.model.vocab)) if runner.model.vocab.is_eog(token)]
    expected = []
    for _ in range(params.max_tokens):
        logits = sequence.next_logits()
        logits[ends] = float("-inf")
        expected.append(sampler.sample(logits, sequence.tokens))
        sequence.append(expected[-1:])
    sequence.close()

    assert runner.generate_stateless(PROMPT, 20, params).tokens == tuple(expected)


def test_seeds(runner: LlamaRunner) -> None:
    def tokens(**options: Any) -> tuple[int, ...]:
        return runner.generate_stateless(PROMPT, 16, temperature=1.5, **options).tokens

    assert tokens(seed=1) == tokens(seed=1)
    assert len({tokens(seed=seed) for seed in range(5)}) == 5
    # The last that there is, and what comes of none.
    assert tokens(seed=2**32 - 2) == tokens(seed=2**32 - 2)
    chosen = [runner.generate_stateless(PROMPT, 16, temperature=1.5) for _ in range(4)]
    assert len({completion.seed for completion in chosen}) == 4
    assert tokens(seed=chosen[0].seed) == chosen[0].tokens


def test_a_stream_and_a_conversation_draw_the_same(runner: LlamaRunner) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    expected = runner.generate_stateless(PROMPT, 16, **options)
    stream = runner.stream_stateless(PROMPT, 16, **options)
    assert "".join(chunk.text for chunk in stream) == expected.text
    assert runner.generate_stateful(PROMPT, 16, **options).tokens == expected.tokens


def test_penalties_reach_into_the_prompt(tiny_paths: dict[str, Path]) -> None:
    with tiny_runner(tiny_paths["plain"]) as runner:
        prompt = list(range(100, 160))
        never_again: dict[str, Any] = {"repeat_penalty": 100.0, "presence_penalty": 2.0}
        unseen = runner.generate_stateless(
            prompt, 60, temperature=0, ignore_eos=True, penalty_last_n=1000, **never_again
        ).tokens
        assert len({*prompt, *unseen}) == len(prompt) + 60
        off = runner.generate_stateless(
            prompt, 60, temperature=0, ignore_eos=True, penalty_last_n=0, **never_again
        ).tokens
        assert off == runner.generate_stateless(prompt, 60, temperature=0, ignore_eos=True).tokens
        assert len(set(off)) < 60


def test_tokens_that_the_file_suppresses_never_come(tmp_path: Path) -> None:
    allowed = [50, 60, 70]
    suppressed = sorted(set(range(N_VOCAB)) - {*allowed, EOS})
    with tiny_runner(write_model(tmp_path / "model.gguf", suppressed=suppressed)) as runner:
        said: set[int] = set()
        for seed in range(10):
            for options in (EVERYTHING, {"temperature": 20.0, "top_k": 2}, {"temperature": 0.0}):
                completion = runner.generate_stateless([1], 10, seed=seed, **options)
                said |= set(completion.tokens)
        assert said == set(allowed)


def test_ignore_eos(tiny_paths: dict[str, Path]) -> None:
    with tiny_runner(tiny_paths["plain"]) as runner:
        ended = [runner.generate_stateless([1], 100, seed=seed, **EVERYTHING) for seed in range(30)]
        assert {completion.finish_reason for completion in ended} == {"stop", "length"}
        for completion in ended:
            assert EOS not in completion.tokens
            assert (completion.finish_reason == "length") == (len(completion.tokens) == 100)
        for seed in range(30):
            on = runner.generate_stateless([1], 100, seed=seed, ignore_eos=True, **EVERYTHING)
            assert on.finish_reason == "length"
            assert len(on.tokens) == 100
            assert EOS not in on.tokens


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 2}, {"top_k": 0}])
def test_broken_weights_are_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with tiny_runner(write_model(tmp_path / "broken.gguf", broken=True)) as runner:
        for generate in (runner.generate_stateless, runner.generate_stateful):
            with pytest.raises(DecodeError, match="the weights are broken") as caught:
                generate([1, 2, 3], 5, **options)
            assert "\n" not in str(caught.value)
        with pytest.raises(DecodeError):
            next(runner.stream_stateless([1, 2, 3], 5, **options))
        assert runner.get_context_info().used == 0
        assert inside.n_resident(runner) == 0
