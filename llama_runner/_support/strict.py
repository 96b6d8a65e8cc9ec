"""Strict pydantic models for values that a user sets, with one-line errors."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Never, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from llama_runner.errors import LlamaError, raised_by_handler

__all__ = ["Values", "as_tuple", "nearest"]

# The similarity (up to 1) from which a name is suggested; below it, 'stop' would suggest 'top_p'.
_CLOSE: Final = 0.7


class Values(BaseModel):
    """Base of classes whose fields a user sets: immutable and strict, with one-line errors.

    Nothing is converted silently: a bool is not an integer, a string is not a number. Every way
    of making an instance checks the values.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    refusal: ClassVar[type[LlamaError]]
    """The error to raise for an invalid value."""
    kind_of_name: ClassVar[str]
    """The word for a field in its message."""

    def __init__(self, /, **values: Any) -> None:
        with _in_our_words(type(self), values):
            super().__init__(**{name: _plain(value) for name, value in values.items()})

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        with _in_our_words(cls, obj):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        with _in_our_words(cls, {}):
            return super().model_validate_json(json_data, **options)

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:
        with _in_our_words(cls, obj):
            return super().model_validate_strings(obj, **options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        # pydantic's own copy would take the update unchecked.
        return self._with(update) if update else super().model_copy(deep=deep)

    if not TYPE_CHECKING:  # a type checker that sees __setattr__ would accept any attribute

        def __setattr__(self, name: str, value: object) -> Never:
            raise self._frozen(name)

        def __delattr__(self, name: str) -> Never:
            raise self._frozen(name)

    def _frozen(self, name: str) -> LlamaError:
        return self.refusal(
            f"{name}: {type(self).__name__} is frozen; make a new one with this value", field=name
        )

    def _with(self, changes: Mapping[str, Any]) -> Self:
        chosen = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**chosen | dict(changes))


def _plain(value: object) -> object:
    """Convert a numpy scalar to a Python number; return anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


@contextmanager
def _in_our_words(kind: type[Values], values: object) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, Exception) and raised_by_handler(cause):
                raise cause from None  # pydantic treats any ValueError as a refusal
        known = values if isinstance(values, Mapping) else {}
        raise _refusal(kind, known, error) from None


def _refusal(kind: type[Values], values: Mapping[str, Any], error: ValidationError) -> LlamaError:
    schema = kind.model_json_schema()["properties"]
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if not detail["loc"]:
            if isinstance(cause, LlamaError):
                return cause
            return kind.refusal(f"not a {kind.__name__}: {' '.join(detail['msg'].split())}")
        name = str(detail["loc"][0])
        if isinstance(cause, LlamaError):
            inner = f".{cause.field}" if isinstance(cause, kind.refusal) else ""
            problems[name + inner] = f"{name}: {cause.message}"
        elif detail["type"] == "missing":
            problems[name] = f"{name}: is missing"
        elif detail["type"] == "default_factory_not_called":
            continue  # this default depends on another field, which has an error
        elif name in schema:
            given = _plain(values.get(name, detail["input"]))
            shown = " ".join(reprlib.repr(given).split())
            problems[name] = f"{name}={shown}: must be {_allowed(schema[name])}"
        else:
            problems[name] = f"unknown {kind.kind_of_name} {name!r}{nearest(name, list(schema))}"
    return kind.refusal("; ".join(problems.values()), field=next(iter(problems)))


def as_tuple(value: object) -> object:
    """Convert a list to a tuple; return anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def nearest(name: str, known: list[str]) -> str:
    """Return the end of a message about an unknown name: a suggestion, or the known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)
    return f" (did you mean {close[0]!r}?)" if close else f"; known are {', '.join(known)}"


def _allowed(schema: dict[str, Any]) -> str:
    """Describe in words the values that a field accepts, given its JSON schema."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(_allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if "const" in schema:
        return repr(schema["const"])
    match schema["type"]:
        case "integer":
            return "an integer" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "boolean":
            return "True or False"
        case "string":
            return "a string"
        case "null":
            return "None"
        case "array":
            value = schema["items"]["prefixItems"][1]
            return f"a mapping of at most {schema['maxItems']} names to numbers" + _range(value)
    raise AssertionError(f"no words for the schema {schema}")


def _range(schema: dict[str, Any]) -> str:
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g} and at most {schema['maximum']:g}"
    return f" between {_short(schema['minimum'])} and {_short(schema['maximum'])}"


def _short(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
