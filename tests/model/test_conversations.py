"""Stateful generation: only what is new is computed, and nobody can tell from the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner.conversation.checkpoints import Checkpoint
from llama_runner.conversation.transcript import Transcript, TranscriptMark
from llama_runner.errors import DecodeError, LlamaError
from llama_runner.results import Completion, ContextInfo
from tests import inside
from tests.model.oracle import Oracle
from tests.model.talk import assistant, user
from tests.model.tiny_models import write_model

GREEDY: dict[str, Any] = {"temperature": 0.0}


QUESTIONS = [
    "What is the capital of Japan?",
    "And of Italy?",
    "Count from 1 to 8.",
    "Now count from 2 to 20 in steps of 2.",
    "Say the days of the week.",
]
LISTS = [
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "a, b, c, d, e, f, g, h, i, j",
    "one, two, three, four, five, six, seven",
    "A, B, C, D, E, F, G, H, I, J",
    "10, 20, 30, 40, 50, 60, 70",
]
SERIES = [
    "1, 2, 3, 4, 5,",
    " and in French: un, deux, trois, quatre,",
    "\nMonday, Tuesday, Wednesday,",
    "\nA, B, C, D, E,",
    "\n10, 20, 30, 40,",
]


def as_messages(_: LlamaRunner, i: int) -> Any:
    return [user(f"Repeat: {LISTS[i]}")]


def as_text(_: LlamaRunner, i: int) -> Any:
    return SERIES[i]


def as_token_ids(runner: LlamaRunner, i: int) -> Any:
    return runner.tokenize(SERIES[i], add_special=i == 0)


@pytest.mark.parametrize("prompt_of", [as_messages, as_text, as_token_ids])
def test_five_turns_equal_one_call_over_the_transcript(
    runner: LlamaRunner, oracle: Oracle, prompt_of: Callable[[LlamaRunner, int], Any]
) -> None:
    for i in range(5):
        completion = runner.generate_stateful(prompt_of(runner, i), 16, **GREEDY)
    whole = inside.ledger(runner)
    transcript, answer = whole[: completion.usage.prompt_tokens], completion.tokens
    assert tuple(whole[len(transcript) :]) == answer
    # In pieces the prompt is added up in another order; this answer does not depend on that.
    choices = oracle(transcript, 16)
    assert min(choice.margin for choice in choices) > 0.5
    assert answer == tuple(choice.token for choice in choices)
    assert runner.generate_stateless(transcript, 16, **GREEDY).tokens == answer


def test_only_what_is_new_is_computed(runner: LlamaRunner) -> None:
    for i, question in enumerate(QUESTIONS):
        used = runner.get_context_info().used
        completion = runner.generate_stateful([user(question)], 8, **GREEDY)
        receipt = completion.receipt
        # The answer's last token was sampled, and is decoded only now.
        assert receipt.reused == max(0, used - 1)
        assert receipt.reused + receipt.recomputed == completion.usage.prompt_tokens
        assert receipt.first_difference is None
        assert receipt.recomputed < 40
        info = runner.get_context_info()
        assert info.used == completion.usage.total + (completion.finish_reason == "stop")
        assert [span.turn for span in info.spans[1:]] == [t for t in range(i + 1) for _ in "qa"]
        assert_spans_are_in_order(info)


def assert_spans_are_in_order(info: ContextInfo) -> None:
    end = 0
    for span in info.spans:
        assert span.start == end
        end += span.tokens
    assert end == info.used


def test_messages_alone_or_with_all_that_came_before(runner: LlamaRunner) -> None:
    """A new message is added; with the answers among them, messages are the conversation."""
    alone = [runner.generate_stateful([user(question)], 8, **GREEDY) for question in QUESTIONS]
    in_memory = inside.ledger(runner)
    runner.clear_context()

    history: list[dict[str, str]] = []
    for question, expected in zip(QUESTIONS, alone, strict=True):
        history.append(user(question))
        completion = runner.generate_stateful(history, 8, **GREEDY)
        history.append(assistant(completion.text))
        assert completion.tokens == expected.tokens
        assert completion.receipt == expected.receipt
    assert inside.ledger(runner) == in_memory


def test_a_stateless_call_gets_the_same_prompt(runner: LlamaRunner) -> None:
    conversation = [
        {"role": "system", "content": "You count."},
        user("Count from 1 to 8."),
        assistant("1, 2, 3, 4, 5, 6, 7, 8"),
        user("Go on."),
    ]
    stateless = runner.generate_stateless(conversation, 8, **GREEDY)
    stateful = runner.generate_stateful(conversation, 8, **GREEDY)
    assert stateful.tokens == stateless.tokens
    assert stateful.usage == stateless.usage
    assert [span.role for span in runner.get_context_info().spans] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_an_edit_in_the_middle_recomputes_from_there(runner: LlamaRunner) -> None:
    conversation = [
        user("My name is Ada and I like the sea."),
        assistant("Hello Ada!"),
        user("I have a red boat."),
        assistant("How lovely."),
        user("Say the days of the week."),
    ]
    runner.generate_stateful(conversation, 8, **GREEDY)
    spans = runner.get_context_info().spans
    edited = [span for span in spans if span.role == "user"][1]

    conversation[2] = user("I have a green boat, as you know.")
    completion = runner.generate_stateful(conversation, 8, **GREEDY)
    # "I have a" is as it was.
    tokens = runner.tokenize("I have a", add_special=False)
    same = completion.receipt.first_difference
    assert same is not None
    assert inside.ledger(runner)[same - len(tokens) : same] == tokens.tolist()
    assert edited.start < same < edited.start + edited.tokens
    assert completion.receipt.reused == same
    assert completion.receipt.first_message == 2
    assert completion.receipt.recomputed == completion.usage.prompt_tokens - same
    assert_spans_are_in_order(runner.get_context_info())

    again = runner.generate_stateful(conversation, 8, **GREEDY)
    assert again.usage.prompt_tokens == completion.usage.prompt_tokens
    assert again.receipt.recomputed <= 5  # what opens the answer, or its last token
    assert again.tokens == completion.tokens
    assert runner.generate_stateless(conversation, 8, **GREEDY).usage == completion.usage


def test_a_shorter_conversation_forgets_the_rest(runner: LlamaRunner) -> None:
    conversation: list[dict[str, str]] = []
    for question in QUESTIONS[:3]:
        conversation.append(user(question))
        conversation.append(assistant(runner.generate_stateful(conversation, 8, **GREEDY).text))
    before = runner.get_context_info()
    # The second turn once more, with another third one.
    completion = runner.generate_stateful([*conversation[:4], user("Thanks.")], 8, **GREEDY)
    kept = [span for span in before.spans if span.turn < 2]
    opening = next(span for span in before.spans if span.turn == 2)
    assert completion.receipt.reused == completion.receipt.first_difference
    n_kept = sum(span.tokens for span in kept)
    assert n_kept <= completion.receipt.reused < n_kept + opening.tokens
    assert runner.generate_stateful([user("Bye.")], 8, **GREEDY).receipt.first_difference is None


def test_raw_text_and_messages_may_alternate(runner: LlamaRunner) -> None:
    first = runner.generate_stateful("Notes: the boat is red.", 4, **GREEDY)
    runner.generate_stateful([user("What colour is the boat?")], 8, **GREEDY)
    last = runner.generate_stateful("\nNotes: the sea is", 4, **GREEDY)
    info = runner.get_context_info()
    assert_spans_are_in_order(info)
    assert info.used == last.usage.total + (last.finish_reason == "stop")
    assert last.receipt.reused > first.usage.total
    text = runner.detokenize(inside.ledger(runner))
    assert text.startswith("Notes: the boat is red." + first.text)
    assert text.count("What colour is the boat?") == 1
    assert "\nNotes: the sea is" + last.text in text


def test_stop_strings_leave_nothing_of_themselves(runner: LlamaRunner) -> None:
    completion = runner.generate_stateful("1, 2, 3, 4,", 50, stop=" 9", **GREEDY)
    assert completion.finish_reason == "stop"
    assert completion.stop_string == " 9"
    assert completion.text == " 5, 6, 7, 8,"
    assert runner.detokenize(inside.ledger(runner)) == "1, 2, 3, 4, 5, 6, 7, 8,"
    # The memory is that of a conversation in which it was never said.
    assert runner.generate_stateful(" 9,", 3, **GREEDY).text == " 10"


# ---- errors ------------------------------------------------------------------------------------

BAD_CALLS: list[tuple[Any, dict[str, Any]]] = [
    ("", {}),
    ([], {}),
    ([10**7], {}),
    ([1, -1], {}),
    (["text"], {}),
    ("\ud800", {}),
    ("word " * 2000, {}),
    ([user("word " * 2000)], {}),
    ([{"content": "no role"}], {}),
    ([user("a"), {"role": "user"}], {}),
    ([user("a"), "b"], {}),
    ("hello", {"temperature": float("nan")}),
    ("hello", {"max_tokens": 0}),
    ("hello", {"unknown": 1}),
]


def snapshot(runner: LlamaRunner) -> tuple[list[int], ContextInfo, Sequence[Any]]:
    return inside.ledger(runner), runner.get_context_info(), inside.own_session(runner).messages


@pytest.mark.parametrize("prompt", [None, "The sea is", [user("Hello.")]])
def test_after_an_error_nothing_has_changed(runner: LlamaRunner, prompt: Any) -> None:
    expected: Completion | None = None
    if prompt is not None:
        runner.generate_stateful(prompt, 8, **GREEDY)
        expected = runner.generate_stateful("\n1, 2, 3,", 8, **GREEDY)
        runner.clear_context()
        runner.generate_stateful(prompt, 8, **GREEDY)
    before = snapshot(runner)
    for bad_prompt, options in BAD_CALLS:
        for generate in (runner.generate_stateful, runner.stream_stateful):
            with pytest.raises(LlamaError):
                generate(bad_prompt, **options)
            assert snapshot(runner) == before
    if expected is not None:
        completion = runner.generate_stateful("\n1, 2, 3,", 8, **GREEDY)
        assert completion.tokens == expected.tokens
        assert completion.receipt == expected.receipt


def test_an_error_that_comes_after_room_was_made_undoes_that(model_path: Path) -> None:
    with LlamaRunner(model_path, n_ctx=256, n_threads=1, gc_threshold=0.5) as runner:
        for i in range(6):
            runner.generate_stateful([user(f"The number {i}.")], 16, ignore_eos=True, **GREEDY)
        before = snapshot(runner)
        for n_words in (60, 120, 180, 200, 220, 240):
            try:
                runner.generate_stateful("word " * n_words, 1, **GREEDY)
            except LlamaError:
                assert snapshot(runner) == before
            else:
                runner.generate_stateful("and", 1, **GREEDY)
                before = snapshot(runner)


@pytest.fixture
def interrupted_undo(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Exceptions of signal handlers that come while an undo waits for another thread's turn."""
    due: list[BaseException] = []
    go_back = Transcript.go_back

    def interrupted(
        self: Transcript, mark: TranscriptMark, checkpoint: Checkpoint | None = None
    ) -> None:
        if due:
            raise due.pop()
        go_back(self, mark, checkpoint)

    monkeypatch.setattr(Transcript, "go_back", interrupted)
    return due


def test_an_undo_that_is_interrupted_is_done_by_the_next_call(
    runner: LlamaRunner, interrupted_undo: list[BaseException]
) -> None:
    runner.generate_stateful([user("Hello.")], 8, **GREEDY)
    before = snapshot(runner)
    for _ in range(2):
        interrupted_undo.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            runner.generate_stateful([user("word " * 2000)], 8, **GREEDY)
    assert runner.get_context_info() == before[1]
    assert snapshot(runner) == before


def test_a_failed_stream_is_undone_though_that_is_interrupted(
    tmp_path: Path, interrupted_undo: list[BaseException]
) -> None:
    path = write_model(tmp_path / "broken.gguf", broken=True)
    with LlamaRunner(path, n_ctx=256, n_threads=1, validate=False) as runner:
        session = runner.session()
        session.append("abc")
        before = session.info().spans
        stream = session.stream("the a", 4)
        interrupted_undo.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert session.info().spans == before
        stream = session.stream("the a", 4)
        with pytest.raises(DecodeError, match="the weights are broken"):
            next(stream)
        assert session.info().spans == before


# ---- beside other calls ------------------------------------------------------------------------


@pytest.mark.parametrize("n_seq_max", [1, 2])
@pytest.mark.parametrize("kv_layout", ["unified", "streams"])
def test_stateless_calls_do_not_show(model_path: Path, n_seq_max: int, kv_layout: Any) -> None:
    """Also where they take the conversation's place in the memory for a while."""
    with LlamaRunner(
        model_path, n_ctx=512 * n_seq_max, n_seq_max=n_seq_max, n_threads=1, kv_layout=kv_layout
    ) as runner:
        expected = [runner.generate_stateful(text, 12, **GREEDY).tokens for text in SERIES]
        runner.clear_context()
        answers = []
        for text in SERIES:
            answers.append(runner.generate_stateful(text, 12, **GREEDY).tokens)
            with runner.stream_stateless("Once upon a time", 20) as stream:
                next(stream)
                assert runner.generate_stateless("2, 4, 6, 8,", 8, **GREEDY).text == " 10, 12,"
        # The last answer is clear; before, a recomputed memory may round differently.
        assert answers[-1] == expected[-1]
        used = runner.get_context_info().used
        assert used == len(inside.ledger(runner))
