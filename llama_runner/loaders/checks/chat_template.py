"""Checks that a chat template can be parsed without exhausting the stack.

llama.cpp's Jinja parser recurses over nested and chained expressions without a limit, so their
depth is measured here. Running a template is limited elsewhere (``_shim/chat.cpp``).
"""

from __future__ import annotations

from typing import Final

from llama_runner._core import template_shape
from llama_runner.errors import ChatTemplateError, InvalidParameterError
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.gguf.header import MAX_TEMPLATE_BYTES, quoted

__all__ = ["check_chat_template", "check_chat_templates"]

MAX_NESTING: Final = 100
# In one tag. A chain such as a + b + c becomes a tree as deep as the chain is long.
MAX_OPERATORS: Final = 1000

_PREFIX: Final = "tokenizer.chat_template"


def check_chat_templates(facts: Facts) -> None:
    """Check the size and the nesting of every chat template in the file.

    Raises:
        ModelValidationError: A template is too large or too deeply nested; ``field`` is its key.
    """
    for key, value in facts.info.keys.items():
        if not key.startswith(_PREFIX) or not isinstance(value, str):
            continue
        problem = _problem(value.encode("utf-8", "replace"))
        if problem is not None:
            facts.fail(key, f"{quoted(key)} {problem}")


def check_chat_template(source: object) -> None:
    """Check a chat template that replaces the model's own.

    Raises:
        InvalidParameterError: It is not a string, or is empty.
        ChatTemplateError: It is not valid text, too large or too deeply nested.
    """
    if not isinstance(source, str):
        raise InvalidParameterError(
            f"chat_template={source!r:.100}: must be a Jinja template as a string",
            field="chat_template",
        )
    if not source:  # llama.cpp would use the model's own
        raise InvalidParameterError(
            "chat_template='': must not be empty; leave it out to use the model's own",
            field="chat_template",
        )
    try:
        problem = _problem(source.encode())
    except UnicodeEncodeError as error:
        problem = f"is not valid text: it has a lone surrogate, {source[error.start]!a}"
    if problem is not None:
        raise ChatTemplateError(f"the chat template {problem}", field="chat_template")


def _problem(template: bytes) -> str | None:
    """Return why llama.cpp must not get this template, as the end of a sentence; None if it may."""
    if len(template) > MAX_TEMPLATE_BYTES:
        return f"has {len(template)} bytes; at most {MAX_TEMPLATE_BYTES} are accepted"
    nesting, operators = template_shape(template)
    if nesting > MAX_NESTING or operators > MAX_OPERATORS:
        return "is nested or chained too deeply for llama.cpp's parser"
    return None
