"""Greedy tokens are those of a plain llama.cpp loop, to the last one."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pytest

from llama_runner import LlamaRunner
from llama_runner._support.hardware import thread_counts
from tests.model.oracle import Oracle
from tests.model.texts import text_of

N_PREDICT = 40


def assert_equal_to_a_plain_loop(
    model_path: Path, oracle: Oracle, n_prompt: int, n_threads: int
) -> None:
    n_ctx = max(1024, -(-(n_prompt + N_PREDICT) // 256) * 256)
    with LlamaRunner(
        model_path, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads
    ) as runner:
        prompt = runner.tokenize(text_of(6 * n_prompt).strip())[:n_prompt].tolist()
        assert len(prompt) == n_prompt
        completion = runner.generate_stateless(prompt, N_PREDICT, temperature=0)
        is_end = runner.model.vocab.is_eog
        choices = oracle(prompt, N_PREDICT, n_ctx=n_ctx, n_threads=n_threads)
        expected = takewhile(lambda token: not is_end(token), (choice.token for choice in choices))
        assert completion.tokens == tuple(expected)
    assert completion.usage.prompt_tokens == n_prompt


# The last is more than one batch.
@pytest.mark.parametrize("n_prompt", [1, 7, 600, 2100])
def test_greedy_equals_a_plain_loop(model_path: Path, oracle: Oracle, n_prompt: int) -> None:
    assert_equal_to_a_plain_loop(model_path, oracle, n_prompt, n_threads=1)


def test_greedy_equals_a_plain_loop_on_all_processors(model_path: Path, oracle: Oracle) -> None:
    n_threads, _ = thread_counts(None, None)
    assert_equal_to_a_plain_loop(model_path, oracle, 200, n_threads)
