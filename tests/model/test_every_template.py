"""Conversations with each of llama.cpp's chat templates: they never end, and keep what they should.

Each template gets a model of a few kilobytes whose vocabulary has the template's markers as control
tokens, as a real model of that family has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner._core import ChatTemplate, Model
from llama_runner.conversation.alignment import Alignment
from llama_runner.errors import ChatTemplateError, PromptTooLongError
from llama_runner.memory import summarize
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.tokens import Tokenizer
from tests import inside
from tests.model.talk import assistant, greedy, question, user
from tests.model.tiny_models import PIECES, write_model

FOLDER = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
TEMPLATES = sorted(FOLDER.glob("*.jinja"))
# Also between the wide bars of DeepSeek's templates.
MARKERS = re.compile("<[|\uff5c][^|\uff5c<>\\s]+[|\uff5c]>|</?[a-z_]+>|\\[/?[A-Z_]+\\]")
ROOM = 1024
# Enough to drop turns. By hand: LLAMA_RUNNER_TEST_TURNS=200.
N_TURNS = int(os.environ.get("LLAMA_RUNNER_TEST_TURNS", "14"))
SYSTEM = [{"role": "system", "content": "Be wise."}]

pytestmark = pytest.mark.skipif(
    not TEMPLATES, reason=f"no templates in {FOLDER}: a build from a checkout puts them there"
)


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda path: path.stem)
def runner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaRunner]:
    source = request.param.read_text()
    markers = sorted({*MARKERS.findall(source)} - {"<s>", "</s>", "<unk>", *PIECES})
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", control=markers)
    with Model(path, vocab_only=True) as model:
        chat = ChatFormat(Tokenizer(model.vocab), ChatTemplate(model, source))
        texts = (chat.text_of([*opening, user("a")]) for opening in ([], SYSTEM))
        n_header = max(len(model.vocab.tokenize(text)) for text in texts)
    with LlamaRunner(path, n_ctx=ROOM + 2 * n_header, n_threads=1, chat_template=source) as runner:
        yield runner
    path.unlink()


def history(n: int, *, thoughts: bool, padding: str = "") -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i in range(n):
        answer = assistant(f"It is {i}.{padding}")
        if thoughts:
            answer["reasoning_content"] = "Hmm."
        messages += [user(f"What is {i}?"), answer]
    return messages


def memory(runner: LlamaRunner, session: Session) -> str:
    return inside.chat(runner).vocab.detokenize(inside.ledger(session)).decode("utf-8", "replace")


def check_text(runner: LlamaRunner, session: Session) -> None:
    """The memory begins with what the template makes of the messages, up to the last answer."""
    *asked, _ = session.messages
    chat = inside.chat(runner)
    expected = chat.render(asked).data
    assert Alignment(inside.sequence(session), chat, 0, expected).n_bytes == len(expected)
    spans = session.info().spans
    assert sum(span.tokens for span in spans) == len(inside.sequence(session))
    for part in inside.parts(session):
        assert 0 <= (part.n_opening or 0) <= part.n_tokens


@pytest.mark.parametrize(
    ("system", "thoughts"), [(True, False), (False, True)], ids=["system", "thoughts"]
)
def test_the_turns_of_a_history_are_evicted_one_by_one(
    runner: LlamaRunner, system: bool, thoughts: bool
) -> None:
    opening = SYSTEM if system else []
    given = [*opening, *history(5, thoughts=thoughts), *question("And now?")]
    with runner.session() as session:
        session.generate(given, 1, **greedy())
        spans = session.info().spans
        roles = [span.role for span in spans if span.role != "system"]
        assert roles == ["user", "assistant"] * 6
        assert [span.turn for span in spans if span.role == "user"] == list(range(6))
        assert all(span.tokens for span in spans if span.role != "system")
        check_text(runner, session)

        n_first = sum(span.tokens for span in spans if span.turn == 0 and span.role != "system")
        planned = session.gc(0.0, dry_run=True)
        one = session.gc((session.info().used - n_first + 0.5) / session.info().n_ctx, dry_run=True)
        report = session.gc(0.0)
        assert (one.spans_removed, report.spans_removed) == (2, 10)
        assert (report.method, report.tokens_removed) == ("shift", planned.tokens_removed)
        assert session.messages[:-1] == [*opening, *question("And now?")]
        assert not system or "Be wise." in memory(runner, session)
        check_text(runner, session)


@pytest.mark.parametrize("system", [False, True], ids=["plain", "system"])
def test_a_conversation_never_ends(runner: LlamaRunner, system: bool) -> None:
    n_collections = 0
    with runner.session("Be wise." if system else None) as session:
        padding = "x" * (session.info().n_ctx // 12)
        for i in range(N_TURNS):
            asked = question(f"Question {i}: what is {i} plus {i}? {padding}")
            n_before = len(session.messages)
            completion = session.generate(asked, 8, **greedy(ignore_eos=True))
            info = session.info()
            check_text(runner, session)
            assert session.messages[-2] == asked[0]
            assert not system or "Be wise." in memory(runner, session)
            if len(session.messages) < n_before + 2:
                n_collections += 1
                assert info.state == "cleaned"
            # The last answer may look different once it is past, and so may its question.
            newest = sum(s.tokens for s in info.spans if s.turn >= info.spans[-1].turn - 1)
            assert completion.receipt.recomputed <= newest + len(completion.tokens) or i == 0
    assert n_collections >= 1


def test_a_long_history_is_taken_without_its_oldest_turns(runner: LlamaRunner) -> None:
    with runner.session() as session:
        padding = "x" * (session.info().n_ctx // 25)
        given = [*SYSTEM, *history(40, thoughts=False, padding=padding), *question("And now?")]
        session.generate(given, 1, **greedy())
        left = session.messages
        assert left[0] == SYSTEM[0]
        assert 3 < len(left) < len(given)
        assert left[1:-1] == given[-(len(left) - 2) :]
        check_text(runner, session)


def say_turns(session: Session, n: int) -> None:
    session.generate(
        [*SYSTEM, *history(n - 1, thoughts=False), *question("And now?")], 1, **greedy()
    )


def test_a_pinned_turn_stays_between_evicted_turns(runner: LlamaRunner) -> None:
    with runner.session() as session:
        say_turns(session, 5)
        [pinned] = [i for i, span in enumerate(session.info().spans) if span[::4] == ("user", 2)]
        session.pin(pinned)
        report = session.gc(0.0)
        assert (report.method, report.spans_removed) == ("shift", 6)
        turn = history(5, thoughts=False)[4:6]
        assert session.messages[:-1] == [*SYSTEM, *turn, *question("And now?")]
        check_text(runner, session)


def test_pinned_spans_that_leave_no_room_are_an_error(runner: LlamaRunner) -> None:
    with runner.session() as session:
        say_turns(session, 3)
        for i in range(len(session.info().spans)):
            session.pin(i)
        assert session.gc(0.0).method == "none"
        before = session.messages
        with pytest.raises(PromptTooLongError, match="unpin"):
            session.generate(question("x" * session.info().n_ctx), 1, **greedy())
        assert session.messages == before
        session.generate(question("And?"), 1, **greedy())
        check_text(runner, session)


@pytest.mark.parametrize("summary", ["They counted.", " \n", ""])
def test_a_summary_stands_for_the_evicted_turns(runner: LlamaRunner, summary: str) -> None:
    with runner.session() as session:
        say_turns(session, 6)
        before = session.messages
        try:
            report = session.gc(0.0, policy=summarize(lambda text: summary))
        except ChatTemplateError:  # the template takes no message there
            assert session.messages == before
            return
        assert report.spans_removed == 10
        roles = [span.role for span in session.info().spans if span.role != "system"]
        assert roles == ["summary"] * bool(summary.strip()) + ["user", "assistant"]
        assert not summary.strip() or summary in memory(runner, session)
        check_text(runner, session)
        session.generate(question("And?"), 1, **greedy())
        assert "Be wise." in memory(runner, session)
        check_text(runner, session)


def test_tool_results_are_evicted_alone(runner: LlamaRunner) -> None:
    said: list[dict[str, Any]] = [user("How warm is it?")]
    for i in range(3):
        function = {"name": "measure", "arguments": {"place": f"place {i}"}}
        call = {"type": "function", "id": f"call0000{i}", "function": function}
        result = {"role": "tool", "name": "measure", "tool_call_id": f"call0000{i}"}
        said += [{"role": "assistant", "content": "", "tool_calls": [call]}]
        said += [{**result, "content": f"{i} degrees"}]
    with runner.session() as session:
        try:
            session.generate([*SYSTEM, *said], 2, **greedy(ignore_eos=True))
        except ChatTemplateError:
            return  # the template knows no tools
        check_text(runner, session)
        session.gc(0.0, policy="tool_results")
        check_text(runner, session)
        assert session.messages[1] == said[0]
        assert "2 degrees" in str(session.messages)
        session.generate(question("And now?"), 2, **greedy(ignore_eos=True))
        session.gc(0.0)
        check_text(runner, session)
