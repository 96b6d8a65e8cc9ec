"""The text of an answer: whole characters, no stop strings, in chunks the same as whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_runner import LlamaRunner
from llama_runner.results import Chunk, Completion
from tests.model.tiny_models import FIRST_BYTE, N_VOCAB, piece, write_model

N_TOKENS = 40
PROMPT = [1, 40]
# Any token but the end, all about as likely.
SOUP = {"temperature": 20.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
# What the babbler says: some letters, and "é" and "€" also a byte at a time.
SOUNDS = [FIRST_BYTE + byte for byte in "é€".encode()]
SOUNDS += [t for t in range(N_VOCAB) if piece(t) in map(str.encode, ["a", "b", "ab", "abc", "<|"])]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaRunner]:
    """A model that says nothing but a few letters, whole ones and their single bytes."""
    silent = sorted(set(range(N_VOCAB)) - set(SOUNDS))
    path = tmp_path_factory.mktemp("babbler") / "babbler.gguf"
    with LlamaRunner(
        write_model(path, suppressed=silent), n_ctx=256, n_threads=1, validate=False
    ) as runner:
        yield runner


@pytest.fixture(scope="module")
def noise(tiny_paths: dict[str, Path]) -> Iterator[LlamaRunner]:
    """A model that says any byte: hardly anything is UTF-8."""
    with LlamaRunner(tiny_paths["plain"], n_ctx=256, n_threads=1, validate=False) as runner:
        yield runner


def expected(tokens: tuple[int, ...], stops: list[str]) -> tuple[bytes, int, str | None]:
    """Text, number of tokens, and stop string of an answer that would go on with these tokens."""
    text = b""
    starts = []
    for token in tokens:
        starts.append(len(text))
        text += piece(token)
        found = [(text.find(stop.encode()), i) for i, stop in enumerate(stops)]
        found = [(at, i) for at, i in found if at >= 0]
        if found:
            at, i = min(found)
            return text[:at], sum(start < at for start in starts), stops[i]
    return text, len(tokens), None


def assert_as_defined(runner: LlamaRunner, seed: int, stops: list[str]) -> Completion:
    free = runner.generate_stateless(PROMPT, N_TOKENS, seed=seed, **SOUP)
    assert free.finish_reason == "length"
    assert len(free.tokens) == N_TOKENS
    text, n_tokens, stop = expected(free.tokens, stops)

    stream = runner.stream_stateless(PROMPT, N_TOKENS, seed=seed, stop=stops, **SOUP)
    chunks = list(stream)
    completion = stream.completion
    assert completion is not None
    assert completion.tokens == free.tokens[:n_tokens]
    assert completion.text == text.decode("utf-8", "replace")
    assert completion.stop_string == stop
    assert completion.finish_reason == ("length" if stop is None else "stop")
    assert completion.usage.completion_tokens == n_tokens
    assert_chunks_are_the_completion(chunks, completion)
    for chunk in chunks[:-1]:
        assert chunk.text
    # A replacement character stands for bytes that are no character; that one may be in the stop.
    for unwanted in stops:
        assert "\ufffd" in unwanted or unwanted not in completion.text

    whole = runner.generate_stateless(PROMPT, N_TOKENS, seed=seed, stop=stops, **SOUP)
    assert (whole.text, whole.tokens, whole.finish_reason, whole.stop_string) == (
        completion.text,
        completion.tokens,
        completion.finish_reason,
        completion.stop_string,
    )
    return completion


def assert_chunks_are_the_completion(chunks: list[Chunk], completion: Completion) -> None:
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert sum((chunk.tokens for chunk in chunks), ()) == completion.tokens
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == completion.finish_reason
    assert chunks[-1].completion is completion


seeds = st.integers(0, 2**32 - 2)
stop_strings = st.lists(st.text("abc<|é€", min_size=1, max_size=4), max_size=4, unique=True)


@settings(deadline=None, max_examples=300)
@given(seed=seeds, stops=stop_strings)
@example(seed=0, stops=["a", "ab", "abc"])
@example(seed=0, stops=["abc", "b"])
@example(seed=0, stops=["é", "€"])
def test_letters(babbler: LlamaRunner, seed: int, stops: list[str]) -> None:
    assert_as_defined(babbler, seed, stops)


@settings(deadline=None, max_examples=100)
@given(seed=seeds, stops=stop_strings | st.just(["\ufffd"]))
def test_noise(noise: LlamaRunner, seed: int, stops: list[str]) -> None:
    assert_as_defined(noise, seed, stops)


@settings(deadline=None, max_examples=100)
@given(seed=seeds, data=st.data())
def test_stop_strings_that_do_come(babbler: LlamaRunner, seed: int, data: st.DataObject) -> None:
    """Any part of what the model says, wherever its tokens begin and end."""
    text = babbler.generate_stateless(PROMPT, N_TOKENS, seed=seed, **SOUP).text
    begin = data.draw(st.integers(0, len(text) - 1), label="begin")
    stop = text[begin : begin + data.draw(st.integers(1, 6), label="length")]
    if "\ufffd" in stop:  # no character of the model's
        return
    completion = assert_as_defined(babbler, seed, [stop])
    assert completion.finish_reason == "stop"
    assert completion.stop_string == stop
    assert completion.text == text[: text.find(stop)]


def test_characters_of_several_tokens_do_come(babbler: LlamaRunner) -> None:
    text = "".join(
        babbler.generate_stateless(PROMPT, N_TOKENS, seed=seed, **SOUP).text for seed in range(100)
    )
    # No token of the babbler's is one of these.
    assert "é" in text
    assert "€" in text
    assert "\ufffd" in text


def test_tokens_of_a_chunk_are_those_of_its_text(babbler: LlamaRunner) -> None:
    """Also where another thread computes on while nobody pulls."""

    def read(seed: int) -> None:
        stream = babbler.stream_stateless(PROMPT, 100, seed=seed, stop=["ab", "é|"], **SOUP)
        chunks = list(stream)
        assert stream.completion is not None
        assert_chunks_are_the_completion(chunks, stream.completion)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(read, seed) for seed in range(200)]:
            done.result()


@pytest.mark.parametrize("prompt", ["😀" * 12, "你好世界。你好世界。你好世界。你好世"])
def test_a_real_model_and_characters_of_several_tokens(runner: LlamaRunner, prompt: str) -> None:
    stream = runner.stream_stateless(prompt, 24, temperature=0)
    chunks = list(stream)
    assert stream.completion is not None
    assert_chunks_are_the_completion(chunks, stream.completion)
    assert any(len(chunk.tokens) > 1 and not chunk.text.isascii() for chunk in chunks)
    # Only where max_tokens cuts a character in two is half of it shown, at the end.
    assert not any("\ufffd" in chunk.text for chunk in chunks[:-1])
