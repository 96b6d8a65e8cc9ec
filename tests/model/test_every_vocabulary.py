"""Conversations with each of llama.cpp's vocabularies: what is counted, and what stays.

Some do not give a text back byte for byte: they write spaces as U+2581, normalise, put a space
before a text, or lack characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_runner import LlamaRunner, Session
from tests import inside
from tests.model.talk import assistant, greedy, question, user
from tests.model.tiny_models import write_model

MODELS = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models"
# They drop accents, white space and what they do not know.
LOSSY = {"ggml-vocab-bert-bge", "ggml-vocab-nomic-bert-moe"}
# In one order, so that each model is written and loaded once.
VOCABULARIES = sorted(
    MODELS.glob("ggml-vocab-*.gguf"), key=lambda path: (path.stem in LOSSY, path.stem)
)
LOSSLESS = [path for path in VOCABULARIES if path.stem not in LOSSY]
# Markers that most of the vocabularies spell with several tokens.
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

pytestmark = pytest.mark.skipif(
    not VOCABULARIES, reason=f"no vocabularies in {MODELS}: a build from a checkout puts them there"
)

texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    | st.sampled_from(["▁▂▃", "▁", " ▁ ", "  a", "▁b ", "①½", "é", "e\u0301", "\0", "\t\n", "漢"]),
    min_size=1,
    max_size=4,
).map("".join)


def each(vocabularies: list[Path]) -> pytest.MarkDecorator:
    """Run a test with a runner on each of these vocabularies."""
    ids = [path.stem.removeprefix("ggml-vocab-") for path in vocabularies]
    return pytest.mark.parametrize("runner", vocabularies, ids=ids, indirect=True, scope="module")


@pytest.fixture(scope="module")
def runner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaRunner]:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, vocabulary=request.param)
    with LlamaRunner(path, n_ctx=2048, n_threads=1, chat_template=TEMPLATE) as runner:
        yield runner
    path.unlink()


def check_sum(session: Session) -> None:
    assert sum(span.tokens for span in session.info().spans) == len(inside.sequence(session))


@each(VOCABULARIES)
@settings(max_examples=3, deadline=None)
@given(said=st.lists(texts, min_size=1, max_size=4))
def test_spans_add_up_and_turns_are_evicted_whole(runner: LlamaRunner, said: list[str]) -> None:
    with runner.session() as session:
        said = [f"{i}. {text}" for i, text in enumerate(said)]
        for text in said:
            session.generate(question(text), 3, **greedy(ignore_eos=True))
            check_sum(session)
        report = session.gc(0.0)
        check_sum(session)
        assert report.spans_removed == 2 * (len(said) - 1)
        assert [m["role"] for m in session.messages] == ["user", "assistant"]
        assert session.messages[0] == user(said[-1])
        n_left = len(inside.sequence(session))
        # The conversation that is left, given whole, is what is in memory.
        with runner.session() as fresh:
            fresh.generate(question(said[-1]), 1, **greedy(ignore_eos=True))
            n_fresh = fresh.info().spans[0].tokens
        assert abs(session.info().spans[0].tokens - n_fresh) <= 1
        assert n_left >= n_fresh


@each(LOSSLESS)
@settings(max_examples=15, deadline=None)
@given(texts)
def test_tokens_spell_the_text_that_they_were_made_of(runner: LlamaRunner, text: str) -> None:
    text = "[user]" + text
    tokens = runner.tokenize(text, add_special=False)
    # Some vocabularies have no tokens for some bytes, and leave those out.
    assume(runner.detokenize(tokens).removeprefix(" ") == text)
    with runner.session() as session:
        session.append(tokens)
        ends = inside.sequence(session).match_text(0, text.encode())
        assert len(ends) == len(inside.sequence(session))
        assert ends[-1] == len(text.encode())


@each(LOSSLESS)
def test_a_sparkline_is_counted_and_found_again(runner: LlamaRunner) -> None:
    """To a SentencePiece vocabulary, its first bar is a space."""
    given = [user("Draw ▁▂▃ for me."), assistant("Here: ▁▂▃▁."), user("And ▃▂▁?")]
    with runner.session() as session:
        session.generate(given, 1, **greedy(ignore_eos=True))
        check_sum(session)
        assert all(span.tokens for span in session.info().spans)
        again = session.generate(given, 1, **greedy(ignore_eos=True))
        assert again.receipt.recomputed <= 1
        assert session.gc(0.0).spans_removed == 2
        assert session.messages[:-1] == [given[-1]]
