"""The package's surface: its names, what importing it costs, its keywords, its errors."""

from __future__ import annotations

import ast
import builtins
import errno
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import llama_runner
from llama_runner import errors, loaders
from llama_runner.errors import LlamaError
from llama_runner.params import (
    ContextParams,
    GenerationOptions,
    GenerationParams,
    ModelParams,
    RunnerOptions,
)

PUBLIC = llama_runner.__all__

# Each takes longer to import than the package may.
SLOW = ["numpy", "pydantic", "click", "rich", "huggingface_hub", "llama_runner._core"]


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """(parent, builtin) of each error in the tree that the docstring of errors.py draws."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)(\w+(?:Error))(?: +\((\w+)\))?", line)
        if drawn:
            depth = len(drawn[1]) // 4
            path[depth:] = [drawn[2]]
            tree[drawn[2]] = (path[depth - 1] if depth else None, drawn[3])
    return tree


TREE = drawn_tree()


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [llama_runner, loaders], ids=lambda package: package.__name__)
def test_type_checkers_see_the_names_that_there_are(package: ModuleType) -> None:
    """And in the modules from which they are loaded."""
    stub = Path(package.__file__ or "").with_suffix(".pyi").read_text(encoding="utf-8")
    declared = {
        alias.name: node.module
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {name: f"{package.__name__}.{home}" for name, home in package._HOME.items()}
    assert declared.keys() == loaded.keys() == set(package.__all__) - {"__version__"}
    for name, module in loaded.items():
        assert getattr(import_module(module), name) is getattr(package, name)
        assert getattr(import_module(str(declared[name])), name) is getattr(package, name)


def test_dir_shows_public_names_only() -> None:
    assert dir(llama_runner) == sorted(PUBLIC)
    assert dir(loaders) == sorted(loaders.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_listed(name: str) -> None:
    found: dict[str, object] = {}
    exec(f"from llama_runner import {name}", found)
    assert found[name] is getattr(llama_runner, name)
    assert name in dir(llama_runner)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(llama_runner.__all__)


TYPES = [name for name in PUBLIC if name[0].isupper()]


@pytest.mark.parametrize("name", TYPES)
def test_every_public_type_can_stand_in_an_annotation(name: str) -> None:
    assert getattr(llama_runner, name) | None
    assert list[getattr(llama_runner, name)]  # type: ignore[misc]


def members(kind: type) -> Iterator[object]:
    """The public methods and properties of a class, and itself for its fields."""
    yield kind
    for name, member in vars(kind).items():
        if not name.startswith("_"):
            yield member.fget if isinstance(member, property) else member


def given_back() -> Iterator[tuple[str, type]]:
    """Each class of the package that a public name gives back or has as a field."""
    for name in PUBLIC:
        public = getattr(llama_runner, name)
        if name == "SessionMark":
            continue  # what is in it is the session's
        for member in members(public) if isinstance(public, type) else [public]:
            annotations = getattr(member, "__annotations__", {})
            if not isinstance(member, type):
                annotations = {"return": annotations.get("return", "")}
            module = sys.modules.get(getattr(member, "__module__", None) or "")
            for annotation in annotations.values():
                for word in re.findall(r"\w+", str(annotation)):
                    found = getattr(module, word, None)
                    if isinstance(found, type) and found.__module__.startswith("llama_runner"):
                        yield name, found


def test_what_public_names_give_back_is_public() -> None:
    found = list(given_back())
    assert {"Span", "SessionMark", "GgufInfo", "Sampler"} <= {kind.__name__ for _, kind in found}
    assert [(name, kind) for name, kind in found if kind.__name__ not in PUBLIC] == []


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        llama_runner.Lama  # noqa: B018


def test_import_loads_nothing_slow() -> None:
    program = f"import sys, llama_runner; print([n for n in {SLOW} if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


# ---- keywords ----------------------------------------------------------------------------------


def test_runner_keywords_are_the_fields_of_both_parameter_classes() -> None:
    fields = {**ModelParams.model_fields, **ContextParams.model_fields}
    assert set(RunnerOptions.__annotations__) == set(fields)
    assert not set(ModelParams.model_fields) & set(ContextParams.model_fields)


def test_generation_keywords_are_the_fields_but_max_tokens() -> None:
    # max_tokens is a parameter of its own, behind the prompt.
    fields = set(GenerationParams.model_fields)
    assert set(GenerationOptions.__annotations__) == fields - {"max_tokens"}


# ---- errors ------------------------------------------------------------------------------------


def test_every_error_is_in_the_drawn_tree() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, LlamaError)
    }
    assert set(TREE) == defined == set(errors.__all__)


@pytest.mark.parametrize("name", TREE)
def test_error_has_the_bases_that_are_drawn(name: str) -> None:
    parent, builtin = TREE[name]
    bases = [getattr(errors, parent)] if parent else [Exception]
    if builtin:
        bases.append(getattr(builtins, builtin))
    assert getattr(errors, name).__bases__ == tuple(bases)


@pytest.mark.parametrize("name", TREE)
def test_error_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("too long: shorten it", field="prompt", native="no slot")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) == "too long: shorten it (llama.cpp: no slot)"
    assert (again.message, again.field, again.native) == (
        "too long: shorten it",
        "prompt",
        "no slot",
    )


OF_FILES = [name for name in TREE if issubclass(getattr(errors, name), OSError)]


@pytest.mark.parametrize("name", OF_FILES)
def test_what_an_error_says_of_its_file_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("not there")
    error.errno, error.strerror, error.filename = errno.ENOENT, "no such file", "a/b"
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.strerror, again.filename) == (errno.ENOENT, "no such file", "a/b")
    assert str(again) == "not there"
