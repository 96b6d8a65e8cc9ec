"""What a process holds does not grow with what it has done. Sizes in bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError, ModelLoadError
from tests import inside
from tests.unit.loaders.model_files import tiny_llama

MB = 1_000_000
PROCESS = psutil.Process()


def resident() -> int:
    gc.collect()
    return PROCESS.memory_info().rss


def new_runner(model_path: Path, **options) -> LlamaRunner:
    return LlamaRunner(model_path, **{"n_ctx": 512, "n_threads": 1, **options})


def generations(runner: LlamaRunner, i: int) -> None:
    """One generation, of another kind each time."""
    match i % 5:
        case 0:
            runner.generate_stateless("The sky" + " is" * (i % 7), 2, temperature=0.8, seed=i)
        case 1:
            runner.generate_stateful("One two", 2, stop=["!"])
        case 2:
            runner.generate_stateless([{"role": "user", "content": f"Say {i}"}], 2)
        case 3:
            stream = runner.stream_stateless("The sky is", 4, top_k=0, repeat_penalty=1.2)
            next(stream)  # and drop it
        case 4:
            runner.clear_context()
            list(runner.stream_stateful("The sky is", 2))


def failures(runner: LlamaRunner, i: int) -> None:
    for prompt in ("", [-1], "word " * 600, "\ud800", [{"role": "user"}]):
        with pytest.raises(LlamaError):
            runner.generate_stateless(prompt, 3)
    with pytest.raises(LlamaError):
        runner.generate_stateful("The sky is", 0)


@pytest.mark.parametrize("work", [generations, failures])
def test_300_calls_leave_nothing_behind(
    model_path: Path, work: Callable[[LlamaRunner, int], None]
) -> None:
    with new_runner(model_path) as runner:
        for i in range(40):
            work(runner, i)
        before = resident()
        for i in range(300):
            work(runner, i)
        assert resident() - before <= 2 * MB


def test_loading_and_closing_again_and_again(model_path: Path) -> None:
    def work() -> None:
        with new_runner(model_path) as runner:
            runner.generate_stateless("The sky is", 1)

    def least_resident(n: int) -> int:
        """Some megabytes that were freed stay with the allocator, or not, as it happens."""
        sizes = []
        for _ in range(n):
            work()
            sizes.append(resident())
        return min(sizes)

    before = least_resident(15), PROCESS.num_fds(), PROCESS.num_threads()
    for _ in range(30):
        work()
    after = least_resident(15), PROCESS.num_fds(), PROCESS.num_threads()
    assert after[1:] == before[1:]
    # Far less than the weights (98 MB) or a context (12 MB), of which 45 were made.
    assert after[0] - before[0] <= 8 * MB


def test_500_small_models_loaded_and_closed_leave_nothing_behind(tmp_path: Path) -> None:
    # Small, so that what is lost with each is not lost among the weights.
    path = tiny_llama(2).write(tmp_path / "tiny.gguf")

    def work() -> None:
        with new_runner(path) as runner:
            runner.generate_stateless("w1", 1)

    for _ in range(20):
        work()
    before = resident(), PROCESS.num_fds(), PROCESS.num_threads()
    for _ in range(500):
        work()
    after = resident(), PROCESS.num_fds(), PROCESS.num_threads()
    assert after[1:] == before[1:]
    assert after[0] - before[0] <= 8 * MB


def test_cancelled_loads_leave_nothing_behind(model_path: Path) -> None:
    def work() -> None:
        with pytest.raises(ModelLoadError):
            new_runner(model_path, progress=lambda fraction: fraction < 0.9)

    for _ in range(5):
        work()
    before = resident(), PROCESS.num_fds(), PROCESS.num_threads()
    for _ in range(30):
        work()
    after = resident(), PROCESS.num_fds(), PROCESS.num_threads()
    assert after[1:] == before[1:]
    assert after[0] - before[0] <= 8 * MB


def test_threads_of_a_context_end_with_it(model_path: Path) -> None:
    before = PROCESS.num_threads()
    with new_runner(model_path, n_threads=None) as runner:
        runner.generate_stateless("The sky is", 1)
        n_compute = inside.context(runner).n_threads
        # The caller is one of those that compute.
        assert PROCESS.num_threads() == before + n_compute - 1
    assert PROCESS.num_threads() == before


def test_closing_gives_the_memory_back(model_path: Path) -> None:
    # The closed runner itself is still there: a program may keep it.
    before = resident()
    with new_runner(model_path, n_ctx=4096) as runner:
        runner.generate_stateless("The sky is " * 200, 1)
        held = resident() - before
    assert held > 100 * MB
    assert resident() - before < held / 4


@pytest.mark.parametrize(
    ("options", "copied_from_the_file"),
    [({"load_mode": "none"}, False), ({"repack": False}, False), ({}, True)],
    ids=["read", "mapped", "mapped and perhaps copied"],
)
def test_peak_is_little_more_than_weights_and_context(
    python, model_path: Path, options: dict[str, Any], copied_from_the_file: bool
) -> None:
    answer = python(
        f"""
        from llama_runner._support.hardware import peak_rss
        runner = new_runner(n_ctx=2048, **{options})
        runner.generate_stateless("The sky is " * 100, 10)
        context = inside.context(runner)
        print(peak_rss(), context.weights_bytes + context.kv_bytes + context.compute_bytes)
        """
    )
    peak, needed = map(int, answer.split())
    if copied_from_the_file:
        # The CPU backend may copy weights into another layout. The pages of the file that it copies
        # them from count until the system takes them back.
        needed += model_path.stat().st_size
    # The interpreter with numpy and pydantic takes about 50 MB, the vocabulary 10 MB.
    assert peak < needed + 90 * MB
