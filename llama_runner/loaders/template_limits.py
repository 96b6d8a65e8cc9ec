"""Checks that a chat template can be parsed without exhausting the stack.

llama.cpp's Jinja parser and interpreter recurse over nested and chained expressions without a
limit. What a template does when it runs is bounded elsewhere; this only measures its shape.
"""

from __future__ import annotations

from typing import Final

from .._core import template_shape
from .facts import Facts
from .header import quoted

__all__ = ["check_chat_templates", "template_problem"]

MAX_TEMPLATE_BYTES: Final = 256 << 10
MAX_NESTING: Final = 100
# In one tag. Chains such as a + b + c become trees as deep as they are long.
MAX_OPERATORS: Final = 1000

_PREFIX: Final = "tokenizer.chat_template"


def check_chat_templates(facts: Facts) -> None:
    """Check the size and the nesting of every chat template in the file.

    Raises:
        ModelValidationError: A template is too large or too deep; ``field`` names its key.
    """
    for key, value in facts.info.keys.items():
        if not key.startswith(_PREFIX) or not isinstance(value, str):
            continue
        problem = template_problem(value)
        if problem is not None:
            facts.fail(key, f"{quoted(key)} {problem}")


def template_problem(source: str) -> str | None:
    """Why llama.cpp must not see this template, as the end of a sentence; None if it may."""
    template = source.encode("utf-8", "replace")
    if len(template) > MAX_TEMPLATE_BYTES:
        return f"has {len(template)} bytes; {MAX_TEMPLATE_BYTES} are accepted"
    nesting, operators = template_shape(template)
    if nesting > MAX_NESTING or operators > MAX_OPERATORS:
        return "is nested or chained too deeply for llama.cpp's parser"
    return None
