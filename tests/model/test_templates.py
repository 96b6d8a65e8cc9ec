"""Chat templates: what is said about a bad one, and what hostile messages do to a good one."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner._core import ChatTemplate, Model
from llama_runner.errors import ChatTemplateError, InvalidParameterError
from tests import inside
from tests.gguf_files import STRING
from tests.unit.loaders.model_files import tiny_llama

COLLECTION = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, vocab_only=True) as model:
        yield model


def problem(model: Model, template: str, messages: list[dict[str, Any]] = HELLO) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(model, template).render(messages)
    assert "\n" not in caught.value.message
    return caught.value.message


# ---- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{", "the chat template is no use: Unexpected EOF near '{{'"),
        ("{{ 'a }}", "unexpected end of input"),
        ("a {{ b c }}", "Expected }} (Got c) near 'a {{ b c }}'"),
        ("{% frob %}", "Unknown statement: frob"),
    ],
)
def test_a_template_that_does_not_parse(model: Model, template: str, said: str) -> None:
    assert said in problem(model, template)


def test_the_cause_comes_first_and_then_its_place(model: Model) -> None:
    assert problem(model, "a\n{{ raise_exception('no tools\n here') }}") == (
        "the chat template refuses these messages: no tools here (line 2, column 19)"
    )


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("template", [3, b"x", ["x"]])
def test_a_template_must_be_a_string(path: Path, template: Any, isolated: bool) -> None:
    with pytest.raises(InvalidParameterError, match="must be a Jinja template") as caught:
        LlamaRunner(path, chat_template=template, isolated=isolated)
    assert caught.value.field == "chat_template"


def test_a_template_that_is_no_text(path: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"lone surrogate, '.ud800'"):
        LlamaRunner(path, chat_template="a\ud800")


def test_a_model_with_a_bad_template_says_why_it_has_none(tmp_path: Path) -> None:
    file = tiny_llama().with_keys(tokenizer__chat_template=(STRING, "{% frob %}"))
    path = file.write(tmp_path / "bad.gguf")
    no_text = tmp_path / "no_text.gguf"
    no_text.write_bytes(path.read_bytes().replace(b"{% frob %}", b"{% fro\xb0 %}"))
    for model, problem in (
        (path, "Unknown statement: frob"),
        (no_text, "unexpected character: \ufffd"),
    ):
        with LlamaRunner(model, n_ctx=256, n_threads=1) as runner:
            assert runner.generate_stateless("w1", 1, ignore_eos=True).usage.completion_tokens == 1
            with pytest.raises(ChatTemplateError, match=problem):
                runner.generate_stateless(HELLO, 1)


# ---- messages ----------------------------------------------------------------------------------


def test_a_message_that_is_no_text_is_named(model: Model) -> None:
    messages = [*HELLO, {"role": "user", "content": "\udcff"}]
    assert problem(model, "{{ messages }}", messages).startswith("prompt[1]: is no text")


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("depth", [300, 100_000])
def test_arguments_that_are_nested_without_end(model: Model, depth: int, as_text: bool) -> None:
    arguments: Any = "[" * depth + "]" * depth
    if not as_text:
        arguments = []
        for _ in range(depth):
            arguments = [arguments]
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    template = "{% for m in messages %}{{ m.tool_calls|tojson }}{% endfor %}"
    assert "nested" in problem(model, template, messages)


def test_long_messages_and_arguments_are_shown_in_full(model: Model) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.arguments|tojson }}{% endfor %}{% endfor %}"
    )
    arguments = {str(i): ["x", i] for i in range(50_000)}
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
    text, _ = ChatTemplate(model, template).render(
        [
            {"role": "user", "content": "long " * 1_000_000},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
    )
    assert text.startswith("long " * 1_000_000)
    assert '"49999": ["x", 49999]' in text


def test_the_templates_of_the_pinned_tree_show_long_conversations(model: Model) -> None:
    paths = sorted(COLLECTION.glob("*.jinja"))
    if not paths:
        pytest.skip(f"no templates in {COLLECTION}: a build from a checkout puts them there")
    messages = [{"role": "user", "content": "question 0"}]
    for i in range(1, 200):
        messages.append({"role": "assistant", "content": f"answer {i}"})
        messages.append({"role": "user", "content": f"question {i}"})
    for path in paths:
        template = ChatTemplate(model, path.read_text(encoding="utf-8"))
        text, _ = template.render(messages)
        assert all(f"question {i}" in text for i in range(200)), path.name


def test_strings_that_end_an_answer_come_beside_those_that_a_caller_may_give(
    tiny_paths: dict[str, Path],
) -> None:
    """llama.cpp knows the format of this template by its name, and how it ends an answer."""
    template = "{# laguna_glm_thinking #}{% for m in messages %}{{ m.content }}{% endfor %}"
    never = [f"{i} is never said" for i in range(15)]
    with LlamaRunner(tiny_paths["plain"], n_ctx=256, chat_template=template) as runner:
        assert inside.chat(runner).render(HELLO).stops != ()
        for stateful in (False, True):
            generate = runner.generate_stateful if stateful else runner.generate_stateless
            said = generate(HELLO, 8, stop=never, temperature=0, ignore_eos=True).text
            stop = max(said.split("\ufffd"), key=len)
            assert stop
            runner.clear_context()
            answer = generate(HELLO, 8, stop=[*never, stop], temperature=0, ignore_eos=True)
            assert (answer.finish_reason, answer.stop_string) == ("stop", stop)


# ---- while a template runs ---------------------------------------------------------------------


def test_a_template_with_much_to_do_lets_threads_go_on_and_can_be_interrupted(
    model: Model,
) -> None:
    template = ChatTemplate(
        model, "{% for m in messages if m.content|length > 9 %}" * 5 + "{% endfor %}" * 5
    )
    messages = [{"role": "user", "content": "x" * 100} for _ in range(2000)]
    ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        ctrl_c.start()  # in here: on a busy machine the signal may come before the call begins
        template.render(messages)
    ctrl_c.join()
    assert ChatTemplate(model, "{{ messages[0].content }}").render(HELLO)[0] == "hi"
