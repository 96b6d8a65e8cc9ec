"""A process that runs out of memory, threads or file descriptors at each of many points.

``python -m tests.lifecycle.scarcity KIND MODEL POINTS`` prints what became of the points as JSON.
A point is a child, forked from this warm process, in which something fails while a whole life of
a runner goes by: load, tokenise, prefill, decode, stream, snapshot, collect, close. Only
LlamaError and MemoryError may come out of it; afterwards, with what was scarce back again, a new
runner must give the usual answer. The kinds are those of ``KINDS``; for allocations and threads,
scarce.c is preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import itertools
import json
import os
import queue
import resource
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError

MOST_SECONDS = 60  # that one life may take, on a busy machine too
FAULT = 77
# How the C library ends the process, where a thread's variables find no memory.
NOT_OURS = (
    "cannot allocate memory for thread-local data",
    "failed to register TLS destructor",
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
GREEDY: Any = {"temperature": 0.0, "ignore_eos": True}

raised: Counter[str] = Counter()
unraisable: list[str] = []


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Let errors pass that users expect."""
    try:
        yield
    except (LlamaError, MemoryError) as error:
        raised[type(error).__name__] += 1


def new_runner(model: Path) -> LlamaRunner:
    return LlamaRunner(
        model, n_ctx=512, n_seq_max=3, n_threads=2, n_threads_batch=2, chat_template=TEMPLATE
    )


def life(
    model: Path,
    folder: Path,
    other: OtherCaller | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """One runner from its beginning to its end."""
    runner = session = None
    with allowed():
        runner = new_runner(model)
    if runner is None:
        return
    other = other or OtherCaller()
    question = [{"role": "user", "content": "how are you? " * 8}]
    with allowed():
        session = runner.session()
    if session is None:
        runner.close()
        return
    steps: list[Callable[[], object]] = [
        lambda: runner.tokenize("some text, <s> and more of it " * 20),
        lambda: runner.generate_stateless("abc" * 50, 6, seed=1, top_p=0.9),
        lambda: runner.generate_stateful(question, 5, **GREEDY),
        lambda: list(runner.stream_stateless("ab", 5, seed=1, top_k=0, repeat_penalty=1.2)),
        lambda: other.meanwhile(
            lambda: runner.generate_stateless("c" * 40, 4, **GREEDY),
            lambda: runner.generate_stateless("b" * 70, 4, **GREEDY),
        ),
        lambda: session.generate("one two three" * 4, 3),
        lambda: session.save(folder / "snapshot"),
        lambda: session.gc(0.0),
        lambda: session.load(folder / "snapshot"),
        lambda: session.generate("four", 3, stop=["zzz"]),
        lambda: runner.get_context_info(),
    ]
    for step in steps:
        after_step()
        with allowed():
            step()
    after_step()
    runner.close()


class OtherCaller:
    """A second caller, whose thread is there before anything is scarce.

    While a thread starts, Python waits for ever where the new one finds no memory.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                with allowed():
                    self._calls.get()()
            finally:
                self._done.release()

    def meanwhile(self, call: Callable[[], object], mine: Callable[[], object]) -> None:
        self._calls.put(call)
        try:
            mine()
        finally:
            self._done.acquire()


def answer(model: Path) -> str:
    with new_runner(model) as runner:
        return runner.generate_stateless("abc" * 9, 6, **GREEDY).text


# ---- what is scarce ----------------------------------------------------------------------------


def library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextlib.contextmanager
def failing_allocations(n: int, everywhere: bool, for_good: bool) -> Iterator[None]:
    library().fail_allocations(ctypes.c_long(n), everywhere, for_good)
    try:
        yield
    finally:
        library().fail_allocations(ctypes.c_long(-1), everywhere, False)


@contextlib.contextmanager
def failing_threads(n: int) -> Iterator[None]:
    library().fail_threads(ctypes.c_long(n))
    try:
        yield
    finally:
        library().fail_threads(ctypes.c_long(-1))


@contextlib.contextmanager
def limited(which: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def allocation_points(everywhere: bool, for_good: bool) -> Callable[..., Iterator[Any]]:
    """As many points in each step of a life, however many allocations it takes."""

    def points(n_points: int, live: Callable[..., None]) -> Iterator[Any]:
        counts = [0]
        library().fail_allocations(ctypes.c_long(-1), everywhere, False)
        live(after_step=lambda: counts.append(library().count_allocations()))
        steps = list(itertools.pairwise(counts))
        for i in range(n_points):
            start, end = steps[i % len(steps)]
            n = start + (end - start) * (i // len(steps)) * len(steps) // n_points
            yield f"allocation {n}", failing_allocations(n, everywhere, for_good)

    return points


def limit_points(which: int, field: str, span: int) -> Callable[..., Iterator[Any]]:
    def points(n_points: int, live: Callable[..., None]) -> Iterator[Any]:
        used = status(field)
        for i in range(n_points):
            more = i * span // n_points
            yield f"{more} bytes more", limited(which, used + more)

    return points


def descriptor_points(n_points: int, live: Callable[..., None]) -> Iterator[Any]:
    used = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    for i in range(n_points):
        yield f"{i} descriptors more", limited(resource.RLIMIT_NOFILE, next(free))


def thread_points(n_points: int, live: Callable[..., None]) -> Iterator[Any]:
    for i in range(n_points):
        yield f"{i} threads", failing_threads(i)


SPAN = 3 << 20  # a life takes less
KINDS: dict[str, Callable[..., Iterator[Any]]] = {
    "allocation": allocation_points(everywhere=False, for_good=False),
    "allocations": allocation_points(everywhere=False, for_good=True),
    "any-allocation": allocation_points(everywhere=True, for_good=False),
    "address-space": limit_points(resource.RLIMIT_AS, "VmSize", SPAN),
    "data": limit_points(resource.RLIMIT_DATA, "VmData", SPAN),
    "descriptors": descriptor_points,
    "threads": thread_points,
}


# ---- one child for each point ------------------------------------------------------------------


def try_point(point: Any, model: Path, folder: Path, expected: str) -> None:
    """What the child does; it does not return."""
    status = FAULT
    try:
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        sys.unraisablehook = lambda args: unraisable.append(repr(args.exc_value))
        threading.excepthook = lambda args: unraisable.append(repr(args.exc_value))
        other = OtherCaller()
        with point:
            life(model, folder, other)
        if unraisable:
            print("unraisable:", unraisable, file=sys.stderr)
        elif answer(model) != expected:
            print("another answer", file=sys.stderr)
        else:
            status = 0
        Path(folder, "raised").write_text(json.dumps(raised))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    """Try all points of a kind."""
    kind, model, n_points = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    faulthandler.enable()
    bad: list[str] = []
    not_ours: list[str] = []
    all_raised: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        life(model, folder)  # what is loaded or allocated once only is there now
        raised.clear()
        expected = answer(model)
        library().malloc_trim(0)  # or there is room for a whole life in what was freed
        for label, point in KINDS[kind](n_points, functools.partial(life, model, folder)):
            child = os.fork()
            if child == 0:
                try_point(point, model, folder, expected)
            _, code = os.waitpid(child, 0)
            said = (folder / "said").read_text()
            if code == 0:
                all_raised.update(json.loads((folder / "raised").read_text()))
            elif any(words in said for words in NOT_OURS):
                not_ours.append(label)
            else:
                bad.append(f"{label}: {os.waitstatus_to_exitcode(code)}")
                print(f"{bad[-1]}\n{said}", file=sys.stderr)
    print(json.dumps({"bad": bad, "not_ours": not_ours, "raised": all_raised}))


if __name__ == "__main__":
    main()
