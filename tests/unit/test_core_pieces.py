"""The core's pieces: each uses earlier ones only, says which, and rebuilds what it is part of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from distutils.core import run_setup
from pathlib import Path

import pytest

import llama_runner

PACKAGE = Path(llama_runner.__file__).parent
ROOT = Path(__file__).parents[2]
STRING_OR_COMMENT = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<prefix>\b[rbfu]{1,2})?(?P<quote>\"{3}|'{3}|"|')(?P<text>(?:\\.|(?!(?P=quote)).)*)(?P=quote)
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def without_text(source: str) -> str:
    """Return the code without comments and strings; of an f-string its expressions stay."""

    def code_of(match: re.Match[str]) -> str:
        if match["comment"] or "f" not in (match["prefix"] or "").lower():
            return ""
        return " ".join(re.findall(r"\{(.*?)\}", match["text"]))

    return STRING_OR_COMMENT.sub(code_of, source)


def defined_names(code: str) -> Iterator[str]:
    """Yield the names that a piece defines for all pieces: those that begin in the first column."""
    for block in re.split(r"\n(?=\S)", code):
        head, _, body = block.partition("\n")
        if head.startswith(("cdef enum", "cdef extern")):
            yield from re.findall(r"^ +(?:.*?\b)?(\w+) *(?:\(| =|,|$)", body, re.MULTILINE)
        declared = (
            re.match(r"(?:cdef )?(?:class|struct|enum|union) (\w+)", head)
            or re.match(r"ctypedef .*?(\w+)$", head)
            or re.match(r"(?:cdef|cpdef|def) [^(=]*?(\w+)\(", head)
            or re.match(r"cdef [^(=:]*?(\w+)(?: =.*)?$", head)
            or re.match(r"(?:DEF )?(\w+) = ", head)
        )
        if declared:
            yield declared[1]


def used_names(code: str) -> set[str]:
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", code))


class Pieces:
    """The pieces in the order of their includes, and what each takes from which other one."""

    def __init__(self, sources: dict[str, str], declared: frozenset[str] = frozenset()) -> None:
        code = {piece: without_text(source) for piece, source in sources.items()}
        homes = {name: piece for piece in code for name in defined_names(code[piece])}
        self.sources = sources
        self.order = list(sources)
        self.taken = {
            piece: {name: homes[name] for name in used_names(code[piece]) & set(homes)}
            for piece in code
        }
        self.declared = declared

    def uses(self, piece: str) -> list[str]:
        """Return the earlier pieces that a piece takes names from, in the order of the includes."""
        earlier = self.order[: self.order.index(piece)]
        return [other for other in earlier if other in self.taken[piece].values()]

    def forward(self) -> list[str]:
        """Describe each name that is used before its piece; a type that is declared may be."""
        return [
            f"{piece} uses {name} of {home}"
            for at, piece in enumerate(self.order)
            for name, home in sorted(self.taken[piece].items())
            if home in self.order[at + 1 :] and name not in self.declared
        ]

    def stated(self, piece: str) -> str | None:
        first = self.sources[piece].partition("\n")[0]
        return first.removeprefix("# Uses: ") if first.startswith("# Uses: ") else None


def included() -> list[str]:
    return re.findall(r'^include "(.*)"$', (PACKAGE / "_core.pyx").read_text(), re.MULTILINE)


def the_core() -> Pieces:
    sources = {Path(name).stem: (PACKAGE / name).read_text() for name in included()}
    types = re.findall(r"^cdef class (\w+)", (PACKAGE / "_core.pxd").read_text(), re.MULTILINE)
    return Pieces(sources, frozenset(types))


def test_each_piece_is_included_once() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("_native/**/*.pxi")}
    assert sorted(included()) == sorted(found)


def test_no_piece_uses_a_later_one() -> None:
    assert the_core().forward() == []


def test_each_piece_says_which_ones_it_uses() -> None:
    core = the_core()
    stated = {piece: core.stated(piece) for piece in core.order}
    assert stated == {piece: ", ".join(core.uses(piece)) or "nothing" for piece in core.order}


def test_a_change_of_any_piece_rebuilds_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (extension,) = run_setup("setup.py", stop_after="init").ext_modules
    pieces = {
        str(path.relative_to(ROOT))
        for suffix in ("pxi", "pxd", "hpp")
        for path in PACKAGE.rglob(f"*.{suffix}")
    }
    assert pieces <= {*extension.depends}


def test_a_change_of_any_source_rebuilds_the_shim() -> None:
    cmake = (ROOT / "llama_cpp_src" / "CMakeLists.txt").read_text()
    match = re.search(r"file\(GLOB_RECURSE SHIM_SOURCES CONFIGURE_DEPENDS (.*)\)", cmake)
    assert match
    patterns = [pattern.removeprefix("${SHIM_DIR}/") for pattern in match[1].split()]
    listed = {path for pattern in patterns for path in (PACKAGE / "_shim").rglob(pattern)}
    assert listed == set(PACKAGE.rglob("*.?pp"))


class TestTheCheckItself:
    def test_a_forward_use_is_found(self) -> None:
        pieces = Pieces(
            {
                "cells": "cdef void drop(int n) noexcept nogil:\n    later(n)\n",
                "room": "cdef int later(int n):\n    return n\n",
            }
        )
        assert pieces.forward() == ["cells uses later of room"]
        assert pieces.uses("cells") == []

    def test_a_backward_use_is_listed(self) -> None:
        pieces = Pieces(
            {
                "errors": "cdef object native_line():\n    pass\ncdef int32_t LIMIT = 3\n",
                "model": "def load():\n    raise E(f'{native_line()}')\n",
                "vocab": "def size():\n    return LIMIT\n",
                "chat": "# native_line\ndef text():\n    'LIMIT'\n    return self.native_line\n",
            }
        )
        assert pieces.forward() == []
        assert [pieces.uses(piece) for piece in pieces.order] == [[], ["errors"], ["errors"], []]

    def test_a_type_may_be_declared_before_its_piece(self) -> None:
        sources = {"model": "cdef f():\n    return Vocab()\n", "vocab": "cdef class Vocab:\n"}
        assert Pieces(sources).forward() == ["model uses Vocab of vocab"]
        assert Pieces(sources, frozenset({"Vocab"})).forward() == []

    def test_members_of_enums_and_foreign_functions_count(self) -> None:
        code = (
            'cdef enum:\n    FIRST = 1\n    SECOND = 2\ncdef extern from "a.h" nogil:\n'
            "    unsigned long ident()\n"
        )
        assert set(defined_names(without_text(code))) >= {"FIRST", "SECOND", "ident"}
