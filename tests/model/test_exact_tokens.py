"""Token ids are llama.cpp's to the last one, whatever the text, the vocabulary and the way to them.

llama.cpp's own tokenizer runs beside ours, in a small program. Ours cuts texts into pieces and
remembers them; a cut at a wrong place, a piece taken for another, or a special token overlooked
would show as a difference.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from llama_runner._core import Model, TokenizedText, Vocab
from llama_runner.errors import TokenizationError
from tests.model.oracle import ROOT, compile_oracle
from tests.model.plain_tokenizer import (
    ATOMS,
    SPECIAL,
    PlainTokenizer,
    byte_names,
    pair_merges,
    random_text,
    write_vocabulary,
)

TREE = ROOT / "llama_cpp_src" / "llama.cpp"
VOCABULARIES = sorted((TREE / "models").glob("ggml-vocab-*.gguf"))
SOURCE = TREE / "src" / "llama-vocab.cpp"
# By hand: LLAMA_RUNNER_TEST_TEXTS=1000.
N_TEXTS = int(os.environ.get("LLAMA_RUNNER_TEST_TEXTS", "100"))

pytestmark = pytest.mark.skipif(
    not VOCABULARIES, reason=f"nothing in {TREE}: a build from a checkout puts a tree there"
)


class Pair(NamedTuple):
    """A vocabulary, and llama.cpp with it."""

    vocab: Vocab
    plain: PlainTokenizer
    missing: str | None
    """Characters that the vocabulary cannot write; None if it changes texts beyond that."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return compile_oracle(tmp_path_factory.mktemp("tokenize"), "tokenize")
    except FileNotFoundError as error:
        pytest.skip(f"no static libraries to link with (make build): {error.filename}")


@pytest.fixture(scope="module", params=VOCABULARIES, ids=lambda path: path.stem)
def pair(request: pytest.FixtureRequest, program: Path) -> Iterator[Pair]:
    """Each vocabulary of the pinned tree."""
    path = request.param
    with Model(path, vocab_only=True) as model, PlainTokenizer(program, path) as plain:
        lossy = "bert" in path.stem  # drops accents and white space
        yield Pair(model.vocab, plain, None if lossy else missing_characters(model.vocab))


def missing_characters(vocab: Vocab) -> str:
    """Those of the atoms that have a byte for which there is no token."""
    pieces = {vocab.token_to_piece(token) for token in range(len(vocab))}
    letters = sorted(set("".join(ATOMS)))
    return "".join(c for c in letters if any(bytes([b]) not in pieces for b in c.encode()))


Way = tuple[bool, bool]
# With special tokens added and with those of the text read.
ALL_WAYS: list[Way] = [(False, False), (True, True), (True, False), (False, True)]


def check(
    vocab: Vocab, plain: PlainTokenizer, text: str | bytes, ways: Sequence[Way] = ALL_WAYS
) -> None:
    for add_special, parse_special in ways:
        tokens = vocab.tokenize(text, add_special=add_special, parse_special=parse_special)
        expected = plain(text, add_special=add_special, parse_special=parse_special)
        assert tokens.tolist() == expected, (text, add_special, parse_special)


def check_random_texts(vocab: Vocab, plain: PlainTokenizer, source: random.Random) -> None:
    """Check each of N_TEXTS in two of the four ways, by turns."""
    for i in range(N_TEXTS):
        check(vocab, plain, random_text(source), ALL_WAYS[2:] if i % 2 else ALL_WAYS[:2])


# ---- every vocabulary --------------------------------------------------------------------------


def test_texts_of_everything(pair: Pair) -> None:
    check_random_texts(pair.vocab, pair.plain, random.Random(1))


def test_prose_and_code(pair: Pair) -> None:
    vocab, plain, _ = pair
    for text in (Path(__file__).read_text(), (TREE / "LICENSE").read_text() * 3):
        # The second time all pieces are known.
        for _ in range(2):
            assert vocab.tokenize(text, add_special=False).tolist() == plain(
                text, parse_special=True
            )


def test_zeros_at_the_end(pair: Pair) -> None:
    for text in ("the", "the\0", "the\0\0", "\0", "\0\0", "the\0"):
        check(pair.vocab, pair.plain, text)


def test_bytes_that_are_no_text(pair: Pair) -> None:
    vocab, plain, _ = pair
    source = random.Random(2)
    for _ in range(N_TEXTS // 4):
        text = random_text(source).encode()
        at = source.randrange(len(text))
        broken = text[:at] + source.choice([b"\xff", b"\x80", b"\xe2\x82", b"\xc0\x80"]) + text[at:]
        check(vocab, plain, broken)


def grow(vocab: Vocab, source: random.Random, parse_special: bool) -> Iterator[TokenizedText]:
    """A text that is appended to, and now and then changed in its middle."""
    text, known = "", None
    for _ in range(12):
        if source.random() < 0.2 and text:
            text = text[: source.randrange(len(text))]
        text += random_text(source)
        known = vocab.read(text, known, parse_special=parse_special)
        yield known


@pytest.mark.parametrize("parse_special", [True, False])
def test_grown_texts(pair: Pair, parse_special: bool) -> None:
    vocab, plain, _ = pair
    source = random.Random(3)
    for _ in range(N_TEXTS // 20):
        for known in grow(vocab, source, parse_special):
            expected = plain(known.text, add_special=True, parse_special=parse_special)
            assert known.tokens.tolist() == expected, known.text


def test_a_text_that_is_cut_anywhere_and_grows_again(pair: Pair) -> None:
    vocab, plain, _ = pair
    source = random.Random(4)
    for _ in range(N_TEXTS // 20):
        text = random_text(source)
        expected = plain(text, add_special=True, parse_special=True)
        for at in source.sample(range(len(text) + 1), k=min(len(text), 20)):
            known = vocab.read(text, vocab.read(text[:at]))
            assert known.tokens.tolist() == expected, (text, at)


# ---- every pre-tokenizer -----------------------------------------------------------------------


def pre_tokenizers() -> dict[str, str]:
    """A name of each of llama.cpp's pre-tokenizers, by what the source calls it."""
    if not SOURCE.exists():
        return {}
    names = re.findall(
        r'tokenizer_pre == "([\w.-]+)"[^"]*?pre_type = LLAMA_VOCAB_PRE_TYPE_(\w+)',
        SOURCE.read_text(),
    )
    # "whitespace" needs another tokenizer than GPT-2's and is refused with it.
    return {kind: name for name, kind in names if kind != "WHITESPACE"}


PRE_TOKENIZERS = pre_tokenizers()


def test_the_pre_tokenizers_are_found() -> None:
    assert len(PRE_TOKENIZERS) >= 50
    assert PRE_TOKENIZERS["LLAMA3"]


@pytest.mark.parametrize("name", PRE_TOKENIZERS.values(), ids=PRE_TOKENIZERS)
def test_every_pre_tokenizer(name: str, program: Path, tmp_path: Path) -> None:
    merges = pair_merges(random.Random(5))
    path = write_vocabulary(
        tmp_path / "pairs.gguf",
        "gpt2",
        [*byte_names(), *(first + second for first, second in merges)],
        special=["<s>", "</s>", "<|im_start|>"],
        user_defined=["<mask>"],
        pre=name,
        merges=[f"{first} {second}" for first, second in merges],
        bos_token_id=256 + len(merges),
        eos_token_id=257 + len(merges),
    )
    source = random.Random(6)
    with Model(path, vocab_only=True) as model, PlainTokenizer(program, path) as plain:
        check_random_texts(model.vocab, plain, source)
        for known in grow(model.vocab, source, parse_special=True):
            expected = plain(known.text, add_special=True, parse_special=True)
            assert known.tokens.tolist() == expected, known.text


def test_a_pre_tokenizer_that_would_abort_is_refused(tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "white.gguf",
        "gpt2",
        byte_names(),
        pre="whitespace",
        merges=["a b"],
        bos_token_id=0,
        eos_token_id=1,
    )
    model = Model(path, vocab_only=True)
    with model, pytest.raises(TokenizationError, match="whitespace"):
        model.vocab.tokenize("a b")


# ---- other kinds of tokenizer ------------------------------------------------------------------


def compare(path: Path, program: Path, source: random.Random) -> None:
    with Model(path, vocab_only=True) as model, PlainTokenizer(program, path) as plain:
        check_random_texts(model.vocab, plain, source)
        for known in grow(model.vocab, source, parse_special=True):
            expected = plain(known.text, add_special=True, parse_special=True)
            assert known.tokens.tolist() == expected, known.text


# A token with a space behind a line break: llama.cpp must not be given lines as words then.
@pytest.mark.parametrize("over_lines", [True, False])
@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_with_tokens_of_any_shape(
    space_prefix: bool, over_lines: bool, program: Path, tmp_path: Path
) -> None:
    source = random.Random(7)
    atoms = [atom.replace(" ", "▁") for atom in ATOMS if atom != "\0"]
    letters = sorted({letter for atom in atoms for letter in atom})
    # Also over the ends of words, and with spaces inside.
    words = {"".join(source.choices(atoms, k=2)) for _ in range(400)}
    whole = [*atoms, *sorted(words), "\n▁"]
    if not over_lines:
        whole = [word for word in whole if "\n▁" not in word]
    hexes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = list(dict.fromkeys(["<unk>", "<s>", "</s>", *hexes, *letters, *whole]))
    path = write_vocabulary(
        tmp_path / "pieces.gguf",
        "llama",
        tokens,
        scores=[source.uniform(-9, 0) for _ in tokens],
        add_space_prefix=space_prefix,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    compare(path, program, source)


def test_unigram(program: Path, tmp_path: Path) -> None:
    source = random.Random(11)
    atoms = [atom.replace(" ", "▁") for atom in ATOMS if atom.isprintable()]
    letters = sorted({letter for atom in atoms for letter in atom})
    tokens = list(dict.fromkeys(["<pad>", "</s>", "<unk>", *letters, *atoms]))
    path = write_vocabulary(
        tmp_path / "unigram.gguf",
        "t5",
        tokens,
        user_defined=["<extra>"],
        scores=[source.uniform(-9, 0) for _ in [*tokens, "<extra>"]],
        eos_token_id=1,
        unknown_token_id=2,
    )
    compare(path, program, source)


# ---- special tokens ----------------------------------------------------------------------------


# By the model's name llama.cpp lets them swallow the white space behind them, or before <mask>.
@pytest.mark.parametrize(("name", "pre"), [("", "smollm"), ("phi-3", "smollm"), ("", "jina-v2-de")])
def test_special_tokens_that_overlap(name: str, pre: str, program: Path, tmp_path: Path) -> None:
    merges = pair_merges(random.Random(8))
    special = ["<a>", "a><b", "><>", "<b>", "<b><", "x x", " <c>", "  ", "<d>\n", "aaa", "aaaa"]
    special += ["</s>", "<unk>", "<s>", "<|endoftext|>", "<mask>", " <", "x ", " x", "\n "]
    path = write_vocabulary(
        tmp_path / "overlap.gguf",
        "gpt2",
        [*byte_names(), *(first + second for first, second in merges)],
        special=special[::2],
        user_defined=special[1::2],
        name=name,
        pre=pre,
        merges=[f"{first} {second}" for first, second in merges],
        bos_token_id=0,
        eos_token_id=1,
    )
    source = random.Random(9)
    atoms = [*special, "a", "<", ">", " ", "x", "b", "\n", "the"]
    with Model(path, vocab_only=True) as model, PlainTokenizer(program, path) as plain:
        for _ in range(5 * N_TEXTS):
            check(model.vocab, plain, "".join(source.choices(atoms, k=12)))
        for _ in range(N_TEXTS):
            text = "".join(source.choices([*special, "a", " ", "x", "the", "."], k=40))
            at = source.randrange(len(text))
            known = model.vocab.read(text, model.vocab.read(text[:at]))
            assert known.tokens.tolist() == plain(text, add_special=True, parse_special=True)


def test_many_special_tokens_take_no_longer_than_they_must(model_path: Path) -> None:
    with Model(model_path, vocab_only=True) as model:
        vocab = model.vocab
        (token,) = vocab.tokenize("<|im_end|>", add_special=False)
        # llama.cpp counts its way through the list of all fragments for each of them.
        assert (vocab.tokenize("<|im_end|>" * 200_000) == token).all()


# ---- there and back ----------------------------------------------------------------------------


def test_texts_come_back(pair: Pair) -> None:
    if pair.missing is None:
        pytest.skip("this vocabulary does not keep a text as it is")
    assert len(pair.missing) < 5
    without = [atom for atom in ATOMS if set(atom) & set(pair.missing)]
    source = random.Random(10)
    for _ in range(N_TEXTS):
        # SentencePiece writes a space as "▁", and begins anew behind a special token.
        text = random_text(source, without=[*without, "▁", "▁▁", "▁the", *SPECIAL])
        tokens = pair.vocab.tokenize(text, add_special=False)
        assert pair.vocab.detokenize(tokens).decode() == text
        around = pair.vocab.tokenize(text, add_special=True, parse_special=False)
        assert pair.vocab.detokenize(around, remove_special=True).decode() == text


# On an ordinary stack the process would die of those that meet a std::regex.
@pytest.mark.parametrize("letter", ["a", " ", "!", "1", "漢", "\n"])
def test_a_long_run_of_one_character(pair: Pair, letter: str) -> None:
    text = letter * 50_000
    tokens = pair.vocab.tokenize(text, add_special=False)
    if pair.missing is not None and letter not in pair.missing:
        assert pair.vocab.detokenize(tokens).decode() == text


def test_what_is_too_long_for_one_piece_is_refused() -> None:
    with Model(TREE / "models" / "ggml-vocab-gpt-2.gguf", vocab_only=True) as model:
        with pytest.raises(TokenizationError, match="without a place where it can be cut"):
            model.vocab.tokenize("a" * (2**22 + 1))
        words = "a little longer " * 2**18
        assert model.vocab.count_tokens(words) == 3 * 2**18 + 1
