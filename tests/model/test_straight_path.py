"""A stateful call takes a short way: few frames, few calls, few moves from file to file.

These are counts of the package's own functions, not times, so a busy machine does not change them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import llama_runner
from llama_runner import LlamaRunner
from llama_runner.generation.generation import Generation
from tests import inside

PACKAGE = str(Path(llama_runner.__file__).parent)
MAX_CALLS = 122
MAX_MOVES = 53


def is_function(frame: FrameType) -> bool:
    """Whether this is a function of the package; comprehensions are part of theirs."""
    code = frame.f_code
    return code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")


def walked(call: Callable[[], object]) -> list[tuple[str | None, str, str]]:
    """Each call of a function of the package: the caller's file, its own file, its name."""
    calls: list[tuple[str | None, str, str]] = []
    files: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if not is_function(frame):
            return
        if event == "call":
            file = frame.f_code.co_filename
            calls.append((files[-1] if files else None, file, frame.f_code.co_qualname))
            files.append(file)
        elif event == "return" and files:
            files.pop()

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


def second_turn(runner: LlamaRunner) -> Callable[[], object]:
    """The second turn of a conversation, not begun yet."""
    runner.generate_stateful([{"role": "user", "content": "Hello."}], 3, temperature=0.0)
    prompt = [{"role": "user", "content": "And now?"}]
    return lambda: runner.generate_stateful(prompt, 3, temperature=0.0)


def test_a_turn_makes_few_calls_and_stays_in_few_files(runner: LlamaRunner) -> None:
    calls = walked(second_turn(runner))
    names = [name for _, _, name in calls]
    assert len(calls) <= MAX_CALLS, names
    moves = [(caller, file) for caller, file, _ in calls if caller not in (None, file)]
    assert len(moves) <= MAX_MOVES, moves


def test_few_frames_are_above_the_computation(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    above: list[str] = []
    completion = Generation.completion

    def noted(self: Generation) -> object:
        frame: FrameType | None = sys._getframe()  # where Generation.run calls Request.run, too
        while frame is not None:
            if is_function(frame):
                above.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return completion(self)

    monkeypatch.setattr(Generation, "completion", noted)
    turn = second_turn(runner)
    above.clear()
    turn()
    assert above == [
        "Generation.run",
        "Conversation.generate",
        "Session.generate",
        "LlamaRunner.generate_stateful",
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_where_any_function_begins_undoes_the_call_at_once(runner: LlamaRunner) -> None:
    """Also while the exception is kept, and with it the frames of the call."""
    kept: list[BaseException] = []
    n_begun = place = 0

    def interrupt(*_: object) -> None:
        nonlocal n_begun
        n_begun += 1
        if n_begun == place:
            sys.settrace(None)
            raise KeyboardInterrupt

    turn = second_turn(runner)
    session = inside.own_session(runner)
    before = session.info()
    for place in range(1, 2000):
        n_begun = 0
        sys.settrace(interrupt)
        try:
            turn()
            break
        except KeyboardInterrupt as error:
            kept.append(error)
        finally:
            sys.settrace(None)
        assert not inside.sequence(session).busy, place
        assert session.info() == before, place
    assert len(kept) == place - 1 > 50
    assert session.info().used > before.used
