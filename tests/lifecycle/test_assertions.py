"""A failed assertion of llama.cpp ends a call, not the process.

The core is used without the checks that come before it, on a model that knows fewer positions than
its context has tokens, and without the limit that keeps sequences within them: the lookup of the
first position that the model does not know fails in the middle of a graph, on one of the threads
that compute it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import GenerationParams
from llama_runner._core import Context, Model, Request, Sequence
from llama_runner.errors import ClosedError, DecodeError, LlamaError, ModelLoadError
from tests.gguf_files import GgufFile, Tensor, typed
from tests.model.tiny_models import N_VOCAB, byte_vocabulary

N_POSITIONS = 64
N_EMBD, N_FF = 32, 64
GREEDY = GenerationParams(temperature=0, max_tokens=4, seed=0, ignore_eos=True)
FAILED = r"failed assertion at ggml/src/ggml-cpu/\S+:\d+: GGML_ASSERT\(.*i01 < ne01\) failed"


def write_gpt2(path: Path, n_layers: int = 1) -> Path:
    """Write a model with learned positions, as GPT-2 has."""
    random = np.random.default_rng(3)
    tensors = []

    def add(name: str, *shape: int) -> None:
        tensors.append(Tensor.of(name, random.standard_normal(shape).astype(np.float32)))

    values = {
        "general.architecture": "gpt2",
        "gpt2.context_length": N_POSITIONS,
        "gpt2.embedding_length": N_EMBD,
        "gpt2.block_count": n_layers,
        "gpt2.feed_forward_length": N_FF,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }
    add("token_embd.weight", N_VOCAB, N_EMBD)
    add("position_embd.weight", N_POSITIONS, N_EMBD)
    for name, n_out, n_in in (
        ("attn_qkv", 3 * N_EMBD, N_EMBD),
        ("attn_output", N_EMBD, N_EMBD),
        ("ffn_up", N_FF, N_EMBD),
        ("ffn_down", N_EMBD, N_FF),
    ):
        add(f"blk.0.{name}.weight", n_out, n_in)
        add(f"blk.0.{name}.bias", n_out)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        add(f"{name}.weight", N_EMBD)
        add(f"{name}.bias", N_EMBD)
    return GgufFile(keys=typed(values) | byte_vocabulary(), tensors=tensors).write(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write_gpt2(tmp_path_factory.mktemp("gpt2") / "gpt2.gguf")) as model:
        yield model


def new_context(model: Model, n_threads: int = 2, **options: Any) -> Context:
    context = Context(
        model,
        n_ctx=N_POSITIONS,  # llama.cpp rounds up to 256
        n_threads=n_threads,
        n_threads_batch=n_threads,
        n_seq_max=3,
        **options,
    )
    context._allow_unknown_positions()
    return context


def sequence_of(context: Context, n_tokens: int) -> Sequence:
    sequence = context.new_sequence()
    sequence.append([3 + i % 200 for i in range(n_tokens)])
    return sequence


def generate(context: Context, n_tokens: int, **changes: Any) -> tuple[int, ...]:
    sampler = GREEDY.merged(**changes)
    request = Request(
        sequence_of(context, n_tokens), sampler=sampler, max_tokens=sampler.max_tokens
    )
    request.run()
    return request.tokens


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("n_prompt", "n_ubatch"),
    [(N_POSITIONS + 40, 512), (N_POSITIONS + 1, 16), (N_POSITIONS - 2, 512)],
    ids=["prefill", "a later batch of the prompt", "decode"],
)
def test_an_assertion_in_a_graph_is_an_error_of_the_call(
    model: Model, n_threads: int, n_prompt: int, n_ubatch: int
) -> None:
    with new_context(model, n_threads) as other:
        expected = generate(other, 9)
        context = new_context(model, n_threads, n_ubatch=n_ubatch)
        with pytest.raises(DecodeError, match=FAILED):
            generate(context, n_prompt)
        assert generate(other, 9) == expected, "other contexts answer as before"
        with pytest.raises(DecodeError, match=r"earlier call.*close this runner.*i01 < ne01"):
            generate(context, 3)
        context.close()
        with pytest.raises(ClosedError):
            context.new_sequence()
    with new_context(model, n_threads) as new:
        assert generate(new, 9) == expected


def test_a_pool_computes_on_when_a_graph_failed_on_its_threads(model: Model) -> None:
    """Many failures, of all threads at once and of some: none waits for ever, none ends it all."""
    for i in range(60):
        with (
            new_context(model, 2 + i % 4) as context,
            pytest.raises(DecodeError, match=FAILED),
        ):
            generate(context, N_POSITIONS - 3 + i % 9, max_tokens=20)


def test_callers_in_one_batch_get_an_error_each(model: Model) -> None:
    outcomes: list[object] = []

    def call(n_tokens: int) -> None:
        try:
            outcomes.append(generate(context, n_tokens, max_tokens=300))
        except LlamaError as error:
            outcomes.append(error)

    with new_context(model) as context:
        threads = [threading.Thread(target=call, args=(n,)) for n in (5, 9, N_POSITIONS + 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [type(outcome) for outcome in outcomes] == [DecodeError] * 3


def test_a_stream_ends_with_the_error_after_what_it_gave(model: Model) -> None:
    context = new_context(model)
    request = Request(sequence_of(context, N_POSITIONS - 10), sampler=GREEDY, max_tokens=100)
    n_tokens = 0
    with pytest.raises(DecodeError, match=FAILED):  # noqa: PT012
        while not request.done:
            n_tokens += len(request.read()[1])
    assert n_tokens > 0
    request.close()
    context.close()


def test_what_else_uses_a_broken_context_says_so(model: Model) -> None:
    context = new_context(model)
    sequence = sequence_of(context, 40)
    Request(sequence, sampler=GREEDY, max_tokens=4).run()
    with pytest.raises(DecodeError):
        generate(context, N_POSITIONS + 9)
    for use in (
        context.new_sequence,
        sequence.fork,
        sequence.next_logits,
        lambda: sequence.truncate(3),
        lambda: context.n_resident,
        sequence.save_state,
    ):
        with pytest.raises(DecodeError, match="undefined: close this runner"):
            use()
    sequence.close()
    context.close()


def test_an_assertion_while_loading_is_a_load_error(tmp_path: Path) -> None:
    path = write_gpt2(tmp_path / "no_layers.gguf", n_layers=0)
    failed = r"failed assertion at src/llama-model.cpp:\d+: GGML_ASSERT\(.*n_layer_all > 0"
    for _ in range(3):
        with pytest.raises(ModelLoadError, match=failed):
            Model(path)
