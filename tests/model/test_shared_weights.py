"""Several runners on one set of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from llama_runner import LlamaRunner
from llama_runner.errors import ClosedError, InvalidParameterError
from tests.model.talk import greedy, question


def test_runners_answer_alike_and_are_closed_apart(model_path: Path) -> None:
    first = LlamaRunner(model_path, n_ctx=512, n_threads=2)
    second = LlamaRunner(first, n_ctx=1024, n_threads=2, kv_type="f32")
    with first, second:
        assert (first.context_params.n_ctx, second.context_params.n_ctx) == (512, 1024)
        asked = question("What is the capital of Japan?")
        answer = first.generate_stateful(asked, 8, **greedy()).text
        assert second.generate_stateless(asked, 8, **greedy()).text == answer
        # Each has a memory of its own.
        assert first.get_context_info().used > 0
        assert second.get_context_info().used == 0
        first.close()
        assert first.closed
        assert not second.closed
        assert second.generate_stateful(asked, 8, **greedy()).text == answer
        with pytest.raises(ClosedError):
            LlamaRunner(first)
        third = LlamaRunner(second, n_ctx=256, n_threads=2)
        second.close()
        with third:
            assert third.generate_stateless(asked, 8, **greedy()).text == answer


def test_the_weights_are_in_memory_once(model_path: Path) -> None:
    process = psutil.Process()
    with LlamaRunner(model_path, n_ctx=256, load_mode="none", repack=False) as first:
        first.generate_stateless("1, 2", 1, **greedy())
        before = process.memory_info().rss
        with LlamaRunner(first, n_ctx=256) as second:
            second.generate_stateless("1, 2", 1, **greedy())
            assert process.memory_info().rss - before < model_path.stat().st_size / 2


def test_a_template_of_its_own(model_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    with LlamaRunner(model_path, n_ctx=256) as first:
        with LlamaRunner(first, n_ctx=256, chat_template=template) as second:
            assert second.generate_stateless(question("Hi"), 1).usage.prompt_tokens < 8
        assert first.generate_stateless(question("Hi"), 1).usage.prompt_tokens > 8


def test_a_vocabulary_alone(model_path: Path) -> None:
    with LlamaRunner(model_path, vocab_only=True) as first, LlamaRunner(first) as second:
        assert second.tokenize("Hello") == first.tokenize("Hello")


@pytest.mark.parametrize(
    "options",
    [
        {"n_gpu_layers": 0},
        {"vocab_only": True},
        {"progress": lambda fraction: True},
        {"validate": "header"},
        {"isolated": True},
    ],
)
def test_weights_that_are_loaded_are_not_loaded_otherwise(
    model_path: Path, options: dict[str, Any]
) -> None:
    (name,) = options
    with LlamaRunner(model_path, n_ctx=256) as first:
        with pytest.raises(InvalidParameterError, match=f"{name}=.*already loaded the weights"):
            LlamaRunner(first, **options)
        with LlamaRunner(first, n_ctx=256) as second:  # nothing is left of the attempt
            completion = second.generate_stateless("1, 2", 1, **greedy())
            assert completion.usage.completion_tokens == 1
