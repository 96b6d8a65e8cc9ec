"""Ctrl-C at any instant: a conversation stays whole, open and without gaps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama_runner import LlamaRunner

RANDOM_INTERRUPTS = """
import random

sys.unraisablehook = lambda _: None  # Python prints what is raised while an object dies
runner = new_runner(n_ctx=512)
session = runner.session(system="Be brief.")
session.generate([{"role": "user", "content": "My name is Bob."}], 4, **GREEDY)
early = session.mark()
for question in ("Hi.", "Who?"):
    session.generate([{"role": "user", "content": question}], 4, **GREEDY)
late = session.mark()
expected = session.info().used
signal.signal(signal.SIGALRM, signal.default_int_handler)
chosen, kept = random.Random(1), []

def interrupted(call, most):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chosen.uniform(1e-6, most))
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        kept.append(error)  # as a log or a prompt of Python does
"""


@pytest.mark.parametrize("call", ["session.rewind(early)", "session.clear()", "session.gc(0)"])
def test_ctrl_c_leaves_a_conversation_whole_whenever_it_comes(python, call: str) -> None:
    answer = python(
        RANDOM_INTERRUPTS
        + f"""
for _ in range(400):
    interrupted(lambda: {call}, 2e-4)
    info = session.info()
    assert info.used == sum(span.tokens for span in info.spans), info
    session.rewind(late)
    assert session.info().used == expected
print(len(kept) > 0)
runner.close()
"""
    )
    assert answer == "True\n"


def test_ctrl_c_locks_no_conversation_whenever_it_comes(python) -> None:
    """Not even while the exception, and with it the frames of the call, is kept."""
    answer = python(
        RANDOM_INTERRUPTS
        + """
def several():
    for _ in range(10):
        session.pin(1)
        session.info()
        session.stream("a", 4).close()

for _ in range(300):
    interrupted(several, 2e-3)
    session.cancel()  # the exception may have kept a stream from being closed
    session.pin(1)
    worker = threading.Thread(target=session.info, daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive()
print(len(kept) > 0)
runner.close()
"""
    )
    assert answer == "True\n"


def test_ctrl_c_loses_no_text_of_a_stream_whenever_it_comes(python) -> None:
    """All that was generated is shown in the end, once."""
    answer = python(
        RANDOM_INTERRUPTS
        + """
for _ in range(60):
    session.rewind(early)
    stream = session.stream("One, two, three,", 12, **ENDLESS)
    shown = []

    def read():
        for chunk in stream:
            shown.append(chunk)

    interrupted(read, 0.15)
    shown += stream
    text = "".join(chunk.text for chunk in shown)
    tokens = tuple(token for chunk in shown for token in chunk.tokens)
    assert stream.completion.text == text, (stream.completion.text, text)
    assert stream.completion.tokens == tokens
print(len(kept) > 0)
runner.close()
"""
    )
    assert answer == "True\n"


def test_ctrl_c_loses_no_text_of_a_stream_wherever_it_comes(model_path: Path) -> None:
    """Python runs signal handlers where a function begins; so does a trace function."""

    def interrupt(*_: object) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == place:
            sys.settrace(None)
            raise KeyboardInterrupt

    with LlamaRunner(model_path, n_ctx=512, n_threads=1) as runner:
        expected = runner.generate_stateless("One, two,", 4, temperature=0.0)
        n_interrupted, reasons = 0, set()
        for place in range(1, 1000):
            runner.clear_context()
            stream = runner.stream_stateful("One, two,", 4, temperature=0.0)
            shown, n_calls = [], 0
            sys.settrace(interrupt)
            try:
                shown.extend(stream)
            except KeyboardInterrupt:
                n_interrupted += 1
            finally:
                sys.settrace(None)
            shown.extend(stream)
            assert stream.completion is not None
            reasons.add(stream.completion.finish_reason)
            text = "".join(chunk.text for chunk in shown)
            assert (text, shown[-1].completion) == (stream.completion.text, stream.completion)
            assert expected.text.startswith(text)
            assert list(stream) == []
            if n_calls < place:
                break
    assert n_interrupted == place - 1 > 10
    assert reasons == {"length", "cancelled"}
