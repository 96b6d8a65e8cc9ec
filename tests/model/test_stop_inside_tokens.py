"""A stop string that begins inside a token: memory holds what was shown, no more and no less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_runner import Completion, LlamaRunner, Session
from tests import inside
from tests.model.tiny_models import FIRST_BYTE, N_VOCAB, piece, write_model

KINDS = ["plain", "swa", "recurrent", "hybrid", "mrope"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPT = "abc the a"
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
# Any of the model's sounds, all about as likely.
SOUP = {"temperature": 20.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
WORDS = ["a", "ab", "abc", "<|", "▁the", "漢字", "😀😀", "👩\u200d🚀", "\n"]
SOUNDS = [t for t in range(N_VOCAB) if piece(t).decode("utf-8", "replace").replace(" ", "▁")
          in WORDS]  # fmt: skip
SOUNDS += [FIRST_BYTE + byte for byte in "é€".encode()]


@pytest.fixture(scope="module")
def babblers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LlamaRunner]]:
    """Models that say words of several characters, one for each kind of memory."""
    folder = tmp_path_factory.mktemp("babblers")
    silent = sorted(set(range(N_VOCAB)) - set(SOUNDS))
    runners = {}
    for kind in KINDS:
        path = write_model(folder / f"{kind}.gguf", kind, suppressed=silent)
        runners[kind] = LlamaRunner(
            path, n_ctx=512, n_seq_max=2, n_threads=1, chat_template=TEMPLATE, validate=False
        )
    yield runners
    for runner in runners.values():
        runner.close()


def in_memory(runner: LlamaRunner, session: Session) -> str:
    return runner.detokenize(inside.ledger(session))


def answer(session: Session, prompt: Any, streaming: bool, n: int, **options: Any) -> Completion:
    if not streaming:
        return session.generate(prompt, n, **options)
    stream = session.stream(prompt, n, **options)
    text = "".join(chunk.text for chunk in stream)
    assert stream.completion is not None
    assert stream.completion.text == text
    return stream.completion


def assert_goes_on_as_computed_afresh(runner: LlamaRunner, session: Session) -> None:
    """Nothing of what was taken back is left in the cells."""
    ledger = inside.ledger(session)
    after = session.generate("abc", 6, **GREEDY)
    with runner.session() as fresh:
        fresh.append(ledger)
        assert fresh.generate("abc", 6, **GREEDY).tokens == after.tokens


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    streaming=st.booleans(),
    chat=st.booleans(),
    seed=st.integers(0, 1000),
    begin=st.integers(0, 60),
    length=st.integers(1, 8),
)
@example(kind="plain", streaming=False, chat=False, seed=0, begin=1, length=1)
@example(kind="recurrent", streaming=True, chat=True, seed=0, begin=2, length=6)
def test_memory_is_what_was_shown(
    babblers: dict[str, LlamaRunner],
    kind: str,
    streaming: bool,
    chat: bool,
    seed: int,
    begin: int,
    length: int,
) -> None:
    runner = babblers[kind]
    prompt: Any = [{"role": "user", "content": PROMPT}] if chat else PROMPT
    with runner.session() as session:
        free = session.generate(prompt, 24, seed=seed, **SOUP)
        session.clear()
        begin %= len(free.text)
        stop = free.text[begin : begin + length]
        if "\ufffd" in stop:  # half a character, which no string can name
            return
        cut = answer(session, prompt, streaming, 24, seed=seed, stop=stop, **SOUP)
        assert cut.text == free.text[: free.text.index(stop)]
        assert (cut.finish_reason, cut.stop_string) == ("stop", stop)
        shown = f"<user>{PROMPT}\n<assistant>" if chat else PROMPT
        text = in_memory(runner, session).removeprefix("<s>").removeprefix(" ")
        assert text == shown + cut.text
        info = session.info()
        assert sum(span.tokens for span in info.spans) == info.used == len(inside.sequence(session))
        assert cut.usage.completion_tokens == len(cut.tokens)
        if chat:
            assert session.messages[-1]["content"] == cut.text
            after = session.generate([{"role": "user", "content": "a"}], 2, **GREEDY)
            if "\ufffd" not in cut.text:  # bytes that are no character are found by no text
                assert after.receipt.first_difference is None
        else:
            assert_goes_on_as_computed_afresh(runner, session)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [0, 1])
def test_the_last_token_allowed_may_be_the_one(
    babblers: dict[str, LlamaRunner], kind: str, extra: int
) -> None:
    """``max_tokens`` is reached with the token that the stop string ends in, or just after."""
    runner = babblers[kind]
    with runner.session() as session:
        free = session.generate(PROMPT, 40, seed=4, **SOUP)
        n = next(i for i, token in enumerate(free.tokens) if piece(token) == "漢字".encode())
        before = b"".join(map(piece, free.tokens[:n])).decode("utf-8", "replace")
        word = piece(free.tokens[n]).decode()
        stop = word[1:]
        assert stop not in before
        session.clear()
        cut = session.generate(PROMPT, n + 1 + extra, seed=4, stop=stop, **SOUP)
        assert (cut.finish_reason, cut.text) == ("stop", before + word[0])
        assert in_memory(runner, session) == "<s> " + PROMPT + cut.text
        assert_goes_on_as_computed_afresh(runner, session)


@pytest.mark.parametrize("streaming", [False, True])
def test_with_a_vocabulary_of_byte_pairs(runner: LlamaRunner, streaming: bool) -> None:
    with runner.session() as session:
        cut = answer(session, "One, two, three,", streaming, 20, stop="five", temperature=0)
        assert cut.text == " four, "
        assert in_memory(runner, session) == "One, two, three, four, "
        session.append("five, six,")
        assert in_memory(runner, session) == "One, two, three, four, five, six,"
        after = session.generate(" seven,", 2)
        assert after.receipt.reused >= len(runner.tokenize("One, two, three, four,")) - 1
