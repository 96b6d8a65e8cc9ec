"""States that left the memory: the newest are kept, in RAM, then on disk, within the limits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_runner._core import Context, Model, Sequence
from llama_runner.params import ContextParams
from tests.model.tiny_models import EOS, N_VOCAB

N_TOKENS = 64


def new_context(model: Model, **parking: Any) -> Context:
    return Context(model, n_ctx=1024, n_seq_max=4, kv_type="f32", flash_attention=False, **parking)


def computed(context: Context, seed: int) -> Sequence:
    """A sequence of its own in the memory."""
    sequence = context.new_sequence()
    chosen = random.Random(seed)
    sequence.append([chosen.randrange(EOS + 1, N_VOCAB) for _ in range(N_TOKENS)])
    sequence.next_logits()
    return sequence


def parked(context: Context, n: int) -> list[Sequence]:
    """Sequences that have left the memory, the first of them first."""
    sequences = [computed(context, seed) for seed in range(n)]
    for sequence in sequences:
        sequence.evict()
    return sequences


def came_back(sequence: Sequence) -> bool:
    sequence.bring_in()
    return sequence.n_cached == N_TOKENS


def state_bytes(model: Model) -> int:
    with new_context(model) as context:
        return len(computed(context, 0).save_state()[0])


def answer(sequence: Sequence) -> NDArray[np.float32]:
    sequence.append([40])
    return sequence.next_logits()


def test_a_closed_context_keeps_nothing(tiny_models: dict[str, Model], tmp_path: Path) -> None:
    """Its sequences may live on, but what they had aside does not."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux shows the files of a process")
    options = {"parking_disk": 2**24, "parking_dir": str(tmp_path)}
    context = new_context(tiny_models["plain"], **options)
    sequences = parked(context, 3)

    def files() -> list[str]:
        opened = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return [name for name in map(str, map(Path.readlink, opened)) if str(tmp_path) in name]

    assert len(files()) == 3
    context.close()
    assert files() == []
    del sequences


def test_the_newest_are_kept(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["plain"]
    with new_context(model, parking_ram=state_bytes(model) * 5 // 2) as context:
        assert [came_back(sequence) for sequence in parked(context, 3)] == [False, True, True]


def test_older_ones_move_on_to_the_disk(tiny_models: dict[str, Model], tmp_path: Path) -> None:
    model = tiny_models["plain"]
    limit = state_bytes(model) * 3 // 2
    parking = {"parking_ram": limit, "parking_disk": limit, "parking_dir": str(tmp_path)}
    with new_context(model, **parking) as context, new_context(model) as reference:
        sequences = parked(context, 3)
        assert [came_back(sequence) for sequence in sequences] == [False, True, True]
        for seed, sequence in enumerate(sequences):
            assert np.allclose(answer(sequence), answer(computed(reference, seed)), atol=1e-4)


def test_a_state_too_large_for_the_ram_is_parked_on_disk(
    tiny_models: dict[str, Model], tmp_path: Path
) -> None:
    model = tiny_models["plain"]
    size = state_bytes(model)
    parking = {"parking_ram": size // 2, "parking_disk": 2 * size, "parking_dir": str(tmp_path)}
    with new_context(model, **parking) as context:
        assert [came_back(sequence) for sequence in parked(context, 3)] == [False, True, True]


def test_a_directory_may_serve_many(tiny_models: dict[str, Model], tmp_path: Path) -> None:
    """Nobody else finds a parked conversation there, and nothing of it is left behind."""
    model = tiny_models["plain"]
    parking = {"parking_disk": 2**24, "parking_dir": str(tmp_path)}
    with new_context(model, **parking) as one, new_context(model, **parking) as other:
        first, second = computed(one, 1), computed(other, 2)
        first.evict()
        second.evict()
        assert list(tmp_path.iterdir()) == []
        assert came_back(first)
        assert came_back(second)
        assert np.allclose(answer(first), answer(computed(other, 1)), atol=1e-4)


def test_the_directory_is_the_one_that_was_meant_at_the_start(
    tiny_models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parked").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ContextParams(
        parking_ram=0,
        parking_disk=2**24,
        parking_dir=Path("parked"),  # type: ignore[arg-type]
    ).core_options()
    with Context(tiny_models["plain"], n_ctx=1024, **options) as context:
        sequence = computed(context, 1)
        monkeypatch.chdir("/")
        sequence.evict()
        assert came_back(sequence)


def test_without_a_place_on_disk_tokens_are_decoded_again(
    tiny_models: dict[str, Model], tmp_path: Path
) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    model = tiny_models["plain"]
    with new_context(model, parking_disk=2**24, parking_dir=str(directory)) as context:
        sequence = computed(context, 1)
        directory.rmdir()
        sequence.evict()
        assert not came_back(sequence)
        assert np.allclose(answer(sequence), answer(computed(context, 1)), atol=1e-4)


def test_restored_states_count(tiny_models: dict[str, Model]) -> None:
    """Only the newest is kept in any case."""
    model = tiny_models["plain"]
    for n_kept, limit in [(1, 0), (3, state_bytes(model) * 7 // 2)]:
        with new_context(model, parking_ram=limit) as context:
            source = computed(context, 1)
            state, n = source.save_state()
            tokens = source.tokens
            source.close()
            restored = [context.new_sequence() for _ in range(6)]
            for i, sequence in enumerate(restored):
                sequence.append([3 + i, *tokens[1:]])  # unlike the others
                sequence.adopt_state(state, n, n)
            assert [came_back(s) for s in restored] == [False] * (6 - n_kept) + [True] * n_kept
