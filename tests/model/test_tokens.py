"""Text to token ids and back through a runner, and token ids in all the forms they come in."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_runner import LlamaRunner
from llama_runner.errors import TokenizationError

# What UTF-8 can write: all but lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture(scope="module")
def vocabulary(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, vocab_only=True) as runner:
        yield runner


@pytest.fixture(scope="module")
def known_part(vocabulary: LlamaRunner) -> Callable[[str], str]:
    """A text without the bytes that this vocabulary lacks: llama.cpp leaves them out.

    There are some, such as those that begin characters of the fourth plane and on.
    """
    vocab = vocabulary.model.vocab
    pieces = {vocab.token_to_piece(token) for token in range(len(vocab))}
    missing = bytes(byte for byte in range(256) if bytes([byte]) not in pieces)
    assert not set(missing) & set("aäß€漢😀".encode())
    return lambda text: text.encode().translate(None, missing).decode("utf-8", "replace")


@settings(deadline=None)
@given(text=texts)
def test_any_text_comes_back(
    vocabulary: LlamaRunner, known_part: Callable[[str], str], text: str
) -> None:
    for parse_special in (True, False):
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=parse_special)
        assert tokens.dtype == np.int32
        assert tokens.ndim == 1
        assert vocabulary.detokenize(tokens) == known_part(text)
        assert np.array_equal(
            tokens,
            vocabulary.tokenize(text.encode(), add_special=False, parse_special=parse_special),
        )


@settings(deadline=None)
@given(parts=st.lists(texts | st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])))
def test_special_tokens_are_read_where_that_is_wanted(
    vocabulary: LlamaRunner, known_part: Callable[[str], str], parts: list[str]
) -> None:
    vocab = vocabulary.model.vocab
    text = "".join(parts)
    plain = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert not any(vocab.is_control(token) for token in plain)
    assert vocabulary.detokenize(plain) == known_part(text)
    special = vocabulary.tokenize(text, add_special=False)
    names = [vocab.token_to_piece(token).decode() for token in special if vocab.is_control(token)]
    assert sum(text.count(name) for name in set(names)) == len(names)
    assert vocabulary.detokenize(special) == known_part(text)


@settings(deadline=None)
@given(data=st.binary(max_size=60))
@example(data=b"a\xf4\x90\x80\x80b")  # what could only be a code point behind the last one
@example(data=b"\xf5\x80\x80\x80\xf7\xbf\xbf\xbf")
def test_bytes_that_are_no_text_are_tokenised_all_the_same(
    vocabulary: LlamaRunner, data: bytes
) -> None:
    tokens = vocabulary.tokenize(data, add_special=False)
    assert tokens.size <= 3 * len(data)
    assert all(0 <= token < len(vocabulary.model.vocab) for token in tokens)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\U0001f600\ud83d"])
def test_lone_surrogates_are_refused(vocabulary: LlamaRunner, text: str) -> None:
    with pytest.raises(TokenizationError, match="surrogate"):
        vocabulary.tokenize(text)


IDS = [504, 3575, 282, 4649, 314]
FORMS: dict[str, Callable[[list[int]], Any]] = {
    "tuple": tuple,
    "iterator": iter,
    "array of int": lambda ids: array("i", ids),
    "array of long long": lambda ids: array("q", ids),
    "int32": lambda ids: np.array(ids, np.int32),
    "int64": lambda ids: np.array(ids, np.int64),
    "uint16": lambda ids: np.array(ids, np.uint16),
    "big-endian": lambda ids: np.array(ids, ">i4"),
    "strided": lambda ids: np.repeat(np.array(ids, np.int32), 2)[::2],
    "read-only": lambda ids: memoryview(array("i", ids)).toreadonly(),
    "numpy scalars": lambda ids: [np.int64(token) for token in ids],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_token_ids_in_any_form(runner: LlamaRunner, form: Callable[[list[int]], Any]) -> None:
    assert runner.detokenize(form(IDS)) == runner.detokenize(IDS)
    expected = runner.generate_stateless(IDS, 4, temperature=0)
    assert expected.usage.prompt_tokens == len(IDS)
    for generate in (runner.generate_stateless, runner.generate_stateful):
        completion = generate(form(IDS), 4, temperature=0)
        assert completion.tokens == expected.tokens
        assert completion.usage == expected.usage


@pytest.mark.parametrize("kind", ["i4", "i8", "u2"])
def test_arrays_that_hide_their_values_are_no_token_ids(runner: LlamaRunner, kind: str) -> None:
    records = np.array([(1,), (2,)], dtype=[("id", kind)])
    masked = np.ma.array([1, 2], mask=[False, True], dtype=kind)
    for wrong in (records, masked):
        for call in (runner.detokenize, runner.generate_stateless):
            with pytest.raises(TokenizationError, match="sequence of integers"):
                call(wrong)


def test_parse_special_of_a_prompt(runner: LlamaRunner) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n"
    for generate in (runner.generate_stateless, runner.generate_stateful):
        special = generate(text, 1).usage.prompt_tokens
        runner.clear_context()
        plain = generate(text, 1, parse_special=False).usage.prompt_tokens
        runner.clear_context()
        assert special == len(runner.tokenize(text))
        assert plain == len(runner.tokenize(text, parse_special=False))
        assert special < plain
