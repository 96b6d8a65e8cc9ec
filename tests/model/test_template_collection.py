"""Every template of the pinned tree shows conversations as Jinja2 does.

llama.cpp changes messages before a template sees them, and some texts afterwards. What the oracle
is given in its place is in ``as_llama_cpp_gives_them``; what stays is explained in ``EXPLAINED``.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llama_runner._core import ChatTemplate, Model
from llama_runner.errors import ChatTemplateError
from tests.model import huggingface
from tests.unit.loaders.model_files import tiny_llama

COLLECTION = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
PATHS = sorted(COLLECTION.glob("*.jinja"))

Messages = list[dict[str, Any]]


def call(arguments: dict[str, Any], i: int = 1) -> dict[str, Any]:
    function = {"name": "get", "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call0000{i}", "type": "function", "function": function}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


RESULT = said("tool", '{"answer": 42}', tool_call_id="call00001", name="get")
CONVERSATIONS: dict[str, Messages] = {
    "question": [said("user", "hi")],
    "system": [said("system", "Be brief."), said("user", "hi")],
    "turns": [
        said("user", "q1"),
        said("assistant", "a1\n"),
        said("user", " q2 \u00fcn\u00ef \u2581 \U0001f389"),
    ],
    "system and turns": [
        said("system", "Be brief."),
        said("user", "q1"),
        said("assistant", "a1"),
        said("user", "q2"),
        said("assistant", "a2"),
    ],
    "thoughts": [
        said("user", "q1"),
        said("assistant", "a1", reasoning_content="because"),
        said("user", "q2"),
        said("assistant", "a2", reasoning_content="therefore"),
        said("user", "q3"),
    ],
    "calls": [
        said("user", "q1"),
        said("assistant", "", tool_calls=[call({"x": 1, "y": "\u00e9", "z": [1.5, None, True]})]),
        RESULT,
        said("assistant", "a1"),
        said("user", "q2"),
    ],
    "result last": [
        said("user", "q1"),
        said("assistant", "", tool_calls=[call({"text": 'a "b"\n'})]),
        RESULT,
    ],
    "nothing": [said("user", ""), said("assistant", ""), said("user", " ")],
}

# By template and conversation: how llama.cpp's own handling of that format shows it otherwise.
EXPLAINED = {
    ("StepFun3.5-Flash", "turns"): "contents are trimmed",
    ("StepFun3.5-Flash", "nothing"): "contents are trimmed",
    ("google-gemma-2-2b-it", "system"): "the system message begins the first question",
    ("google-gemma-2-2b-it", "system and turns"): "the system message begins the first question",
    ("google-gemma-4-31B-it-interleaved", "calls"): "results are part of the call's message",
    ("google-gemma-4-31B-it-interleaved", "result last"): "results are part of the call's message",
    ("mistralai-Ministral-3-14B-Reasoning-2512", "thoughts"): "thoughts are parts of the content",
    ("openai-gpt-oss-120b", "system and turns"): "an answer never ends with <|return|>",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_llama().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with Model(path, vocab_only=True) as model:
        yield model


def as_llama_cpp_gives_them(messages: Messages) -> Iterator[Messages]:
    """The forms that llama.cpp chooses from, by what it finds that a template can do."""
    for as_objects, as_parts in itertools.product((False, True), repeat=2):
        given = copy.deepcopy(messages)
        for message in given:
            for made in message.get("tool_calls", ()) if as_objects else ():
                made["function"]["arguments"] = json.loads(made["function"]["arguments"])
            if as_parts:
                message["content"] = [{"type": "text", "text": message["content"]}]
        yield given


def expected(template: str, messages: Messages, prompts: bool) -> set[str]:
    """What Jinja2 renders of any of these forms."""
    today = datetime.now()
    variables: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "enable_thinking": True,
        "date_string": today.strftime("%d %b %Y"),
        "datetime": today.strftime("%b %d %Y"),
    }
    if prompts:
        variables["add_generation_prompt"] = True
    if " functools[" in template:
        variables["functions"] = ""
    texts = set()
    for given in as_llama_cpp_gives_them(messages):
        try:
            text = huggingface.render(template, lists_may_change=True, messages=given, **variables)
        except huggingface.REFUSALS:
            continue
        # The BOS is the tokenizer's to add.
        texts.add(text.removeprefix("<s>"))
    return texts


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_template_shows_conversations_as_jinja2_does(model: Model, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(model, source)
    differing = set()
    for name, messages in CONVERSATIONS.items():
        for prompts in (True, False):
            right = expected(source, messages, prompts)
            try:
                text = template.render(messages, add_generation_prompt=prompts)[0]
            except ChatTemplateError:
                if right:
                    differing.add(name)
                continue
            if text not in right:
                differing.add(name)
    assert differing == {name for stem, name in EXPLAINED if stem == path.stem}


def test_there_are_templates() -> None:
    assert len(PATHS) > 60
