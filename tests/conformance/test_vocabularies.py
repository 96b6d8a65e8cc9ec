"""llama.cpp's own expectations of its tokenizers, met through our module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_runner._core import Model

MODELS = Path(__file__).resolve().parents[2] / "llama_cpp_src" / "llama.cpp" / "models"
SEPARATOR = b"\n__ggml_vocab_test__\n"
VOCABULARIES = sorted(MODELS.glob("ggml-vocab-*.gguf"))

pytestmark = pytest.mark.skipif(
    not VOCABULARIES, reason=f"no vocabularies in {MODELS}: a build from a checkout puts them there"
)


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


@pytest.mark.parametrize(
    "path",
    [path for path in VOCABULARIES if path.with_name(path.name + ".inp").exists()],
    ids=lambda path: path.stem,
)
def test_tokens_are_those_that_are_expected(path: Path) -> None:
    with Model(path, vocab_only=True) as model:
        for text, expected in cases(path):
            tokens = model.vocab.tokenize(text, add_special=False, parse_special=False)
            assert tokens.tolist() == expected, text
            if text.isascii() or text.decode():  # also as str
                again = model.vocab.tokenize(text.decode(), add_special=False, parse_special=False)
                assert np.array_equal(again, tokens)


def test_every_token_has_a_piece(model: Model) -> None:
    vocab = model.vocab
    pieces = [vocab.token_to_piece(token) for token in range(len(vocab))]
    assert sum(map(bool, pieces)) > 0.9 * len(vocab)
    for token in (vocab.bos, vocab.eos, vocab.eot, vocab.nl, vocab.pad):
        assert token is None or 0 <= token < len(vocab)
    for token in (0, len(vocab) // 2, len(vocab) - 1):
        assert vocab.detokenize([token]) in (pieces[token], pieces[token].removeprefix(b" "), b"")
