"""Jinja2, set up as Hugging Face's transformers does it: what chat templates are written for."""

from __future__ import annotations

import json
import warnings
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

__all__ = ["REFUSALS", "render"]

# What a template raises, by itself or through Python's operators.
REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class _Generation(Extension):
    """Mark what an assistant says; it is rendered as if the marks were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment(kind: type[SandboxedEnvironment]) -> SandboxedEnvironment:
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_STRICT = _environment(ImmutableSandboxedEnvironment)
_MUTABLE = _environment(SandboxedEnvironment)


def render(template: str, *, lists_may_change: bool = False, **variables: Any) -> str:
    """Render a template.

    Args:
        template: Jinja.
        lists_may_change: Allow ``append`` and ``pop``, which transformers does not.
        variables: What the template can see.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, about the code and the texts made of it
        return _compiled(template, lists_may_change).render(**variables)


@lru_cache(maxsize=4)
def _compiled(template: str, lists_may_change: bool) -> jinja2.Template:
    return (_MUTABLE if lists_may_change else _STRICT).from_string(template)
