"""Many threads on one runner: each gets the answer that it would get alone.

Sequences that are computed in one batch are added up in another order than one alone, which
moves a logit in its last digits. So only answers are compared of which the model is sure: where
the best token is far ahead of the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from llama_runner import LlamaRunner
from llama_runner._core import Context, Model
from llama_runner._core import Sequence as Ledger
from llama_runner.params import GenerationParams
from tests import inside
from tests.model.oracle import Oracle
from tests.model.requesting import request_for
from tests.model.tiny_models import EOS, KINDS, N_VOCAB

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}

SHORT = [
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "2, 4, 6, 8, 10, 12, 14,",
    "10, 20, 30, 40, 50, 60,",
    "5, 10, 15, 20, 25, 30, 35,",
    "1 1 1 1 1 1 1 1 1 1",
    "100, 200, 300, 400, 500,",
    "the sea the sea the sea the sea the sea",
]


def count(*numbers: int) -> str:
    return "".join(f"{number}, " for number in range(*numbers)).strip()


LONG = [count(1, 60), count(100, 150), count(20, 80), count(200, 255), "10 11 12 13 " * 15]


@pytest.fixture(scope="module")
def answers(model_path: Path, oracle: Oracle) -> dict[str, str]:
    """What a plain loop says to each prompt, 12 tokens; it is sure of every one."""
    found = {}
    with LlamaRunner(model_path, vocab_only=True) as runner:
        for prompt in SHORT + LONG:
            choices = oracle(runner.tokenize(prompt).tolist(), 12)
            assert min(choice.margin for choice in choices) > 0.5
            found[prompt] = runner.detokenize([choice.token for choice in choices])
    return found


def call(runner: LlamaRunner, prompt: str) -> str:
    return runner.generate_stateless(prompt, 12, **GREEDY).text


def stream(runner: LlamaRunner, prompt: str) -> str:
    return "".join(chunk.text for chunk in runner.stream_stateless(prompt, 12, **GREEDY))


def begin_and_drop(runner: LlamaRunner, prompt: str) -> str:
    next(runner.stream_stateless(prompt, 12, **GREEDY))
    return call(runner, prompt)


def converse(runner: LlamaRunner, prompt: str) -> str:
    """A conversation of one's own: half of the answer, then the other half."""
    with runner.session() as session:
        first = session.generate(prompt, 6, **GREEDY)
        sequence = inside.sequence(session)
        sequence.truncate(len(sequence) - 1)
        rest = session.generate(first.tokens[-1:], 6, **GREEDY)
        return first.text + rest.text


@pytest.mark.parametrize("kv_layout", ["unified", "streams"])
@pytest.mark.parametrize("n_callers", [2, 8])
def test_each_caller_gets_its_answer(
    model_path: Path, answers: dict[str, str], n_callers: int, kv_layout: Any
) -> None:
    """More callers than sequences, of all kinds."""
    with LlamaRunner(
        model_path, n_ctx=1024, n_seq_max=4, n_threads=1, kv_layout=kv_layout
    ) as runner:
        kinds = [call, stream, begin_and_drop, converse]
        jobs = [(kind, prompt) for kind in kinds for prompt in SHORT]
        random.Random(n_callers).shuffle(jobs)
        with ThreadPoolExecutor(n_callers) as pool:
            results = [(prompt, pool.submit(kind, runner, prompt)) for kind, prompt in jobs]
            stateful = pool.submit(
                lambda: [runner.generate_stateful(part, 12, **GREEDY).text for part in SHORT[:2]]
            )
            for prompt, result in results:
                assert result.result() == answers[prompt]
            first, _ = stateful.result()
        assert first == answers[SHORT[0]]
        runner.clear_context()
        assert inside.n_resident(runner) == 0


@pytest.mark.parametrize("n_callers", [2, 8])
def test_more_than_fits_the_memory(
    model_path: Path, answers: dict[str, str], n_callers: int
) -> None:
    """Each fits alone, but no two together: they leave the memory for each other and come back."""
    with LlamaRunner(
        model_path, n_ctx=300, n_seq_max=4, n_threads=1, kv_layout="unified"
    ) as runner:
        assert runner.get_context_info().n_ctx == 512
        with ThreadPoolExecutor(n_callers) as pool:
            results = [(prompt, pool.submit(call, runner, prompt)) for prompt in LONG]
            results += [(prompt, pool.submit(stream, runner, prompt)) for prompt in LONG]
            for prompt, result in results:
                assert result.result() == answers[prompt]


# ---- every kind of memory ----------------------------------------------------------------------


class Job(NamedTuple):
    prompt: list[int]
    answer: list[int]


def sure_jobs(model: Model, n: int) -> list[Job]:
    """Prompts and greedy answers without a near tie, computed one after the other."""
    chosen = random.Random(1)
    jobs: list[Job] = []
    with new_context(model, n_seq_max=1) as context:
        while len(jobs) < n:
            prompt = [chosen.randrange(EOS + 1, N_VOCAB) for _ in range(chosen.randrange(1, 120))]
            sequence = context.new_sequence()
            sequence.append(prompt)
            margins = []
            for _ in range(chosen.randrange(1, 20)):
                logits = sequence.next_logits()
                logits[EOS] = -np.inf
                second, best = np.argpartition(logits, -2)[-2:]
                margins.append(logits[best] - logits[second])
                sequence.append([best])
            if min(margins) > 1e-3:
                jobs.append(Job(prompt, sequence.tokens.tolist()[len(prompt) :]))
            sequence.close()
    return jobs


def new_context(model: Model, **options: Any) -> Context:
    options = {"n_ctx": 256, "n_batch": 32, "n_ubatch": 16, "kv_type": "f32"} | options
    return Context(model, flash_attention=False, **options)


def answer_to(context: Context, job: Job) -> list[int]:
    sequence = context.new_sequence()
    sequence.append(job.prompt)
    params = GenerationParams(max_tokens=len(job.answer), seed=0, **GREEDY)
    request = request_for(sequence, params, temporary=True)
    request.run()
    return list(request.tokens)


def answer_in_pieces(context: Context, job: Job) -> list[int]:
    sequence = context.new_sequence()
    sequence.append(job.prompt)
    params = GenerationParams(max_tokens=len(job.answer), seed=0, **GREEDY)
    request = request_for(sequence, params)
    while not request.done:
        request.read()
    tokens: list[int] = sequence.tokens.tolist()
    sequence.close()
    return tokens[len(job.prompt) :]


def answer_in_turns(context: Context, job: Job) -> list[int]:
    """The answer a token at a time, each a generation of its own on what is in the memory."""
    sequence = context.new_sequence()
    sequence.append(job.prompt)
    params = GenerationParams(max_tokens=1, seed=0, **GREEDY)
    for _ in job.answer:
        request_for(sequence, params).run()
    tokens: list[int] = sequence.tokens.tolist()
    sequence.close()
    return tokens[len(job.prompt) :]


def give_up(context: Context, job: Job) -> list[int]:
    """Begin, and be cancelled, closed or dropped at some time."""
    sequence = context.new_sequence()
    sequence.append(job.prompt)
    request = request_for(sequence, GenerationParams(seed=0, **GREEDY), temporary=True)
    for _ in range(len(job.answer) % 3):
        request.read()
    if len(job.prompt) % 2:
        request.cancel()
        request.run()
    return job.answer


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_memory(tiny_models: dict[str, Model], kind: str, unified: bool) -> None:
    jobs = sure_jobs(tiny_models[kind], 60)
    ways: Sequence[Callable[[Context, Job], list[int]]] = [
        answer_to,
        answer_in_pieces,
        answer_in_turns,
        give_up,
    ]
    n_ctx = 256 if unified else 256 * 3
    with new_context(tiny_models[kind], n_seq_max=3, n_ctx=n_ctx, unified=unified) as context:
        with ThreadPoolExecutor(8) as pool:
            tasks = [(job, partial(way, context, job)) for job in jobs for way in ways]
            random.Random(2).shuffle(tasks)
            results = [(job, pool.submit(task)) for job, task in tasks]
            for job, result in results:
                assert result.result() == job.answer
        assert context.n_resident == 0


# ---- what is taken over --------------------------------------------------------------------------


def random_tokens(n: int, seed: int = 1) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(EOS + 1, N_VOCAB) for _ in range(n)]


def shared_and_reused(sequence: Ledger) -> tuple[int, int]:
    request = request_for(sequence, GenerationParams(max_tokens=1, seed=0, **GREEDY))
    request.run()
    _, n_reused, n_shared, _ = request.counts
    return n_shared, n_reused


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("came_back", [True, False])
def test_a_window_serves_others_as_far_as_its_cells_are_there(
    tiny_models: dict[str, Model], unified: bool, swa_full: bool, came_back: bool
) -> None:
    """Of a sliding window only what its last token sees comes back into the memory."""
    options: dict[str, Any] = {"n_seq_max": 2, "n_ctx": 512, "unified": unified}
    options |= {"swa_full": swa_full, "parking_ram": 2**24}
    model, tokens = tiny_models["swa"], random_tokens(158)
    with new_context(model, **options) as context, new_context(model) as reference:
        first = context.new_sequence()
        first.append(tokens)
        first.next_logits()
        if came_back:
            first.evict()
            first.append([5])
            first.next_logits()
            assert first.positions[0] > 0
        for n in (40, 100, 140, 150, 157, 158):
            beginning = [*tokens[:n], 7, 8]
            fresh, second = reference.new_sequence(), context.new_sequence()
            fresh.append(beginning)
            second.append(beginning)
            expected = fresh.next_logits()
            assert np.allclose(second.next_logits(), expected, atol=1e-3 * np.ptp(expected))
            second.close()
            fresh.close()
        if swa_full and not came_back:
            second = context.new_sequence()
            second.append([*tokens[:100], 7])
            assert shared_and_reused(second) == (100, 0)


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_a_few_own_cells_are_given_up_for_many(
    tiny_models: dict[str, Model], unified: bool
) -> None:
    options: dict[str, Any] = {"n_seq_max": 2, "n_ctx": 512, "unified": unified}
    tokens = random_tokens(200)
    with new_context(tiny_models["plain"], **options) as context:
        first, second = context.new_sequence(), context.new_sequence()
        second.append(tokens[:8])
        second.next_logits()
        first.append(tokens)
        first.next_logits()
        second.append(tokens[8:])
        second.append([7])
        assert shared_and_reused(second) == (200, 0)
        second.truncate(190)
        second.append([*tokens[190:], 8])
        assert shared_and_reused(second) == (0, 190)  # ten more are not worth it


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("n_seq_max", [1, 2])
def test_the_owner_of_shared_cells_is_evicted_last(
    tiny_models: dict[str, Model], n_seq_max: int, unified: bool
) -> None:
    """If the owner must be evicted after all, its parked state is shared instead."""
    options: dict[str, Any] = {"n_ctx": 512, "unified": unified, "parking_ram": 2**24}
    tokens = random_tokens(200)
    with new_context(tiny_models["plain"], n_seq_max=n_seq_max, **options) as context:
        other, donor, taker = (context.new_sequence() for _ in range(3))
        other.append(random_tokens(100)[::-1])
        donor.append(tokens)
        for sequence in (other, donor):
            sequence.next_logits()
        other.keep_warm()
        taker.append([*tokens[:190], 7])
        assert shared_and_reused(taker) == (190, 0)
        assert donor.n_cached == (200 if n_seq_max == 2 else 0)


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_shared_cells_cannot_be_shifted(tiny_models: dict[str, Model], unified: bool) -> None:
    options: dict[str, Any] = {"n_seq_max": 2, "n_ctx": 512, "unified": unified}
    with new_context(tiny_models["plain"], **options) as context:
        first = context.new_sequence()
        first.append(random_tokens(60))
        assert first.n_shared == 0
        first.next_logits()
        second = first.fork()
        assert first.n_shared == second.n_shared == (60 if unified else 0)
        assert second.remove(10, 20) == ("rebuild" if unified else "shift")
        assert first.n_shared == (10 if unified else 0)
        second.close()
        assert first.n_shared == 0
        assert first.remove(10, 20) == "shift"


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_a_conversation(tiny_models: dict[str, Model], kind: str, swa_full: bool) -> None:
    """None outside the memory; a conversation that fills the memory has all of it."""
    with new_context(tiny_models[kind], swa_full=swa_full) as context:
        sequence = context.new_sequence()
        sequence.append(random_tokens(100))
        assert sequence.kv_bytes == 0
        sequence.next_logits()
        some = sequence.kv_bytes
        sequence.append(random_tokens(155))
        sequence.next_logits()
        assert 0.99 * context.kv_bytes <= sequence.kv_bytes <= context.kv_bytes
        assert (0 < some < sequence.kv_bytes) == (kind != "recurrent")
        sequence.evict()
        assert sequence.kv_bytes == 0
