"""Prompts as programs send them: what is taken, what is made of it, and what is refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner.errors import InvalidParameterError, ModelValidationError
from llama_runner.loaders import read_gguf
from tests import inside
from tests.model.tiny_models import BOS, write_model

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
# Shows calls of tools and two roles, and leaves out all others.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}"
    "{% elif m.role == 'assistant' %}A:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.type }} {{ c.function.name }} {{ c.function.arguments|tojson }}]{% endfor %}"
    "{% elif m.role == 'critic' %}C:{{ m.content }}{% endif %}{% endfor %}"
)
USER = {"role": "user", "content": "ab"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("prompts") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny_runner(tiny: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(tiny, n_ctx=512, n_threads=1, chat_template=TEMPLATE) as runner:
        yield runner


def prompt_of(runner: LlamaRunner, prompt: Any, **options: Any) -> list[int]:
    """The tokens that a generation begins from."""
    with runner.session() as session:
        session.generate(prompt, 1, **GREEDY, **options)
        return inside.ledger(session)[:-1]


# ---- the BOS -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "n_bos"),
    [
        ("abc", {}, 1),
        ("<s>abc", {}, 1),
        ("<s><s>abc", {}, 2),
        ("<s>", {}, 1),
        ("abc", {"add_special": False}, 0),
        ("<s>abc", {"add_special": False}, 1),
        ("<s>abc", {"parse_special": False}, 1),
    ],
)
def test_a_prompt_that_begins_with_the_bos_gets_no_second_one(
    tiny_runner: LlamaRunner, text: str, options: dict[str, Any], n_bos: int
) -> None:
    tokens = prompt_of(tiny_runner, text, **options)
    assert tokens[:n_bos] == [BOS] * n_bos
    assert BOS not in tokens[n_bos:]
    usage = tiny_runner.generate_stateless(text, 1, **GREEDY, **options).usage
    assert usage.prompt_tokens == len(tokens)


def test_tokens_are_those_of_llama_cpp_all_the_same(tiny_runner: LlamaRunner) -> None:
    assert tiny_runner.tokenize("<s>abc")[:2].tolist() == [BOS, BOS]


# ---- what None and -1 mean ---------------------------------------------------------------------


def test_none_is_no_stop_string_and_no_adapter(tiny_runner: LlamaRunner) -> None:
    wanted = tiny_runner.generate_stateless("ab", 5, **GREEDY).tokens
    assert tiny_runner.generate_stateless("ab", 5, stop=None, lora=None, **GREEDY).tokens == wanted


def test_minus_one_generates_until_the_context_is_full(tiny_runner: LlamaRunner) -> None:
    answer = tiny_runner.generate_stateless("ab", -1, **GREEDY)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 512
    with pytest.raises(InvalidParameterError, match=r"max_tokens=0: must be .* or -1"):
        tiny_runner.generate_stateless("ab", 0)


# ---- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [iter, deque, tuple, lambda given: (m for m in given)])
def test_messages_may_be_anything_that_can_be_gone_through(
    tiny_runner: LlamaRunner, kind: Any
) -> None:
    given = [USER, {"role": "assistant", "content": "c"}, USER]
    wanted = tiny_runner.generate_stateless(given, 3, **GREEDY)
    assert tiny_runner.generate_stateless(kind(given), 3, **GREEDY).tokens == wanted.tokens
    assert prompt_of(tiny_runner, kind(given)) == prompt_of(tiny_runner, given)
    with tiny_runner.session() as session:
        session.append(kind(given))
        assert session.messages == given


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"function": {"name": "f", "arguments": "{}"}},
        {"type": "function", "function": {"name": "f", "arguments": ""}},
        {"type": None, "function": {"name": "f", "arguments": None}},
        {"function": {"name": "f"}},
        {"function": {"name": "f", "arguments": {}}},
        {"name": "f", "arguments": {}},
        {"name": "f"},
    ],
)
def test_a_call_of_a_tool_is_read_as_others_send_it(
    tiny_runner: LlamaRunner, call: dict[str, Any]
) -> None:
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    text = bytes(tiny_runner.tokenizer.vocab.detokenize(prompt_of(tiny_runner, [USER, said])))
    assert b"[function f {}]" in text


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"type": "code", "function": {"name": "f"}}, "must be the call of a function"),
        ({"function": "f"}, "must be the call of a function"),
        ({"function": {"arguments": "{}"}}, "needs a function with a 'name'"),
        ({"id": "1"}, "needs a function with a 'name'"),
    ],
)
def test_a_call_of_nothing_is_refused(
    tiny_runner: LlamaRunner, call: dict[str, Any], problem: str
) -> None:
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(
        InvalidParameterError, match=rf"prompt\[1\]: each of 'tool_calls' {problem}"
    ):
        tiny_runner.generate_stateless([USER, said], 1)


def test_a_role_of_which_the_template_shows_nothing_is_refused(tiny_runner: LlamaRunner) -> None:
    misspelt = [USER, {"role": "assistent", "content": "c"}, USER]
    advice = r"prompt\[1\]: .* role 'assistent' \(did you mean 'assistant'\?\)"
    with tiny_runner.session() as session:
        for call in (tiny_runner.generate_stateless, session.generate, session.append):
            with pytest.raises(InvalidParameterError, match=advice):
                call(misspelt)
        assert session.messages == []
    critic = [USER, {"role": "critic", "content": "c"}]
    assert tiny_runner.generate_stateless(critic, 1, **GREEDY).usage.completion_tokens == 1


# ---- pieces of files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.gguf.part1of2", "cat x.gguf.part* > x.gguf"),
        ("x.gguf.part10of12", "cat $(ls -v x.gguf.part*) > x.gguf"),
        ("x.gguf-split-a", "cat x.gguf-split-* > x.gguf"),
        ("x.gguf-part-b", "cat x.gguf-part-* > x.gguf"),
    ],
)
def test_a_piece_of_a_file_is_to_be_joined_with_the_others(
    tiny: Path, tmp_path: Path, name: str, advice: str
) -> None:
    piece = tmp_path / name
    piece.write_bytes(tiny.read_bytes()[:1000])
    for read in (read_gguf, LlamaRunner):
        with pytest.raises(ModelValidationError) as caught:
            read(piece)
        assert str(caught.value).endswith(f"join the pieces first: {advice}")
