"""Ctrl-C and other signals reach a program that is inside a generation, and leave it whole."""

from __future__ import annotations

import pytest

# `ledger` is the conversation's sequence. A signal handler may look at it: it runs inside the
# generation, in the thread that changes it.
CONVERSATION = """
from dataclasses import replace
runner = new_runner(n_ctx=2048, n_ubatch=128)
ledger = inside.sequence(runner)
LONG = "The sky is blue. " * 100
first = runner.generate_stateful("1, 2, 3, 4,", 8, **GREEDY)

def held():
    # The answer's last token may be decoded or wait: that is no part of the conversation.
    return replace(runner.get_context_info(), bytes=0)

before = held()
"""

# What must hold after a call that raised: the conversation is as before, and goes on as if the
# call had never been made. What it says is beyond doubt: numbers are added up in another order when
# a token was decoded in another batch.
AS_BEFORE = """
assert held() == before, held()
answer = runner.generate_stateful(" 9, 10, 11,", 8, **GREEDY).text
runner.clear_context()
runner.generate_stateful("1, 2, 3, 4,", 8, **GREEDY)
assert answer == runner.generate_stateful(" 9, 10, 11,", 8, **GREEDY).text
runner.close()
"""


def test_ctrl_c_stops_a_prompt_in_the_middle_of_a_batch(python) -> None:
    python(
        CONVERSATION
        + """
from llama_runner._core import Request
from llama_runner.params import GenerationParams

other = inside.context(runner).new_sequence()
other.append(runner.tokenize(LONG))
request = Request(other, sampler=GenerationParams(seed=1), max_tokens=200)
signal_when(lambda: other.n_cached == 128)
try:
    request.run()
except KeyboardInterrupt:
    # The batch that was being computed when the signal came is not in the memory.
    assert (other.n_cached, request.finish_reason) == (128, "cancelled")
else:
    raise AssertionError("not interrupted")
other.close()
"""
        + AS_BEFORE
    )


@pytest.mark.parametrize(
    ("call", "condition"),
    [
        ("generate_stateful(LONG, 1)", "ledger.n_cached > 128"),
        ("generate_stateful('Why?', 1000, **ENDLESS)", "len(ledger) > before.used + 10"),
        ("generate_stateless(LONG, 1)", "True"),
        ("generate_stateless('Why?', 1000, **ENDLESS)", "True"),
    ],
    ids=["stateful prompt", "stateful answer", "stateless prompt", "stateless answer"],
)
def test_ctrl_c_leaves_the_conversation_as_it_was(python, call: str, condition: str) -> None:
    python(
        CONVERSATION
        + f"""
signal_when(lambda: {condition})
try:
    runner.{call}
except KeyboardInterrupt:
    assert inside.n_resident(runner) <= before.used
else:
    raise AssertionError("not interrupted")
"""
        + AS_BEFORE
    )


def test_ctrl_c_in_a_stream_keeps_what_was_generated(python) -> None:
    answer = python(
        CONVERSATION
        + """
stream = runner.stream_stateful(LONG, 5)
signal_when(lambda: ledger.n_cached > 128)
try:
    next(stream)
except KeyboardInterrupt:
    print(stream.completion.finish_reason, list(stream))
assert held() == before, held()  # there was no answer yet

stream = runner.stream_stateful(" Also,", 1000, **ENDLESS)
text = ""
n = len(ledger)
signal_when(lambda: len(ledger) > n + 10)
try:
    for chunk in stream:
        text += chunk.text
except KeyboardInterrupt:
    stream.close()
print(stream.completion.finish_reason, stream.completion.text.startswith(text), len(text) > 0)
info = runner.get_context_info()
assert sum(span.tokens for span in info.spans) == info.used == len(ledger)
assert [span.turn for span in info.spans] == [0, 0, 1, 1], info.spans
runner.generate_stateful(" Also,", 8, **GREEDY)
runner.close()
"""
    )
    assert answer == "cancelled []\ncancelled True True\n"


def test_ctrl_c_while_another_thread_computes(python) -> None:
    answer = python(
        """
        runner = new_runner(n_ctx=4096, n_ubatch=2048)
        expected = runner.generate_stateless("1, 2, 3, 4, 5, 6, 7, 8,", 30, **ENDLESS).text
        LONG = "The sky is blue. " * 400
        computing = threading.Event()
        answers = []

        def other():
            stream = runner.stream_stateless("1, 2, 3, 4, 5, 6, 7, 8,", 30, **ENDLESS)
            answers.append("".join(chunk.text for chunk in stream if computing.set() is None))

        thread = threading.Thread(target=other)
        thread.start()
        computing.wait()
        signal_when(lambda: True)
        try:
            runner.generate_stateless(LONG, 5)
        except KeyboardInterrupt:
            print("interrupted", thread.is_alive())
        thread.join()
        print(answers == [expected], inside.n_resident(runner))
        runner.close()
        """
    )
    assert answer == "interrupted True\nTrue 0\n"


@pytest.mark.parametrize("call", ["clear_context()", "generate_stateful('a', 1)"])
def test_ctrl_c_while_another_thread_has_the_memory(python, call: str) -> None:
    # One batch of the other thread takes seconds. If it had to end first, its tokens would be
    # in the memory when the exception arrives here.
    answer = python(
        f"""
        from llama_runner._core import Request
        from llama_runner.params import GenerationParams

        runner = new_runner(n_ctx=4096, n_ubatch=2048)
        runner.generate_stateful("The sky is", 1)
        other = inside.context(runner).new_sequence()
        other.append(runner.tokenize("The sky is blue. " * 400))
        request = Request(other, sampler=GenerationParams(seed=1), max_tokens=1)
        errors = []

        def compute():
            try:
                request.run()
            except LlamaError as error:
                errors.append(type(error).__name__)

        thread = threading.Thread(target=compute)
        thread.start()
        wait_for_computing()
        signal_when(lambda: True)
        try:
            runner.{call}
        except KeyboardInterrupt:
            print("interrupted", other.n_cached)
        request.cancel()
        thread.join()
        runner.close()
        """
    )
    assert answer == "interrupted 0\n"


def test_exception_of_a_signal_handler_comes_out_of_the_call(python) -> None:
    answer = python(
        CONVERSATION
        + """
class Enough(Exception): pass

def handler(*_):
    raise Enough("no more")

signal.signal(signal.SIGUSR1, handler)
signal_when(lambda: len(ledger) > before.used + 10, signal.SIGUSR1)
try:
    runner.generate_stateful("Why?", 1000, **ENDLESS)
except Enough as error:
    print(error)
"""
        + AS_BEFORE
    )
    assert answer == "no more\n"


def test_signal_handler_that_does_not_raise_changes_nothing(python) -> None:
    answer = python(
        CONVERSATION
        + """
expected = runner.generate_stateless("Why?", 40, **ENDLESS).text
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
print(runner.generate_stateless("Why?", 40, **ENDLESS).text == expected, len(seen) > 0)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
        + AS_BEFORE
    )
    assert answer == "True True\n"


def test_signal_handler_that_uses_the_runner_is_refused(python) -> None:
    answer = python(
        CONVERSATION
        + """
calls = {
    "generate_stateless": lambda: runner.generate_stateless("Why?", 5),
    "generate_stateful": lambda: runner.generate_stateful("Why?", 5),
    "stream_stateless": lambda: next(runner.stream_stateless("Why?", 5)),
    "stream_stateful": lambda: runner.stream_stateful("Why?", 5),
    "clear_context": lambda: runner.clear_context(),
    "close": lambda: runner.close(),
    "tokenize": lambda: runner.tokenize("Why?"),
    "get_context_info": lambda: runner.get_context_info(),
}

def handler(*_):
    for name, call in calls.items():
        try:
            call()
            print(name, "works")
        except LlamaError as error:
            print(name, type(error).__name__)

signal.signal(signal.SIGUSR1, handler)
signal_when(lambda: len(ledger) > before.used + 10, signal.SIGUSR1)
text = runner.generate_stateful("Why?", 100, **ENDLESS).text
runner.clear_context()
runner.generate_stateful("1, 2, 3, 4,", 8, **GREEDY)
print(runner.generate_stateful("Why?", 100, **ENDLESS).text == text)
runner.close()
"""
    )
    *calls, same = answer.splitlines()
    assert calls == [
        "generate_stateless ContextBusyError",
        "generate_stateful ContextBusyError",
        "stream_stateless ContextBusyError",
        "stream_stateful ContextBusyError",
        "clear_context ContextBusyError",
        "close ContextBusyError",
        "tokenize works",
        "get_context_info works",
    ]
    assert same == "True"


def test_a_handler_may_cancel_while_others_are_moved_out_of_the_memory(python) -> None:
    """Signals come while states are moved: nobody holds what cancel() waits for."""
    python(
        """
import signal

runner = new_runner(n_ctx=2048, n_seq_max=1, parking_ram=2**30)
other = runner.stream_stateless("A", 5)
n_signals = 0

def cancel_other(*_):
    global n_signals
    n_signals += 1
    other.cancel()

signal.signal(signal.SIGALRM, cancel_other)
ledger = inside.sequence(runner)
ledger.append([504 + i % 1000 for i in range(1200)])
ledger.next_logits()
for i in range(40):
    ledger.remove(5, 15)  # a shift is put off until the next one leaves or computes
    signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0004 * (i % 25))
    runner.generate_stateless("hello", 1)  # there is one slot
    signal.setitimer(signal.ITIMER_REAL, 0)
    ledger.next_logits()
assert n_signals > 5, n_signals
other.close()
runner.close()
"""
    )


def test_ctrl_c_in_an_operation_on_the_memory_is_not_kept_for_later(python) -> None:
    """It may end the call or come right behind it: whoever generates next has nothing to fear."""
    answer = python(
        """
runner = new_runner(n_ctx=2048, n_seq_max=1, parking_ram=2**30)
ledger = inside.sequence(runner)
ledger.append([504 + i % 1000 for i in range(1800)])
ledger.next_logits()  # signal handlers ran in the midst of this one
late = 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for i in range(30):
    ledger.remove(5, 6)  # a shift is put off until the state is moved out
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 * i + 0.0001)
        ledger.evict()
        time.sleep(0.02)  # the signal has come
    except KeyboardInterrupt:
        pass
    try:
        ledger.next_logits()
    except KeyboardInterrupt:
        late += 1
print(late)
runner.close()
"""
    )
    assert answer == "0\n"


def test_ctrl_c_reaches_a_child_of_a_worker_thread(python) -> None:
    answer = python(
        """
from llama_runner._core import Request
from llama_runner.params import GenerationParams

def fork():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with new_runner() as own:
            sequence = inside.context(own).new_sequence()
            sequence.append(own.tokenize("Why?"))
            sampler = GenerationParams(seed=1, ignore_eos=True)
            request = Request(sequence, sampler=sampler, max_tokens=900)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                request.run()
            except KeyboardInterrupt:
                print("interrupted", len(request.tokens) < 900, flush=True)
            sequence.close()
        os._exit(0)
    os.waitpid(child, 0)

thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""
    )
    assert answer == "interrupted True\n"
