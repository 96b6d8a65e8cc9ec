"""Counting, many texts at once, texts that grow, tokens that come one by one, special tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_runner import Detokenizer, LlamaRunner, build_batch, create_sampler
from llama_runner.errors import (
    ClosedError,
    InvalidParameterError,
    TokenizationError,
    UnsupportedModelError,
)
from tests.model.oracle import ROOT
from tests.model.plain_tokenizer import ATOMS

MODELS = ROOT / "llama_cpp_src" / "llama.cpp" / "models"

texts = st.lists(st.sampled_from(ATOMS), max_size=30).map("".join)
long_texts = st.tuples(texts, st.integers(50, 400)).map(lambda made: ("So, " + made[0]) * made[1])


@pytest.fixture(scope="module")
def vocabulary(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, vocab_only=True) as vocabulary:
        yield vocabulary


def array_of_bytes(data: bytes) -> array[int]:
    return array("B", data)


def whole(vocabulary: LlamaRunner, text: str | bytes, **options: bool) -> list[int]:
    """What the core makes of a text that it has not seen before."""
    return list(vocabulary.model.vocab.tokenize(text, **options).tolist())


# ---- counting, many at once --------------------------------------------------------------------


@settings(deadline=None)
@given(given_texts=st.lists(texts | texts.map(str.encode), max_size=8), as_whole=st.booleans())
def test_many_texts_are_tokenised_as_each_would_be(
    vocabulary: LlamaRunner, given_texts: list[str | bytes], as_whole: bool
) -> None:
    options = {"add_special": as_whole, "parse_special": as_whole}
    expected = [whole(vocabulary, text, **options) for text in given_texts]
    found = vocabulary.tokenize_batch(iter(given_texts), **options)
    assert [tokens.tolist() for tokens in found] == expected
    assert all(tokens.dtype == np.int32 and tokens.ndim == 1 for tokens in found)
    counts = [vocabulary.count_tokens(text, **options) for text in given_texts]
    assert counts == [len(tokens) for tokens in expected]


def test_a_large_batch_on_all_processors(vocabulary: LlamaRunner) -> None:
    source = Path(__file__).read_text()
    parts = [source[at : at + 3000] for at in range(0, len(source), 7)]
    found = vocabulary.tokenize_batch(parts)
    assert [tokens.tolist() for tokens in found] == [whole(vocabulary, part) for part in parts]


def test_threads_may_share_a_tokenizer(model_path: Path) -> None:
    source = Path(__file__).read_text()
    parts = [source[at : at + 6000] for at in range(0, len(source), 50)]
    with LlamaRunner(model_path, vocab_only=True) as fresh, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh.tokenize, parts))
        assert [tokens.tolist() for tokens in found] == [whole(fresh, part) for part in parts]


@pytest.mark.parametrize("wrong", [None, 3, ["a"], np.array([504, 3575]), array("u", "a")])
def test_a_value_that_is_not_text_is_refused(vocabulary: LlamaRunner, wrong: Any) -> None:
    for call in (
        vocabulary.tokenize,
        vocabulary.count_tokens,
        lambda text: vocabulary.tokenize_batch([text]),
    ):
        with pytest.raises(TokenizationError, match="must be str or bytes"):
            call(wrong)


@pytest.mark.parametrize("wrong", [None, 3, "abc", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_one_text_is_no_list_of_texts(vocabulary: LlamaRunner, wrong: Any) -> None:
    with pytest.raises(TokenizationError, match=f"list of texts.*{type(wrong).__name__}"):
        vocabulary.tokenize_batch(wrong)


class Name(str):
    """Not str itself."""


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, np.bytes_, array_of_bytes, Name])
def test_text_in_any_form(vocabulary: LlamaRunner, form: Callable[[Any], Any]) -> None:
    for text in ("So, näive 漢字", "So, näive 漢字. " * 1000):  # the second is kept
        given_text = form(text) if form is Name else form(text.encode())
        expected = whole(vocabulary, text)
        assert vocabulary.tokenize(given_text).tolist() == expected
        assert vocabulary.count_tokens(given_text) == len(expected)
        assert vocabulary.tokenize_batch([given_text])[0].tolist() == expected


def test_a_text_that_is_changed_afterwards(vocabulary: LlamaRunner) -> None:
    text = bytearray(b"some words " * 1000)
    before = vocabulary.tokenize(text).tolist()
    text[:4] = b"many"
    assert vocabulary.tokenize(text).tolist() == whole(vocabulary, bytes(text)) != before


def test_one_wrong_text_of_many_is_named(vocabulary: LlamaRunner) -> None:
    with pytest.raises(TokenizationError, match="lone surrogate at index 1"):
        vocabulary.tokenize_batch(["a", "b\ud800"])


def test_why_a_text_is_too_long(vocabulary: LlamaRunner) -> None:
    words, letters = b"some words " * 500_000, b"a" * 5_500_000
    assert vocabulary.count_tokens(words) == 1_000_001
    for text, cause in ((words + b"\xff", "no UTF-8"), (letters, "break it up with spaces")):
        with pytest.raises(TokenizationError, match=f"it has {len(text)} bytes .*{cause}"):
            vocabulary.tokenize(text)


# ---- texts that grow ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(start=long_texts, appended=st.lists(texts | long_texts, max_size=5), special=st.booleans())
def test_a_grown_text_has_the_tokens_of_the_whole(
    vocabulary: LlamaRunner, start: str, appended: list[str], special: bool
) -> None:
    text = start
    for more in ["", *appended]:
        text += more
        for given_text in (text, text.encode()):
            expected = whole(vocabulary, given_text, parse_special=special)
            assert vocabulary.tokenize(given_text, parse_special=special).tolist() == expected
            assert vocabulary.count_tokens(given_text, parse_special=special) == len(expected)


def test_only_what_was_appended_is_tokenised(vocabulary: LlamaRunner) -> None:
    vocab = vocabulary.model.vocab
    source = Path(__file__).read_text()
    transcript = source * (30_000 // len(whole(vocabulary, source)) + 1)
    known = vocab.read(transcript)
    assert len(known) >= 30_000
    assert known.n_reused == 0
    for turn in range(20):
        transcript += f"<|im_start|>user\nAnd {turn}?<|im_end|>\n"
        grown = vocab.read(transcript, known)
        assert len(known) - 20 <= grown.n_reused <= len(known)
        assert grown.tokens.tolist() == whole(vocabulary, transcript)
        known = grown


def test_conversations_take_turns_and_stay_known(vocabulary: LlamaRunner) -> None:
    talks = [f"Conversation {i}. " + "Some words are said, and others. " * 200 for i in range(3)]
    for turn in range(5):
        for i in range(len(talks)):
            talks[i] += f"Turn {turn}! "
            assert vocabulary.tokenize(talks[i]).tolist() == whole(vocabulary, talks[i])


def test_the_cache_of_pieces_is_bounded(vocabulary: LlamaRunner) -> None:
    def kept() -> list[int]:
        return [known.n_bytes for _, known in vocabulary.tokenizer._kept]

    vocabulary.tokenizer.forget()
    grown = "Some words are said, and others. " * 2000
    vocabulary.tokenize(grown)
    too_large = grown * 200
    for _ in range(2):
        assert vocabulary.count_tokens(too_large) > 0
    assert kept() == [len(grown)]
    for i in range(40):
        vocabulary.count_tokens(f"{i} " * 200_000, add_special=i % 2 > 0)
    assert 1 < len(kept()) <= 16
    assert sum(kept()) <= 8 * 2**20
    vocabulary.tokenizer.forget()
    assert kept() == []


# ---- tokens that come one by one ---------------------------------------------------------------


@settings(deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 60)), special=st.booleans())
def test_detokenizing_bit_by_bit_gives_the_whole_text(
    vocabulary: LlamaRunner, text: str, cuts: list[int], special: bool
) -> None:
    tokens = vocabulary.tokenize(text)
    detokenizer = vocabulary.tokenizer.detokenizer(unparse_special=special)
    expected = vocabulary.tokenizer.detokenize(tokens, unparse_special=special)
    for _ in range(2):  # the second time shows that finish() begins anew
        found = [detokenizer.feed(some) for some in np.split(tokens, sorted(cuts))]
        assert "".join([*found, detokenizer.finish()]) == expected


def test_no_character_is_cut(vocabulary: LlamaRunner) -> None:
    text = "naïve 😀 漢字 👩\u200d🚀 हिन्दी"
    tokens = vocabulary.tokenize(text, add_special=False)
    assert len(tokens) > len(text.split())
    detokenizer = Detokenizer(vocabulary.model.vocab)
    pieces = [detokenizer.feed(token) for token in tokens]
    assert "" in pieces  # a part of a character waits for the rest
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert detokenizer.finish() == ""


def test_half_a_character_at_the_end_is_replaced(vocabulary: LlamaRunner) -> None:
    tokens = vocabulary.tokenize("😀", add_special=False).tolist()
    assert len(tokens) > 1
    detokenizer = Detokenizer(vocabulary.model.vocab)
    assert detokenizer.feed(tokens[:-1]) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.feed(tokens) == "😀"


@pytest.mark.skipif(not MODELS.exists(), reason="needs the vocabularies of a checkout's llama.cpp")
def test_the_space_before_a_text_is_no_part_of_it() -> None:
    with LlamaRunner(MODELS / "ggml-vocab-llama-spm.gguf", vocab_only=True, validate=False) as spm:
        for text in ("Hello world", " Hello", "  two", "", " "):
            tokens = spm.tokenize(text, add_special=False)
            assert spm.detokenize(tokens) == text
            detokenizer = spm.tokenizer.detokenizer()
            pieces = [detokenizer.feed([]), *map(detokenizer.feed, tokens), detokenizer.finish()]
            assert "".join(pieces) == text


def test_ids_out_of_range_are_refused(vocabulary: LlamaRunner) -> None:
    for wrong in (-1, len(vocabulary.model.vocab), 2**40):
        for call in (vocabulary.detokenize, Detokenizer(vocabulary.model.vocab).feed):
            with pytest.raises(TokenizationError, match=f"{wrong} at index 1 is out of range"):
                call([5, wrong])


@pytest.mark.parametrize("wrong", [None, 1.5, True, "5", b"5", {}, [5, True], [5.0], [[5]]])
def test_a_value_that_is_not_a_token_is_refused(vocabulary: LlamaRunner, wrong: Any) -> None:
    detokenizer = vocabulary.tokenizer.detokenizer()
    if wrong != {}:
        with pytest.raises(TokenizationError, match="must be"):
            detokenizer.feed(wrong)
    vocab = vocabulary.tokenizer.vocab
    for call in (vocab.token_to_piece, vocab.is_eog, vocab.is_control):
        with pytest.raises(TokenizationError, match="must be integers"):
            call(wrong)
        for token in (-1, len(vocab), 2**70):
            with pytest.raises(TokenizationError, match=f"out of range.* 0 to {len(vocab) - 1}"):
                call(token)
    assert vocab.token_to_piece(np.int16(5)) == vocab.token_to_piece(5)


def test_a_detokenizer_takes_a_tokenizer_or_a_vocabulary(vocabulary: LlamaRunner) -> None:
    text = "Some words"
    tokens = vocabulary.tokenize(text, add_special=False).tolist()
    for source in (vocabulary.tokenizer, vocabulary.tokenizer.vocab):
        assert Detokenizer(source).feed(token for token in tokens) == text
    with pytest.raises(InvalidParameterError, match=r"vocab.*got LlamaRunner"):
        Detokenizer(vocabulary)  # type: ignore[arg-type]


def test_special_tokens_may_be_left_out(vocabulary: LlamaRunner) -> None:
    tokens = vocabulary.tokenize("Hi<|im_end|>")
    assert vocabulary.detokenize(tokens) == "Hi<|im_end|>"
    assert vocabulary.detokenize(tokens, unparse_special=False) == "Hi"


# ---- special tokens ----------------------------------------------------------------------------


def test_special_tokens_have_names(vocabulary: LlamaRunner) -> None:
    vocab = vocabulary.tokenizer.vocab
    names = {name: getattr(vocab, name) for name in ("bos", "eos", "eot", "pad", "nl")}
    pieces = {name: vocab.token_to_piece(token) for name, token in names.items() if token}
    assert pieces["eos"] == b"<|im_end|>"
    assert pieces["nl"] == b"\n"
    assert vocab.is_eog(vocab.eos)
    assert vocab.is_control(vocab.eos)
    assert vocab.token_to_piece(vocab.eos, special=False) == b""
    (word,) = vocabulary.tokenize("the", add_special=False)
    assert not vocab.is_eog(word)
    assert not vocab.is_control(word)


@pytest.mark.skipif(not MODELS.exists(), reason="needs the vocabularies of a checkout's llama.cpp")
def test_tokens_that_fill_in_the_middle() -> None:
    path = MODELS / "ggml-vocab-starcoder.gguf"
    with LlamaRunner(path, vocab_only=True, validate=False) as runner:
        vocab = runner.tokenizer.vocab
        found = [vocab.token_to_piece(t) for t in (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid)]
        assert found == [b"<fim_prefix>", b"<fim_suffix>", b"<fim_middle>"]
        assert vocab.mask is None


# ---- a vocabulary alone ------------------------------------------------------------------------


def test_a_vocabulary_alone_refuses_to_generate(vocabulary: LlamaRunner) -> None:
    calls = (
        vocabulary.generate_stateless,
        vocabulary.stream_stateless,
        vocabulary.generate_stateful,
    )
    for generate in calls:
        with pytest.raises(
            UnsupportedModelError, match="vocab_only=True: it can tokenize but not generate"
        ):
            generate("Hello", 1)


def test_a_closed_runner_tokenises_no_more(model_path: Path) -> None:
    with LlamaRunner(model_path, vocab_only=True) as runner:
        text = "some words " * 1000
        runner.tokenize(text)
        tokenizer = runner.tokenizer
    for call in (runner.tokenize, runner.count_tokens, lambda text: runner.tokenize_batch([text])):
        with pytest.raises(ClosedError):
            call(text)
    for call in (tokenizer.detokenizer().feed, tokenizer.vocab.is_eog):
        with pytest.raises(ClosedError):
            call(5)
    with pytest.raises(ClosedError):
        len(tokenizer.vocab)
    assert repr(tokenizer.vocab).endswith("(closed)>")


# ---- for those who run a model by themselves ---------------------------------------------------


def test_a_batch_has_positions_sequences_and_wanted_logits() -> None:
    batch = build_batch([[1, 2, 3], np.array([4], np.int64), []], positions=[0, 5, 0])
    assert batch.tokens.tolist() == [1, 2, 3, 4]
    assert batch.positions.tolist() == [0, 1, 2, 5]
    assert batch.sequence_ids.tolist() == [0, 0, 0, 1]
    assert batch.logits.tolist() == [False, False, True, True]
    assert len(batch) == 4
    assert {batch.tokens.dtype, batch.positions.dtype, batch.sequence_ids.dtype} == {
        np.dtype(np.int32)
    }
    assert build_batch([[1, 2]], logits="all").logits.tolist() == [True, True]
    assert build_batch([[1, 2]], logits="none").logits.tolist() == [False, False]
    assert len(build_batch([])) == 0


@pytest.mark.parametrize(
    "positions", [[0], [0, -1], [0, 1, 2], [0, 2**31 - 1], [0, 1.0], [0, True], [0, None], 5]
)
def test_positions_must_fit_the_sequences(positions: Any) -> None:
    with pytest.raises(InvalidParameterError, match="positions: "):
        build_batch([[1], [2, 3]], positions=positions)


def test_the_last_position() -> None:
    last = 2**31 - 1
    batch = build_batch([[1, 2], []], positions=np.array([last - 1, last]))
    assert batch.positions.tolist() == [last - 1, last]


WRONG_SEQUENCES = [
    (None, InvalidParameterError, "sequences: must be a list"),
    ("ab", TokenizationError, "sequence of integers"),
    ([1, 2], TokenizationError, "sequence of integers"),
    ([np.array([2**40])], TokenizationError, "token id 1099511627776 at index 0"),
    ([[1], [2, -5]], TokenizationError, r"sequences\[1\]: token id -5 at index 1"),
    ([1, 2], TokenizationError, r"sequences\[0\]: .*put it in a list"),
    ([[1], [2], "x"], TokenizationError, r"sequences\[2\]: "),
    ([np.zeros((2, 2), np.int32)], TokenizationError, "must have one dimension, not 2"),
    ([[1.7]], TokenizationError, "must be integers"),
    ([[True]], TokenizationError, "must be integers"),
    ([[[1]]], TokenizationError, "must be integers"),
]


@pytest.mark.parametrize(("sequences", "kind", "message"), WRONG_SEQUENCES)
def test_a_batch_of_values_that_are_not_tokens_is_refused(
    sequences: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        build_batch(sequences)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", b"b", 5], r"texts\[2\]: .*got int"),
        (["a", "\ud800", "\ud801"], r"texts\[1\]: .*lone surrogate"),
        (["\ud800", np.zeros(3, np.float32)], r"texts\[1\]: .*got ndarray"),
    ],
)
def test_of_many_texts_the_one_that_is_not_text_is_named(
    vocabulary: LlamaRunner, texts: list[Any], message: str
) -> None:
    for many in (texts, iter(texts)):
        with pytest.raises(TokenizationError, match=message) as caught:
            vocabulary.tokenize_batch(many)
        assert caught.value.field == "texts"


@pytest.mark.parametrize("logits", ["bogus", True, None, ["last"], np.array([1, 2])])
def test_other_logits_are_refused(logits: Any) -> None:
    with pytest.raises(InvalidParameterError, match="logits: must be 'last', 'all' or 'none'"):
        build_batch([[1]], logits=logits)


def test_a_sampler_for_logits_of_ones_own() -> None:
    logits = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    assert create_sampler(temperature=0).sample(logits) == logits.argmax()
    same = [
        [sampler.sample(logits) for _ in range(20)]
        for sampler in (create_sampler(seed=7), create_sampler(seed=7))
    ]
    assert same[0] == same[1]
    assert len(set(same[0])) > 1
    with pytest.raises(InvalidParameterError, match="temperature"):
        create_sampler(temperature=-1)
