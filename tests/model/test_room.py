"""When there is no room: who waits, who leaves, and that nobody loses what was computed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llama_runner._core import Context, Model, Request, Sequence
from llama_runner.params import GenerationParams
from tests.model.requesting import request_for
from tests.model.tiny_models import EOS, N_VOCAB

ENOUGH = 1 << 24


def new_context(model: Model, **options: Any) -> Context:
    defaults = {"n_ctx": 256, "n_seq_max": 2, "parking_ram": ENOUGH}
    exact = {"kv_type": "f32", "flash_attention": False, "n_batch": 32, "n_ubatch": 16}
    return Context(model, **{**exact, **defaults, **options})


def tokens(n: int, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(EOS + 1, N_VOCAB) for _ in range(n)]


def filled(context: Context, n: int, seed: int) -> Sequence:
    sequence = context.new_sequence()
    sequence.append(tokens(n, seed))
    return sequence


def computed(context: Context, n: int, seed: int) -> Sequence:
    sequence = filled(context, n, seed)
    sequence.next_logits()
    return sequence


def generation(sequence: Sequence, n: int) -> Request:
    params = GenerationParams(max_tokens=n, temperature=0, seed=0, ignore_eos=True)
    return request_for(sequence, params)


def while_it_runs(request: Request, do: Callable[[], object]) -> None:
    """Call something in the midst of a generation, which goes on to its end."""
    thread = threading.Thread(target=request.run)
    thread.start()
    while len(request.tokens) < 5:
        assert thread.is_alive()
    do()
    assert not request.done, "too short to be in the midst of it"
    thread.join()


# ---- waiting -----------------------------------------------------------------------------------


def test_a_call_that_waits_for_room_keeps_its_computed_cells(tiny_models: dict[str, Model]) -> None:
    with new_context(tiny_models["plain"]) as context:
        waiting = computed(context, 120, 1)
        waiting.evict()
        waiting.append([5])
        first, second = generation(filled(context, 100, 2), 150), generation(waiting, 1)
        thread = threading.Thread(target=first.run)
        thread.start()
        while len(first.tokens) < 40:  # from now on there is no room beside it
            assert thread.is_alive()
        second.run()
        assert first.done
        assert second.counts == (121, 120, 0, 1)
        thread.join()


def test_a_sequence_evicted_while_it_generates_comes_back(tiny_models: dict[str, Model]) -> None:
    with (
        new_context(tiny_models["plain"]) as tight,
        new_context(tiny_models["plain"]) as other,
    ):
        pair = [filled(tight, 60, 1), filled(tight, 100, 2)]
        requests = [generation(sequence, n) for sequence, n in zip(pair, (150, 80), strict=True)]
        threads = [threading.Thread(target=request.run) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(request.tokens) for request in requests] == [150, 80]
        for sequence in pair:
            fresh = other.new_sequence()
            fresh.append(sequence.tokens)
            expected, logits = fresh.next_logits(), sequence.next_logits()
            fresh.close()
            np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.ptp(expected))


def test_two_take_turns_with_room_for_one_beside(tiny_models: dict[str, Model]) -> None:
    """Who comes in does not count where the other goes to, and is not dropped for its sake."""
    model = tiny_models["plain"]
    with new_context(model) as context:
        n_bytes = len(computed(context, 100, 1).save_state()[0])
    with new_context(model, n_seq_max=1, parking_ram=n_bytes * 6 // 5) as context:
        pair = [computed(context, 100, seed) for seed in (1, 2)]
        for turn in range(6):
            sequence = pair[turn % 2]
            n_known = len(sequence)
            sequence.append([7])
            request = sequence.decoding()
            request.run()
            assert request.counts == (n_known + 1, n_known, 0, 1)


@pytest.mark.parametrize("unified", [True, False])
def test_prompt_counts_of_requests_that_waited_add_up(
    tiny_models: dict[str, Model], unified: bool
) -> None:
    """Each token of a prompt was there, is another's, or had to be computed."""
    options = {"n_ctx": 1024, "unified": unified}
    with new_context(tiny_models["plain"], **options) as context:
        parent = computed(context, 100, 1)
        forks = [parent.fork() for _ in range(6)]
        for i, fork in enumerate(forks):
            fork.append(tokens(5, i))
        requests = [generation(fork, 20) for fork in forks]
        threads = [threading.Thread(target=request.run) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for request in requests:
            n_prompt, n_reused, n_shared, n_prefilled = request.counts
            assert n_prompt == 105
            assert n_reused + n_shared + n_prefilled == n_prompt
            assert n_prefilled < n_prompt


def test_a_waiting_call_evicts_no_sequence_without_need(tiny_models: dict[str, Model]) -> None:
    """It could come back only after an older request ended, so evicting others would not help."""
    with new_context(tiny_models["plain"], n_ctx=2048, n_seq_max=4) as context:
        waiting = computed(context, 1400, 1)
        waiting.evict()
        waiting.append([5])
        oldest = generation(filled(context, 700, 2), 1200)
        second, young = generation(waiting, 1), generation(filled(context, 60, 3), 30)
        rest = threading.Thread(target=second.run)

        def others() -> None:
            rest.start()
            time.sleep(0.02)
            young.run()
            n_prompt, n_reused, n_shared, n_prefilled = young.counts
            assert (n_reused, n_shared, n_prefilled) == (0, 0, n_prompt)
            assert not second.done

        while_it_runs(oldest, others)
        rest.join()
        assert second.counts[1] == 1400


def test_a_state_that_serves_little_is_not_waited_for(tiny_models: dict[str, Model]) -> None:
    with new_context(tiny_models["plain"], n_ctx=768, n_seq_max=4) as context:
        cut = computed(context, 500, 1)
        cut.evict()
        cut.truncate(40)
        cut.append([5])
        older, request = generation(filled(context, 300, 2), 400), generation(cut, 1)
        while_it_runs(older, request.run)
        assert request.counts == (41, 0, 0, 41)


# ---- operations --------------------------------------------------------------------------------


def test_an_operation_evicts_no_generating_sequence(tiny_models: dict[str, Model]) -> None:
    with new_context(tiny_models["plain"], n_seq_max=1, n_ctx=2048, parking_ram=0) as context:
        state, n = computed(context, 200, 1).save_state()
        other = filled(context, 200, 1)
        other.adopt_state(state, n, n)
        running = filled(context, 300, 2)

        def come_back() -> None:
            n_before = running.n_cached
            other.bring_in()
            assert other.n_cached == 0
            assert running.n_cached >= n_before > 0

        while_it_runs(generation(running, 400), come_back)
        other.bring_in()
        assert other.n_cached == 200


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_parked_state_is_saved_where_it_is(
    tiny_models: dict[str, Model], tmp_path: Any, on_disk: bool
) -> None:
    place: dict[str, Any] = {"n_seq_max": 1, "n_ctx": 2048}
    if on_disk:
        place |= {"parking_ram": 0, "parking_disk": ENOUGH, "parking_dir": str(tmp_path)}
    with new_context(tiny_models["plain"], **place) as context:
        parked = computed(context, 100, 1)
        state, n = parked.save_state()
        parked.evict()

        def save() -> None:
            assert parked.save_state() == (state, n)
            assert parked.n_cached == 0

        while_it_runs(generation(filled(context, 300, 2), 400), save)


# ---- window caches and recurrent states --------------------------------------------------------


@pytest.mark.parametrize("swa_full", [False, True])
def test_forks_on_a_window_cache_have_room(tiny_models: dict[str, Model], swa_full: bool) -> None:
    """Its cells are used again as the window moves on, whoever has them."""
    model = tiny_models["swa"]
    with new_context(model, n_ctx=1024, swa_full=swa_full) as context:
        parent = computed(context, 600, 1)
        child = parent.fork()
        for sequence, seed in ((child, 2), (parent, 3)):
            sequence.append(tokens(60, seed))
            logits = sequence.next_logits()
            with new_context(model, n_ctx=1024, swa_full=swa_full) as alone:
                fresh = alone.new_sequence()
                fresh.append(sequence.tokens)
                np.testing.assert_allclose(logits, fresh.next_logits(), atol=1e-4)


def test_going_back_to_a_recurrent_state_shares_no_more_than_is_there(
    tiny_models: dict[str, Model],
) -> None:
    with new_context(tiny_models["hybrid"], n_ctx=1024, n_seq_max=3) as context:
        sequence = computed(context, 100, 1)
        state, n = sequence.save_state(partial=True)
        sequence.append(tokens(200, 2))
        sequence.next_logits()
        with_all = sequence.fork()
        assert sequence.rewind_state(state, n)
        assert (sequence.n_cached, sequence.n_shared) == (100, 100)
        assert context.n_resident == with_all.n_cached == 300
