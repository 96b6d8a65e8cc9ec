"""Loading reports its progress, and ends when told to: by the callback, by Ctrl-C, by a thread."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_runner import LlamaRunner
from llama_runner.errors import ModelLoadError

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux limits what a process may map"
)


def new_runner(model_path: Path, progress) -> LlamaRunner:
    return LlamaRunner(model_path, n_ctx=512, n_threads=1, progress=progress)


def test_progress_rises_from_0_to_1(model_path: Path) -> None:
    seen: list[float] = []
    with new_runner(model_path, seen.append) as runner:
        assert runner.generate_stateless("The sky is", 1).usage.completion_tokens == 1
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(seen) > 2


@pytest.mark.parametrize("answer", [None, True, 1, 0])
def test_only_false_cancels(model_path: Path, answer) -> None:
    # 0 is not False: a callback may be a file's write, which returns a count.
    with new_runner(model_path, lambda _: answer) as runner:
        assert not runner.closed


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0], ids=["start", "middle", "end"])
def test_false_cancels_the_load(model_path: Path, at: float) -> None:
    with pytest.raises(ModelLoadError, match=f"loading {model_path} was cancelled"):
        new_runner(model_path, lambda fraction: fraction < at)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0], ids=["start", "middle", "end"])
def test_exception_of_the_callback_comes_out_of_the_call(model_path: Path, at: float) -> None:
    class EnoughError(Exception):
        pass

    def progress(fraction: float) -> None:
        if fraction >= at:
            raise EnoughError(at)

    with pytest.raises(EnoughError, match=str(at)):
        new_runner(model_path, progress)


def test_callback_is_let_go_of_after_the_load(model_path: Path) -> None:
    class Progress:
        alive = 0

        def __init__(self) -> None:
            Progress.alive += 1

        def __call__(self, fraction: float) -> None:
            pass

        def __del__(self) -> None:
            Progress.alive -= 1

    with new_runner(model_path, Progress()):
        gc.collect()
        assert Progress.alive == 0


def test_ctrl_c_while_loading(python) -> None:
    answer = python(
        """
        for at in (0.0, 0.5):
            sent = []

            def progress(fraction):
                if fraction >= at and not sent:
                    sent.append(fraction)
                    os.kill(os.getpid(), signal.SIGINT)

            try:
                new_runner(progress=progress)
            except KeyboardInterrupt:
                print("interrupted")
        with new_runner() as runner:
            print(runner.generate_stateless("The sky is", 1).usage.completion_tokens)
        """
    )
    assert answer == "interrupted\ninterrupted\n1\n"


def test_ctrl_c_while_loading_without_a_callback(python) -> None:
    answer = python(
        """
        new_runner().close()  # imports what it needs: there, others may swallow the exception
        for _ in range(10):
            signal_when(lambda: True)
            try:
                new_runner().close()
                time.sleep(5)
            except KeyboardInterrupt:
                print("interrupted")
        """
    )
    assert answer == "interrupted\n" * 10


def test_threads_load_at_the_same_time(model_path: Path) -> None:
    def answer(_: int) -> str:
        with new_runner(model_path, None) as runner:
            return runner.generate_stateless("1, 2, 3, 4,", 5, temperature=0).text

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(answer, range(3)))) == 1


# ---- what a process may not have ---------------------------------------------------------------

LITTLE_MEMORY = """
import resource
from llama_runner._core import Context, Model, Request
from llama_runner.params import GenerationParams

def leave(n_bytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, taken + n_bytes))

def attempt(call):
    try:
        print(call())
    except LlamaError as error:
        print(type(error).__name__, error.message)
"""


@linux
@pytest.mark.parametrize("load_mode", ["none", "mmap"])
def test_no_memory_for_the_weights(python, load_mode: str) -> None:
    answer = python(
        LITTLE_MEMORY
        + f"""
leave(40_000_000)
attempt(lambda: Model(sys.argv[1], load_mode="{load_mode}", repack=False))
"""
    )
    assert answer.startswith("OutOfMemoryError there is no memory for the weights of ")


@linux
def test_no_threads(python) -> None:
    answer = python(
        LITTLE_MEMORY
        + """
with Model(sys.argv[1]) as model:
    Context(model, n_ctx=256).close()
    leave(300_000_000)  # a thread has a stack of 8 MB
    attempt(lambda: Context(model, n_ctx=256, n_threads=128))
    with Context(model, n_ctx=256, n_threads=2) as context:
        print(context.n_threads)
"""
    )
    message, n_threads = answer.splitlines()
    assert message.startswith("OutOfMemoryError cannot start 128 threads: give a smaller n_threads")
    assert n_threads == "2"


@linux
def test_no_memory_to_sample_in(python) -> None:
    """Without top_k, llama.cpp sorts all tokens, and takes memory for that."""
    answer = python(
        LITTLE_MEMORY
        + """
def ask(context, **recipe):
    sequence = context.new_sequence()
    sequence.append(list(range(100, 110)))
    return Request(
        sequence, sampler=GenerationParams(seed=1, ignore_eos=True, **recipe), max_tokens=3
    )

with Model(sys.argv[1]) as model, Context(model, n_ctx=256) as context:
    ask(context, top_k=40).run()
    request, other = ask(context, top_k=0), ask(context, temperature=0.0, top_k=0)
    leave(0)
    blocks = []
    try:
        while True:  # what was freed before would serve as well
            blocks.append(bytearray(100_000))
    except MemoryError:
        pass
    attempt(request.run)
    attempt(lambda: len(other.run() or "done"))
"""
    )
    first, second = answer.splitlines()
    assert first.startswith("OutOfMemoryError llama.cpp could not allocate")
    assert second == "4"
