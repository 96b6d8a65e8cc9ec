"""Checks that a chat template can be parsed without exhausting the stack.

llama.cpp's Jinja parser and interpreter recurse over nested and chained expressions without a
limit. What a template does when it runs is bounded elsewhere; this only measures its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .facts import Facts
from .header import quoted

__all__ = ["check_chat_templates"]

MAX_TEMPLATE_BYTES: Final = 256 << 10
MAX_NESTING: Final = 100
# In one tag. Chains such as a + b + c become trees as deep as they are long.
MAX_OPERATORS: Final = 1000

_PREFIX: Final = "tokenizer.chat_template"
# A tag that is not closed reaches to the end, as it does for the parser that will refuse it.
_TAG: Final = re.compile(r"\{([%{#])(.*?)(?:[%}#]\}|\Z)", re.DOTALL)
_PIECE: Final = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
    r"|(?P<open>[\[({])|(?P<close>[\])}])"
    r"|(?P<operator>[-+*/%~|.<>=!]|\b(?:not|and|or|if|else|in|is)\b)",
    re.DOTALL,
)
_OPENERS: Final = frozenset(("for", "if", "elif", "macro", "call", "filter", "set"))
_STATEMENT: Final = re.compile(r"[-+\s]*(\w+)")


def check_chat_templates(facts: Facts) -> None:
    """Check the size and the nesting of every chat template in the file.

    Raises:
        ModelValidationError: A template is too large or too deep; ``field`` names its key.
    """
    for key, value in facts.info.keys.items():
        if not key.startswith(_PREFIX) or not isinstance(value, str):
            continue
        if len(value) > MAX_TEMPLATE_BYTES:
            facts.fail(
                key, f"{quoted(key)} has {len(value)} characters; {MAX_TEMPLATE_BYTES} are accepted"
            )
        if any(depth > MAX_NESTING for depth in _depths(value)):
            facts.fail(key, f"{quoted(key)} is nested or chained too deeply for llama.cpp's parser")


def _depths(template: str) -> Iterator[int]:
    """The depths that a template reaches, lazily: hostile ones are found early."""
    blocks: list[int] = []
    for tag in _TAG.finditer(template):
        kind, inside = tag.groups()
        if kind == "#":
            continue
        yield from _expression_depths(inside)
        statement = _STATEMENT.match(inside)
        if kind == "%" and statement is not None:
            _follow_block(statement[1], inside, blocks)
            yield sum(blocks)


def _follow_block(word: str, inside: str, blocks: list[int]) -> None:
    """Keep the depths of the open blocks; every elif nests one deeper in its if."""
    if word == "elif" and blocks:
        blocks[-1] += 1
    elif word in _OPENERS and not (word == "set" and "=" in inside):
        blocks.append(1)
    elif word.startswith("end") and blocks:
        blocks.pop()


def _expression_depths(inside: str) -> Iterator[int]:
    depth = operators = 0
    for piece in _PIECE.finditer(inside):
        match piece.lastgroup:
            case "open":
                depth += 1
                operators += 1
                yield depth
            case "close":
                depth = max(0, depth - 1)
            case "operator":
                operators += 1
        if operators > MAX_OPERATORS:
            yield operators
