"""Threads that share a runner, and what becomes of generations that nobody finishes."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_runner import Completion, GenerationParams, LlamaRunner
from llama_runner._core import Request
from llama_runner.conversation.collector import Collector
from llama_runner.errors import ClosedError, ContextBusyError, ContextFullError, LlamaError
from llama_runner.prompts.chat_format import ChatFormat
from tests import inside

ENDLESS = {"temperature": 0.0, "ignore_eos": True}
QUESTION = [{"role": "user", "content": "Why?"}]

# The model is sure how these go on. Where it is not, computing several sequences in one batch
# rounds differently and may choose another token than computing one alone.
SERIES = [
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "2, 4, 6, 8, 10, 12, 14,",
    "10, 20, 30, 40, 50, 60,",
    "5, 10, 15, 20, 25, 30, 35,",
    "1 1 1 1 1 1 1 1 1 1",
    "100, 200, 300, 400, 500,",
]


def new_runner(model_path: Path, **options) -> LlamaRunner:
    return LlamaRunner(model_path, **{"n_ctx": 1024, "n_threads": 1, **options})


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with new_runner(model_path) as runner:
        yield runner


@pytest.fixture
def resident(runner: LlamaRunner) -> Iterator[Callable[[], int]]:
    """Tokens in the runner's memory, which is empty before the test."""
    runner.clear_context()
    assert inside.n_resident(runner) == 0
    yield lambda: inside.n_resident(runner)
    runner.clear_context()


# ---- abandoned generations ---------------------------------------------------------------------


def test_a_kept_error_does_not_touch_what_comes_later(model_path: Path) -> None:
    """It may hold its request, which had paused to have room made."""
    with new_runner(model_path, n_ctx=256, n_seq_max=1) as runner, runner.session() as session:
        session.generate("One, two, three, four, five,", 8, **ENDLESS)
        session.pin()
        with pytest.raises(ContextFullError) as kept:
            session.generate("And on it goes, " * 12, 500, **ENDLESS)
        session.unpin()
        with session.stream("And now,", 8, **ENDLESS) as stream:
            next(stream)
            del kept
            gc.collect()
            with pytest.raises(ContextBusyError):
                session.clear()
            assert len(list(stream)) > 0


def drop(stream) -> None:
    del stream


def close(stream) -> None:
    stream.close()


def leave_block(stream) -> None:
    with stream:
        next(stream)


def cancel_and_read_on(stream) -> None:
    stream.cancel()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]


def cancel_elsewhere_and_read_on(stream) -> None:
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    thread.join()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]


@pytest.mark.parametrize(
    "abandon",
    [drop, leave_block, close, cancel_and_read_on, cancel_elsewhere_and_read_on],
)
def test_abandoned_stateless_stream_leaves_nothing_in_memory(runner, resident, abandon) -> None:
    streams = [runner.stream_stateless("The sky is", 50, **ENDLESS)]
    next(streams[0])
    assert resident() > 0
    abandon(streams.pop())
    assert resident() == 0


def test_stream_in_a_cycle_is_freed_by_the_garbage_collector(runner, resident) -> None:
    cycle = {"stream": runner.stream_stateless("The sky is", 50, **ENDLESS)}
    cycle["itself"] = cycle
    next(cycle["stream"])
    del cycle
    gc.collect()
    assert resident() == 0


def test_dropped_stateful_stream_keeps_what_was_read(runner, resident) -> None:
    stream = runner.stream_stateful("The sky is", 50, **ENDLESS)
    text = next(stream).text + next(stream).text
    with pytest.raises(ContextBusyError):
        runner.generate_stateful("more", 5)
    del stream
    info = runner.get_context_info()
    assert sum(span.tokens for span in info.spans) == info.used
    assert runner.detokenize(inside.ledger(runner)) == "The sky is" + text


def test_stream_cancelled_while_another_thread_reads_it(runner, resident) -> None:
    stream = runner.stream_stateless("The sky is", 900, **ENDLESS)
    reading = threading.Event()

    def read() -> str:
        for _ in stream:
            reading.set()
        return stream.completion.finish_reason

    with ThreadPoolExecutor() as pool:
        reason = pool.submit(read)
        reading.wait()
        stream.cancel()
        assert reason.result() == "cancelled"
    assert 0 < stream.completion.usage.completion_tokens < 900
    assert resident() == 0


def test_generation_goes_on_while_others_are_dropped(runner, resident) -> None:
    expected = runner.generate_stateless(SERIES[0], 40, **ENDLESS).text
    done = threading.Event()

    def abandon() -> None:
        while not done.is_set():
            stream = runner.stream_stateless("Why?", 10, **ENDLESS)
            next(stream)

    with ThreadPoolExecutor() as pool:
        abandoning = pool.submit(abandon)
        answers = [runner.generate_stateless(SERIES[0], 40, **ENDLESS).text for _ in range(3)]
        done.set()
        abandoning.result()
    assert answers == [expected] * 3
    assert resident() == 0


# ---- closing -----------------------------------------------------------------------------------


def generate_stateless(runner: LlamaRunner, begun: threading.Event) -> None:
    begun.set()
    while True:
        runner.generate_stateless("The sky is", 900, **ENDLESS)


def generate_stateful(runner: LlamaRunner, begun: threading.Event) -> None:
    begun.set()
    while True:
        runner.generate_stateful("The sky is", 100, **ENDLESS)


def read_streams(runner: LlamaRunner, begun: threading.Event) -> None:
    while True:
        for _ in runner.stream_stateless("The sky is", 100, **ENDLESS):
            begun.set()


def manage_memory(runner: LlamaRunner, begun: threading.Event) -> None:
    while True:
        runner.generate_stateful("The sky", 1)
        runner.clear_context()
        runner.get_context_info()
        begun.set()


@pytest.mark.parametrize(
    "work", [generate_stateless, generate_stateful, read_streams, manage_memory]
)
def test_close_ends_the_calls_of_other_threads(model_path: Path, work) -> None:
    runner = new_runner(model_path)
    begun = [threading.Event() for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(work, runner, event) for event in begun]
        for event in begun:
            event.wait()
        runner.close()
        for call in calls:
            assert isinstance(call.exception(), ClosedError)


def test_close_stops_a_computation_in_its_middle(python) -> None:
    # The prompt is one batch; had it ended, its tokens would be in the sequence.
    answer = python(
        """
        from llama_runner._core import Request
        from llama_runner.params import GenerationParams

        runner = new_runner(n_ctx=4096, n_ubatch=2048)
        sequence = inside.context(runner).new_sequence()
        sequence.append(runner.tokenize("The sky is blue. " * 400))
        request = Request(sequence, sampler=GenerationParams(seed=1), max_tokens=1)

        def compute():
            try:
                request.run()
            except ClosedError as error:
                print(error, sequence.n_cached)

        thread = threading.Thread(target=compute)
        thread.start()
        wait_for_computing()
        runner.close()
        thread.join()
        """
    )
    assert answer == "the context was closed while this request was generating 0\n"


def test_many_threads_may_close(model_path: Path) -> None:
    runner = new_runner(model_path)
    next(runner.stream_stateless("The sky is", 5))
    with ThreadPoolExecutor(8) as pool:
        for call in [pool.submit(runner.close) for _ in range(8)]:
            call.result()
    assert runner.closed


def test_closed_runner_says_so(model_path: Path) -> None:
    runner = new_runner(model_path)
    stream = runner.stream_stateful("The sky is", 5)
    next(stream)
    runner.close()
    calls = [
        lambda: runner.generate_stateless("a"),
        lambda: runner.generate_stateful("a"),
        lambda: runner.stream_stateless("a"),
        lambda: runner.stream_stateful("a"),
        lambda: next(stream),
        runner.get_context_info,
        runner.gc_context,
        runner.clear_context,
        lambda: runner.tokenize("a"),
        lambda: runner.detokenize([1]),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    stream.cancel()
    stream.close()
    runner.close()


# ---- sharing -----------------------------------------------------------------------------------


def test_threads_get_their_own_answers(runner, resident) -> None:
    expected = [runner.generate_stateless(prompt, 12, **ENDLESS).text for prompt in SERIES]
    with ThreadPoolExecutor(len(SERIES)) as pool:
        calls = [pool.submit(runner.generate_stateless, p, 12, **ENDLESS) for p in SERIES * 2]
        answers = [call.result().text for call in calls]
    assert answers == expected * 2
    assert resident() == 0


def test_stateful_calls_of_threads_take_turns(runner, resident) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(runner.generate_stateful, "One two", 5, **ENDLESS) for _ in range(8)]
        texts = [call.result().text for call in calls]
    info = runner.get_context_info()
    assert [span.turn for span in info.spans] == [turn for turn in range(8) for _ in range(2)]
    conversation = runner.detokenize(inside.ledger(runner))
    assert sorted(conversation.split("One two")[1:]) == sorted(texts)


def test_one_stream_read_by_two_threads_is_refused_or_whole(runner, resident) -> None:
    stream = runner.stream_stateless("The sky is", 60, **ENDLESS)
    chunks: list[str] = []

    def read() -> None:
        while True:
            try:
                chunk = next(stream)
            except ContextBusyError:
                continue
            except StopIteration:
                return
            chunks.append(chunk.text)

    with ThreadPoolExecutor(2) as pool:
        for call in [pool.submit(read) for _ in range(2)]:
            call.result()
    assert sorted("".join(chunks)) == sorted(stream.completion.text)


def test_request_is_watched_by_a_thread_while_another_computes(runner, resident) -> None:
    sequence = inside.context(runner).new_sequence()
    sequence.append(runner.tokenize("The sky is"))
    sampler = GenerationParams(seed=1, ignore_eos=True)
    request = Request(sequence, sampler=sampler, max_tokens=50)
    with ThreadPoolExecutor() as pool:
        computing = pool.submit(request.run)
        lengths = [0]
        while not computing.done():
            lengths.append(len(request.tokens))
            assert len(request.text) >= 0
        computing.result()
    assert lengths == sorted(lengths)
    assert len(request.tokens) == 50
    sequence.close()


def test_error_in_one_thread_is_no_error_in_another(runner, resident) -> None:
    expected = runner.generate_stateless(SERIES[0], 30, **ENDLESS).text

    def fail() -> int:
        failures = 0
        for prompt in ("", [10**6], "word " * 2000):
            try:
                runner.generate_stateless(prompt, 5)
            except LlamaError:
                failures += 1
        return failures

    with ThreadPoolExecutor() as pool:
        good = pool.submit(runner.generate_stateless, SERIES[0], 30, **ENDLESS)
        assert pool.submit(fail).result() == 3
        assert good.result().text == expected
    assert resident() == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_conversation_is_cancelled_by_another_thread(
    runner: LlamaRunner, streaming: bool
) -> None:
    with runner.session() as session, ThreadPoolExecutor(1) as pool:
        session.cancel()  # nothing to stop
        session.generate("1, 2, 3,", 4, temperature=0)
        n_before = session.info().used

        def generate() -> Completion:
            if not streaming:
                return session.generate("Why?", 900, **ENDLESS)
            stream = session.stream("Why?", 900, **ENDLESS)
            for _ in stream:
                pass
            assert stream.completion is not None
            return stream.completion

        answer = pool.submit(generate)
        while len(inside.sequence(session)) < n_before + 10:
            time.sleep(0.01)
        session.cancel()
        completion = answer.result()
        assert completion.finish_reason == "cancelled"
        assert 0 < len(completion.tokens) < 900
        assert session.info().used > n_before + 5
        session.cancel()
        assert session.generate(" 4, 5,", 4, **ENDLESS).finish_reason == "length"


@pytest.mark.parametrize("how", ["close", "cancel", "drop", "block"])
def test_a_stream_that_has_not_begun_leaves_nothing_behind(runner: LlamaRunner, how: str) -> None:
    with runner.session() as session:
        session.generate([{"role": "user", "content": "Hi."}], 4, **ENDLESS)
        before = session.messages, session.info()
        stream = session.stream([{"role": "user", "content": "Why?"}], 9, **ENDLESS)
        if how == "close":
            stream.close()
        elif how == "cancel":
            session.cancel()
        elif how == "block":
            with stream:
                pass
        else:
            del stream
        assert (session.messages, session.info()) == before


def test_a_call_that_is_cancelled_in_its_prompt_leaves_nothing_behind(model_path: Path) -> None:
    # One token at a time: reading the prompt takes far longer than it takes to be scheduled.
    with (
        LlamaRunner(model_path, n_ctx=1024, n_threads=1, n_ubatch=1) as runner,
        runner.session() as session,
        ThreadPoolExecutor(1) as pool,
    ):
        session.generate("1, 2, 3,", 4, temperature=0)
        before = session.info()
        answer = pool.submit(session.generate, "word " * 900, 900, **ENDLESS)
        while not inside.is_computing(session) and not answer.done():
            time.sleep(1e-4)
        session.cancel()
        completion = answer.result()
        assert (completion.finish_reason, completion.tokens) == ("cancelled", ())
        after = session.info()
        assert (after.used, after.spans) == (before.used, before.spans)


@pytest.mark.parametrize("where", [(ChatFormat, "render"), (Collector, "take_opening")])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_call_is_cancelled_before_there_is_anything_to_compute(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str], streaming: bool
) -> None:
    owner, name = where
    method = getattr(owner, name)
    with runner.session() as session:
        session.generate(QUESTION, 4, **ENDLESS)
        before = session.info().spans

        def cancelled(self, *args, **options):
            session.cancel()
            return method(self, *args, **options)

        monkeypatch.setattr(owner, name, cancelled)
        if streaming:
            stream = session.stream(QUESTION, 20, **ENDLESS)
            assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
        else:
            completion = session.generate(QUESTION, 20, **ENDLESS)
            assert (completion.finish_reason, completion.tokens) == ("cancelled", ())
        assert session.info().spans == before
        monkeypatch.undo()
        assert session.generate(QUESTION, 4, **ENDLESS).finish_reason == "length"


def test_a_stream_that_rests_because_its_context_is_full_is_cancelled(python) -> None:
    answer = python(
        """
        runner = new_runner(n_ctx=256)
        session = runner.session()
        for i in range(5):
            session.generate([{"role": "user", "content": f"Number {i}"}], 20, **ENDLESS)
        stream = session.stream([{"role": "user", "content": "Why?"}], 400, **ENDLESS)
        for chunk in stream:
            if inside.request(stream).paused:
                session.cancel()
        print(chunk.finish_reason, session.messages[-1]["content"] == stream.completion.text)
        """
    )
    assert answer == "cancelled True\n"


def test_a_stream_at_rest_is_cancelled(runner: LlamaRunner) -> None:
    with runner.session() as session:
        stream = session.stream("Why?", 900, **ENDLESS)
        first = next(stream).text
        with pytest.raises(ContextBusyError):
            session.generate("a", 1)
        session.cancel()
        assert session.generate("a", 1, **ENDLESS).finish_reason == "length"
        rest = list(stream)
        assert rest[-1].finish_reason == "cancelled"
        assert stream.completion is not None
        assert stream.completion.text == first + "".join(chunk.text for chunk in rest)
