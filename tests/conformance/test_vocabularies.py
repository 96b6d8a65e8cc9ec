"""llama.cpp's own expectations of its tokenizers, met through our module; texts that come back."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_runner import LlamaRunner
from llama_runner._core import Model
from llama_runner.errors import UnsupportedModelError

MODELS = Path(__file__).resolve().parents[2] / "llama_cpp_src" / "llama.cpp" / "models"
SEPARATOR = b"\n__ggml_vocab_test__\n"
VOCABULARIES = sorted(MODELS.glob("ggml-vocab-*.gguf"))
EXPECTATIONS = sorted(MODELS.glob("ggml-vocab-*.gguf.inp"))
# They drop accents, white space and what they do not know.
LOSSY = {"ggml-vocab-bert-bge", "ggml-vocab-nomic-bert-moe"}

pytestmark = pytest.mark.skipif(
    not VOCABULARIES, reason=f"no vocabularies in {MODELS}: a build from a checkout puts them there"
)


# All that UTF-8 can write, and what is rare in it.
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(
        ["\0", "漢字", "한국어", "👩\u200d🚀", "🇩🇪", "e\u0301", "a\u0308\u0323", "हिन्दी"]
    )
    | st.text("ab 1.'\n\t", max_size=20),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=VOCABULARIES, ids=lambda path: path.stem)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model(request.param, vocab_only=True) as model:
        yield model


def cases(path: Path) -> list[tuple[bytes, list[int]]]:
    texts = path.with_name(path.name + ".inp").read_bytes().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert texts[len(lines) :] in ([], [b""])  # most end with a separator
    ids = [[int(token) for token in line.split()] for line in lines]
    return list(zip(texts, ids, strict=False))


def test_the_expectations_are_found() -> None:
    assert len(EXPECTATIONS) >= 15
    assert {path.with_suffix("") for path in EXPECTATIONS} <= set(VOCABULARIES)


@pytest.mark.parametrize(
    "path", [path.with_suffix("") for path in EXPECTATIONS], ids=lambda path: path.stem
)
def test_tokens_are_those_that_are_expected(path: Path) -> None:
    assert len(cases(path)) >= 40
    with Model(path, vocab_only=True) as model:
        for text, expected in cases(path):
            tokens = model.vocab.tokenize(text, add_special=False, parse_special=False)
            assert tokens.tolist() == expected, text
            if text.isascii() or text.decode():  # also as str
                again = model.vocab.tokenize(text.decode(), add_special=False, parse_special=False)
                assert np.array_equal(again, tokens)


@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem)
def test_a_runner_opens_it(path: Path) -> None:
    """There are no weights in it, nor is it as long as weights that could be mapped."""
    with LlamaRunner(path, vocab_only=True) as runner:
        tokens = runner.tokenize("Hello world", add_special=False)
        assert runner.detokenize(tokens).lower() == "hello world"
        template = runner.model.metadata.get("tokenizer.chat_template")
        assert (runner.chat_template is None) == (template is None)
        assert path.name not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "options",
    [{"load_mode": mode} for mode in ("none", "mmap", "mlock", "mmap_mlock", "direct_io")]
    + [{"validate": "header"}, {"validate": False}, {"isolated": True}, {"check_tensors": True}],
    ids=str,
)
def test_a_runner_opens_it_whatever_the_options(options: dict[str, Any]) -> None:
    with LlamaRunner(MODELS / "ggml-vocab-llama-spm.gguf", vocab_only=True, **options) as runner:
        assert runner.count_tokens("Hello world") > 0
        with pytest.raises(UnsupportedModelError, match="vocab_only"):
            runner.generate_stateless("Hello")


def test_every_token_has_a_piece(model: Model) -> None:
    vocab = model.vocab
    pieces = [vocab.token_to_piece(token) for token in range(len(vocab))]
    assert sum(map(bool, pieces)) > 0.9 * len(vocab)
    for token in (vocab.bos, vocab.eos, vocab.eot, vocab.nl, vocab.pad):
        assert token is None or 0 <= token < len(vocab)
    for token in (0, len(vocab) // 2, len(vocab) - 1):
        assert vocab.detokenize([token]) in (pieces[token], pieces[token].removeprefix(b" "), b"")


# ---- there and back ----------------------------------------------------------------------------


@functools.cache
def missing_bytes(model: Model) -> bytes:
    """Those for which this vocabulary has no token."""
    vocab = model.vocab
    pieces = {vocab.token_to_piece(token) for token in range(len(vocab))}
    missing = bytes(byte for byte in range(256) if bytes([byte]) not in pieces)
    assert len(missing) < 30
    return missing


def as_written(model: Model, data: bytes) -> bytes:
    """A text as this vocabulary can write it."""
    kept = data.translate(None, missing_bytes(model))
    return kept.replace("▁".encode(), b" ")  # what SentencePiece writes for a space


def there_and_back(model: Model, text: str | bytes) -> bytes:
    tokens = model.vocab.tokenize(text, add_special=False, parse_special=False)
    assert ((tokens >= 0) & (tokens < len(model.vocab))).all()
    return bytes(model.vocab.detokenize(tokens))


@settings(deadline=None, max_examples=50)
@given(text=texts)
def test_any_text_comes_back(model: Model, text: str) -> None:
    found = there_and_back(model, text)
    if Path(model.path).stem not in LOSSY:
        assert found.replace("▁".encode(), b" ") == as_written(model, text.encode())


@settings(deadline=None, max_examples=50)
@given(before=texts, after=texts)
def test_a_byte_that_is_no_text_harms_nothing_else(model: Model, before: str, after: str) -> None:
    found = there_and_back(model, b"%s\xff%s" % (before.encode(), after.encode()))
    if Path(model.path).stem not in LOSSY:
        expected = [
            as_written(model, before.encode() + broken + after.encode())
            for broken in (b"\xff", "\ufffd".encode())
        ]
        assert found.replace("▁".encode(), b" ") in expected


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=60))
def test_any_bytes_have_tokens(model: Model, data: bytes) -> None:
    there_and_back(model, data)


# Twice the letters take four times as long where the work is quadratic: hours for a million.
MEGABYTE = """
import resource, sys

resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

from llama_runner._core import Model

text = b"a" * 1_000_000
with Model(sys.argv[1], vocab_only=True) as model:
    tokens = model.vocab.tokenize(text, add_special=False)
    assert model.vocab.detokenize(tokens) == text or sys.argv[2] == "lossy"
"""


@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem)
def test_a_megabyte_of_one_letter(path: Path) -> None:
    kind = "lossy" if path.stem in LOSSY else "lossless"
    answer = subprocess.run([sys.executable, "-c", MEGABYTE, path, kind], capture_output=True)
    assert (answer.returncode, answer.stderr) == (0, b"")
