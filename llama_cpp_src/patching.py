"""Changes to an unpacked source tree: unified diffs, and whole files.

A build from a source distribution needs Python, pip, CMake and a compiler, and must not need git or
patch as well. The package patch-ng would do without them, but it counts a file that looks patched
already as a success, ignores line endings, changes the process's working directory, and says why a
patch does not fit only in its log. The pinned tree is known byte by byte, so nothing has to be
guessed: a hunk is applied where its lines are found exactly, or there is an error that names it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Change", "Patch", "PatchError", "WholeFile", "read_changes"]


class PatchError(Exception):
    """A change that does not fit the tree; the message names the patch, the file and the hunk."""


@dataclass(frozen=True)
class Patch:
    """A unified diff as ``git diff`` writes it, after a header that says why.

    It changes files that are there; it neither adds, removes nor renames any.
    """

    name: str
    text: str

    def apply(self, tree: Path) -> None:
        """Change the files of the tree.

        Raises:
            PatchError: The patch is not a complete diff, or does not fit the tree.
        """
        for file, hunks in tuple(_files(self)):  # the whole patch is read before a file is changed
            path = tree / file
            try:
                lines = path.read_bytes().decode().split("\n")
            except FileNotFoundError as error:
                raise PatchError(f"{self.name}: {file} is not in the tree") from error
            changed: list[str] = []
            copied = 0
            for number, hunk in enumerate(hunks, 1):
                place = _place(hunk, lines, copied)
                if place is None:
                    raise PatchError(
                        f"{self.name}: hunk {number} of {file} does not fit at line {hunk.line}"
                    )
                changed += [*lines[copied:place], *hunk.new]
                copied = place + len(hunk.old)
            path.write_bytes("\n".join([*changed, *lines[copied:]]).encode())


@dataclass(frozen=True)
class WholeFile:
    """A file that is added to the tree, or that replaces one of known content."""

    name: str
    text: str
    # The SHA-256 of the file that it replaces; empty for a file that is added.
    replaces: str = ""

    def apply(self, tree: Path) -> None:
        """Write the file.

        Raises:
            PatchError: The tree holds another file of this name than the one to be replaced.
        """
        path = tree / self.name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        if found != self.replaces:
            raise PatchError(
                f"{self.name}: the tree's file has sha256 {found or '(there is none)'}, "
                f"not {self.replaces or '(there should be none)'}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.text.encode())


Change = Patch | WholeFile


def read_changes(folder: Path) -> tuple[Change, ...]:
    """Read the changes of a folder in the order in which they are made.

    First come the patches ``*.patch`` by name, then the files below ``files/``. ``replaced.sha256``
    lists the upstream files that some of those replace, in the format of ``sha256sum``.
    """
    listed = folder / "replaced.sha256"
    replaced = {}
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines():
            digest, name = line.split(maxsplit=1)
            replaced[name] = digest
    patches = [Patch(path.name, _text(path)) for path in sorted(folder.glob("*.patch"))]
    files = folder / "files"
    whole = [
        WholeFile(name := path.relative_to(files).as_posix(), _text(path), replaced.get(name, ""))
        for path in sorted(files.rglob("*"))
        if path.is_file()
    ]
    return (*patches, *whole)


def _text(path: Path) -> str:
    return path.read_bytes().decode()


@dataclass(frozen=True)
class _Hunk:
    line: int  # where the old lines begin, counted from 1
    old: list[str]
    new: list[str]


_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def _files(patch: Patch) -> Iterator[tuple[str, list[_Hunk]]]:
    """Yield the name and the hunks of each file that a patch changes."""
    lines = patch.text.split("\n")
    if lines.pop():
        raise PatchError(f"{patch.name}: the last line is cut off")
    at = next((i for i, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    if at == len(lines):
        raise PatchError(f"{patch.name}: there is no diff in it")
    while at < len(lines):
        head = "\n".join(lines[at : at + 4])
        match = re.fullmatch(r"diff --git a/(.+) b/\1\nindex .+\n--- a/\1\n\+\+\+ b/\1", head)
        if not match:
            raise PatchError(f"{patch.name}: line {at + 1} does not begin the diff of a file")
        file = match[1]
        hunks: list[_Hunk] = []
        at += 4
        while at < len(lines) and (match := _HUNK.match(lines[at])):
            n_old, n_new = (int(count or 1) for count in match.group(2, 3))
            hunk = _Hunk(int(match[1]), [], [])
            where = f"hunk {len(hunks) + 1} of {file}"
            at += 1
            while len(hunk.old) < n_old or len(hunk.new) < n_new:
                if at == len(lines):
                    raise PatchError(f"{patch.name}: {where} is cut off")
                sign, line = lines[at][:1], lines[at][1:]
                if sign not in (" ", "-", "+"):
                    raise PatchError(f"{patch.name}: line {at + 1} is not a line of {where}")
                if sign != "+":
                    hunk.old.append(line)
                if sign != "-":
                    hunk.new.append(line)
                at += 1
            if not hunk.old:
                raise PatchError(f"{patch.name}: {where} has no context")
            if (len(hunk.old), len(hunk.new)) != (n_old, n_new):
                raise PatchError(f"{patch.name}: {where} has other numbers of lines than it says")
            hunks.append(hunk)
        if not hunks:
            raise PatchError(f"{patch.name}: the diff of {file} is cut off")
        yield file, hunks


def _place(hunk: _Hunk, lines: list[str], start: int) -> int | None:
    """Return where the old lines are: at the stated line, or at the only place after ``start``."""
    length = len(hunk.old)
    places = [
        i
        for i in range(start, len(lines) - length + 1)
        if lines[i] == hunk.old[0] and lines[i : i + length] == hunk.old
    ]
    if hunk.line - 1 in places:
        return hunk.line - 1
    return places[0] if len(places) == 1 else None
