"""Changes to a source tree: what fits is applied exactly, and what does not fit says where."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_src.patching import Patch, PatchError, WholeFile, read_changes
from llama_cpp_src.source import TREE_VARIABLE, find_tree, read_pin

BEFORE = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n"
AFTER = "one\n2\nthree\nfour\nfive\nsix\n6.5\nseven\n"
HEAD = """\
diff --git a/src/a.c b/src/a.c
index 1111111..2222222 100644
--- a/src/a.c
+++ b/src/a.c
"""
FIRST = """\
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""
SECOND = """\
@@ -6,2 +6,3 @@
 six
+6.5
 seven
"""
DIFF = HEAD + FIRST + SECOND
HEADER = "Say two and six and a half as numbers\n\n--- why\n@@ this is still the header\n\n"


def patch(text: str) -> Patch:
    return Patch("01-numbers.patch", text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.c").write_text(BEFORE)
    return tmp_path


class TestPatch:
    def test_changes_the_lines_of_its_hunks(self, tree: Path) -> None:
        patch(HEADER + DIFF).apply(tree)
        assert (tree / "src/a.c").read_text() == AFTER

    def test_changes_several_files(self, tree: Path) -> None:
        (tree / "b.c").write_text(BEFORE)
        patch(DIFF + DIFF.replace("src/a.c", "b.c")).apply(tree)
        assert (tree / "src/a.c").read_text() == (tree / "b.c").read_text() == AFTER

    def test_keeps_other_line_endings_and_a_last_line_without_one(self, tree: Path) -> None:
        (tree / "src/a.c").write_bytes(BEFORE.encode() + b"crlf\r\n\x0cend")
        patch(DIFF).apply(tree)
        assert (tree / "src/a.c").read_bytes() == AFTER.encode() + b"crlf\r\n\x0cend"

    def test_fits_at_another_line_if_there_is_only_one_such_place(self, tree: Path) -> None:
        (tree / "src/a.c").write_text("zero\n" + BEFORE)
        patch(DIFF).apply(tree)
        assert (tree / "src/a.c").read_text() == "zero\n" + AFTER

    def test_fits_at_the_stated_line_if_there_are_several_such_places(self, tree: Path) -> None:
        (tree / "src/a.c").write_text(BEFORE * 2)
        patch(DIFF).apply(tree)
        assert (tree / "src/a.c").read_text() == AFTER + BEFORE

    @pytest.mark.parametrize(
        ("content", "number"),
        [
            (BEFORE.replace("two", "zwei"), 1),
            (BEFORE.replace("three", "three "), 1),
            (BEFORE.replace("seven", "seven\r"), 2),
            ("zero\n" + BEFORE * 2, 1),
            (AFTER, 1),
            ("six\nseven\none\ntwo\nthree\n", 2),
            ("one\ntwo\n", 1),
            ("", 1),
        ],
        ids=[
            "other-line",
            "other-space",
            "other-ending",
            "two-places",
            "already-applied",
            "other-order",
            "file-too-short",
            "empty-file",
        ],
    )
    def test_that_does_not_fit_names_the_hunk_and_changes_nothing(
        self, tree: Path, content: str, number: int
    ) -> None:
        (tree / "src/a.c").write_bytes(content.encode())
        with pytest.raises(PatchError) as caught:
            patch(DIFF).apply(tree)
        line = {1: 1, 2: 6}[number]
        assert str(caught.value) == (
            f"01-numbers.patch: hunk {number} of src/a.c does not fit at line {line}"
        )
        assert (tree / "src/a.c").read_bytes() == content.encode()

    def test_of_a_missing_file_names_it(self, tree: Path) -> None:
        (tree / "src/a.c").unlink()
        with pytest.raises(PatchError, match=r"01-numbers\.patch: src/a\.c is not in the tree"):
            patch(DIFF).apply(tree)
        assert not (tree / "src/a.c").exists()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "there is no diff in it"),
            (HEADER, "there is no diff in it"),
            (DIFF[:-3], "the last line is cut off"),
            (HEAD, "the diff of src/a.c is cut off"),
            (HEAD[: HEAD.index("+++")], "line 1 does not begin the diff of a file"),
            (DIFF.removesuffix(" seven\n"), "hunk 2 of src/a.c is cut off"),
            (HEAD + FIRST.removesuffix(" three\n") + SECOND, "line 9 is not a line of hunk 1"),
            (DIFF + " eight\n", "line 14 does not begin the diff of a file"),
            (DIFF.replace("-two\n", ""), "line 9 is not a line of hunk 1"),
            (DIFF.replace("6,2 +6,3", "6,1 +6,3"), "hunk 2 of src/a.c has other numbers of lines"),
            (HEAD + "@@ -0,0 +1 @@\n+new\n", "hunk 1 of src/a.c has no context"),
            (DIFF.replace("+++ b/src/a.c", "+++ b/src/b.c"), "line 1 does not begin"),
            (DIFF.replace("--- a/src/a.c", "--- /dev/null"), "line 1 does not begin"),
        ],
    )
    def test_that_is_not_a_whole_diff_is_refused(self, tree: Path, text: str, said: str) -> None:
        with pytest.raises(PatchError) as caught:
            patch(text).apply(tree)
        assert f"01-numbers.patch: {said}" in str(caught.value)
        assert (tree / "src/a.c").read_text() == BEFORE

    @given(end=st.integers(0, len(HEADER + DIFF) - 1))
    def test_that_is_cut_off_anywhere_is_refused_or_has_whole_hunks(
        self, end: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        tree = tmp_path_factory.mktemp("tree")
        (tree / "src").mkdir()
        (tree / "src/a.c").write_text(BEFORE)
        text = (HEADER + DIFF)[:end]
        if text == HEADER + HEAD + FIRST:
            return
        with pytest.raises(PatchError):
            patch(text).apply(tree)
        assert (tree / "src/a.c").read_text() == BEFORE


class TestWholeFile:
    def test_is_added(self, tree: Path) -> None:
        WholeFile("new/b.c", "new\n").apply(tree)
        assert (tree / "new/b.c").read_text() == "new\n"

    def test_replaces_the_file_that_it_names(self, tree: Path) -> None:
        digest = hashlib.sha256(BEFORE.encode()).hexdigest()
        WholeFile("src/a.c", "new\n", digest).apply(tree)
        assert (tree / "src/a.c").read_text() == "new\n"

    @pytest.mark.parametrize("replaces", ["", "0" * 64])
    def test_replaces_no_other_file(self, tree: Path, replaces: str) -> None:
        with pytest.raises(PatchError, match=r"src/a\.c: the tree's file has sha256 [0-9a-f]{64}"):
            WholeFile("src/a.c", "new\n", replaces).apply(tree)
        assert (tree / "src/a.c").read_text() == BEFORE

    def test_replaces_no_missing_file(self, tree: Path) -> None:
        with pytest.raises(PatchError, match="there is none"):
            WholeFile("b.c", "new\n", "0" * 64).apply(tree)
        assert not (tree / "b.c").exists()


def test_changes_are_read_in_the_order_in_which_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "files/src").mkdir(parents=True)
    (tmp_path / "02-b.patch").write_text("b\r\n", newline="")
    (tmp_path / "01-a.patch").write_text("a\n")
    (tmp_path / "README.md").write_text("not a change\n")
    (tmp_path / "files/src/a.c").write_text("a\n")
    (tmp_path / "files/b.c").write_text("b\n")
    (tmp_path / "replaced.sha256").write_text(f"{'0' * 64}  src/a.c\n")
    assert read_changes(tmp_path) == (
        Patch("01-a.patch", "a\n"),
        Patch("02-b.patch", "b\r\n"),
        WholeFile("b.c", "b\n"),
        WholeFile("src/a.c", "a\n", "0" * 64),
    )


@pytest.mark.skipif(TREE_VARIABLE in os.environ, reason="a named tree is used as it is")
def test_the_pinned_changes_are_in_the_unpacked_tree() -> None:
    tree = find_tree()
    for change in read_pin().changes:
        if isinstance(change, WholeFile):
            assert (tree / change.name).read_text(encoding="utf-8") == change.text
        else:
            with pytest.raises(PatchError, match="does not fit"):
                change.apply(tree)
