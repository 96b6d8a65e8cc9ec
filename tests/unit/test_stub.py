"""The types of the native core (_core.pyi) are those of the compiled module."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llama_runner import _core

STUB = Path(__file__).parents[2] / "llama_runner" / "_core.pyi"

# What Cython adds for itself, and constructors that only say where the object comes from.
NOT_IN_STUB = r"""
llama_runner\._core\.(__reduce_cython__|__setstate_cython__|__test__)
llama_runner\._core\.(Sequence|TokenizedText|Vocab)\.__init__
"""


def constructors() -> dict[str, list[str]]:
    """Parameters of each __init__ in the stub, by class name."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        for part in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                parameters = [*part.args.args[1:], *part.args.kwonlyargs]
                found[node.name] = [parameter.arg for parameter in parameters]
    return found


def test_stub_has_the_names_parameters_and_defaults_of_the_module(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(NOT_IN_STUB)
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "llama_runner._core",
            "--ignore-disjoint-bases",
            f"--allowlist={allowed}",
        ],
        cwd=STUB.parents[1],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", [n for n, parameters in constructors().items() if parameters])
def test_constructor_takes_the_parameters_of_the_stub(name: str) -> None:
    # A compiled constructor has no signature to compare, but says which keyword it does not know,
    # and its docstring lists them all.
    kind = getattr(_core, name)
    parameters = constructors()[name]
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
        kind(**dict.fromkeys([*parameters, "bogus"]))
    section = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(kind), re.DOTALL)
    assert section
    names = re.findall(r"^    (\w[\w, ]*):", section[1], re.MULTILINE)
    assert [n for line in names for n in line.split(", ")] == parameters


@pytest.mark.parametrize("name", ["Sequence", "TokenizedText", "Vocab"])
def test_objects_that_others_make_cannot_be_constructed(name: str) -> None:
    with pytest.raises(TypeError, match="comes from"):
        getattr(_core, name)()
