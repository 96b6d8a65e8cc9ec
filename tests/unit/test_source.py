"""Where llama.cpp's source comes from: tiny stand-ins for the tree and the archive, no network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_src.patching import Patch, WholeFile
from llama_cpp_src.source import (
    TREE_VARIABLE,
    Pin,
    SourceError,
    find_tree,
    read_pin,
    unpack,
)

ROOT = Path(__file__).parents[2]
NAME = "tiny-llama-source"
FOLDER = "tiny_llama_source-1.0"

PIN = Pin(
    commit="c0ffee" * 6 + "c0ff",
    version="1.2.3",
    ggml_version="4.5.6",
    sdist_name=NAME,
    sdist_version="1.0",
    sdist_sha256="",
    sdist_tree="vendor/llama.cpp",
)

# A build backend of its own, so that pip needs nothing else to download the archive.
BACKEND = """
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "tiny_llama_source-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\\nName: tiny-llama-source\\nVersion: 1.0\\n")
    return info.name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny-llama-source"
version = "1.0"
"""


def version_lines(prefix: str, version: str) -> str:
    parts = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    return "".join(f"set({prefix}_VERSION_{part} {number})\n" for part, number in parts)


def tree_files(version: str = PIN.version, ggml_version: str = PIN.ggml_version) -> dict[str, str]:
    return {
        "CMakeLists.txt": version_lines("LLAMA", version),
        "ggml/CMakeLists.txt": version_lines("GGML", ggml_version),
        "ggml/src/ggml.c": "int ggml;",
        "ggml/src/ggml-cpu/ops.cpp": "int ops;",
        "ggml/src/ggml-opencl/huge.cl": "not built",
        "src/models/llama.cpp": "int llama;",
        "models/ggml-vocab-tiny.gguf": "vocabulary",
        "models/templates/tiny.jinja": "{{ messages }}",
        "docs/readme.md": "not built",
        ".git": "gitdir: ../nowhere\n",
    }


def patch(line: str) -> Patch:
    """Return a patch that replaces the only line of ggml.c."""
    head = "diff --git a/{0} b/{0}\nindex 1..2\n--- a/{0}\n+++ b/{0}\n".format("ggml/src/ggml.c")
    return Patch("01-line.patch", f"{head}@@ -1 +1 @@\n-int ggml;\n+{line}\n")


ADDED = WholeFile("ggml/src/added.c", "int added;\n")


def write_tree(tree: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


def write_archive(
    path: Path, files: Mapping[str, str], members: tuple[tarfile.TarInfo, ...] = ()
) -> Pin:
    """Write a source distribution and return the pin that fits it."""
    sdist = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n",
        "pyproject.toml": PROJECT,
        "backend.py": BACKEND,
        **{f"{PIN.sdist_tree}/{name}": text for name, text in files.items()},
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in sdist.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return replace(PIN, sdist_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(TREE_VARIABLE, raising=False)
    return tmp_path / "home"


@pytest.fixture
def published(index: Path) -> Pin:
    """The pin of a good archive that pip finds."""
    return write_archive(index / f"{FOLDER}.tar.gz", tree_files())


def assert_names_three_ways_out(message: str) -> None:
    assert "PIP_FIND_LINKS" in message
    assert TREE_VARIABLE in message
    assert "llama-runner's own source distribution" in message


def test_the_pin_is_complete() -> None:
    pin = read_pin()
    assert len(pin.commit) == 40
    assert len(pin.sdist_sha256) == 64
    assert pin.requirement == "llama-cpp-python==0.3.36"


class TestNamedTree:
    def test_is_used_where_it_lies(self, tmp_path: Path, home: Path) -> None:
        tree = write_tree(tmp_path / "mine", tree_files())
        assert find_tree(PIN, home, {TREE_VARIABLE: str(tree)}) == tree
        assert not home.exists()

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            (tree_files(version="1.2.4"), "llama.cpp 1.2.4, not 1.2.3"),
            (tree_files(ggml_version="4.5.5"), "ggml 4.5.5, not 4.5.6"),
        ],
    )
    def test_of_another_version_is_refused(
        self, tmp_path: Path, home: Path, files: dict[str, str], said: str
    ) -> None:
        tree = write_tree(tmp_path / "mine", files)
        with pytest.raises(SourceError) as caught:
            find_tree(PIN, home, {TREE_VARIABLE: str(tree)})
        assert said in str(caught.value)
        assert_names_three_ways_out(str(caught.value))

    def test_that_is_no_tree_is_refused(self, tmp_path: Path, home: Path) -> None:
        with pytest.raises(SourceError, match=r"is not a llama\.cpp source tree") as caught:
            find_tree(PIN, home, {TREE_VARIABLE: str(tmp_path / "missing")})
        assert_names_three_ways_out(str(caught.value))


class TestFetchedTree:
    def test_is_pruned_and_keeps_the_test_assets(self, published: Pin, home: Path) -> None:
        tree = find_tree(published, home)
        assert tree == home / "llama.cpp"
        assert files_below(tree) == {
            ".llama_runner_pin",
            "CMakeLists.txt",
            "ggml/CMakeLists.txt",
            "ggml/src/ggml.c",
            "ggml/src/ggml-cpu/ops.cpp",
            "src/models/llama.cpp",
            "models/ggml-vocab-tiny.gguf",
            "models/templates/tiny.jinja",
        }

    def test_is_fetched_once(self, published: Pin, home: Path, index: Path) -> None:
        tree = find_tree(published, home)
        for archive in index.iterdir():
            archive.unlink()
        assert find_tree(published, home) == tree

    def test_of_an_earlier_pin_is_replaced(self, published: Pin, home: Path) -> None:
        tree = find_tree(published, home)
        (tree / "left-over").touch()
        find_tree(replace(published, commit="d" * 40), home)
        assert not (tree / "left-over").exists()
        assert [path.name for path in home.iterdir() if path.is_dir()] == ["llama.cpp"]

    def test_is_patched(self, published: Pin, home: Path) -> None:
        tree = find_tree(replace(published, changes=(patch("int more;"), ADDED)), home)
        assert (tree / "ggml/src/ggml.c").read_text() == "int more;"
        assert (tree / "ggml/src/added.c").read_text() == ADDED.text

    def test_with_other_patches_is_replaced(self, published: Pin, home: Path) -> None:
        find_tree(replace(published, changes=(patch("int more;"),)), home)
        tree = find_tree(replace(published, changes=(patch("int other;"),)), home)
        assert (tree / "ggml/src/ggml.c").read_text() == "int other;"

    def test_that_a_patch_does_not_fit_is_not_kept(self, published: Pin, home: Path) -> None:
        misfit = replace(published, changes=(patch("int more;"), patch("int other;")))
        with pytest.raises(SourceError, match=r"hunk 1 of ggml/src/ggml\.c does not fit") as caught:
            find_tree(misfit, home)
        assert_names_three_ways_out(str(caught.value))
        assert files_below(home) <= {".fetching.lock"}

    def test_that_was_never_completed_is_not_taken(self, published: Pin, home: Path) -> None:
        write_tree(home / "llama.cpp", {"CMakeLists.txt": "half a file"})
        tree = find_tree(published, home)
        assert "ggml/CMakeLists.txt" in files_below(tree)

    def test_of_another_version_is_refused(self, index: Path, home: Path) -> None:
        pin = write_archive(index / f"{FOLDER}.tar.gz", tree_files(version="9.9.9"))
        with pytest.raises(SourceError, match=r"llama.cpp 9\.9\.9, not 1\.2\.3"):
            find_tree(pin, home)

    def test_with_another_hash_is_refused(self, published: Pin, home: Path) -> None:
        with pytest.raises(SourceError, match="another sha256") as caught:
            find_tree(replace(published, sdist_sha256="0" * 64), home)
        assert_names_three_ways_out(str(caught.value))
        assert files_below(home) <= {".fetching.lock"}

    @pytest.mark.usefixtures("index")
    def test_that_no_index_has(self, home: Path) -> None:
        with pytest.raises(SourceError, match=f"pip could not fetch {NAME}==1.0") as caught:
            find_tree(replace(PIN, sdist_sha256="0" * 64), home)
        assert_names_three_ways_out(str(caught.value))

    def test_without_a_network(
        self, home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # nobody listens
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(SourceError, match=f"pip could not fetch {NAME}==1.0") as caught:
            find_tree(replace(PIN, sdist_sha256="0" * 64), home)
        assert_names_three_ways_out(str(caught.value))

    def test_a_target_that_is_not_a_folder_is_refused(self, published: Pin, home: Path) -> None:
        home.write_text("a file in its place")
        with pytest.raises(SourceError, match="could not be written") as caught:
            find_tree(published, home)
        assert_names_three_ways_out(str(caught.value))

    def test_by_several_processes_at_once(self, published: Pin, home: Path) -> None:
        script = (
            "import sys, pathlib; from llama_cpp_src.source import Pin, find_tree;"
            f"print(find_tree({published!r}, pathlib.Path(sys.argv[1])))"
        )
        command = [sys.executable, "-c", script, str(home)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
        assert {out.decode().strip() for out, _ in outputs} == {str(home / "llama.cpp")}
        assert sum(b"Fetching" in err for _, err in outputs) == 1
        assert [path.name for path in home.iterdir() if path.is_dir()] == ["llama.cpp"]


def member_named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    member.size = 3 if kind == tarfile.REGTYPE else 0
    return member


INSIDE = f"{FOLDER}/{PIN.sdist_tree}"


class TestUnsafeArchive:
    @pytest.mark.parametrize(
        "member",
        [
            member_named("../evil"),
            member_named("/tmp/evil"),
            member_named(f"{INSIDE}/src/../../../../../evil"),
            member_named(f"{INSIDE}/src/link", tarfile.SYMTYPE, "/etc/passwd"),
            member_named(f"{INSIDE}/src/link", tarfile.LNKTYPE, f"{FOLDER}/PKG-INFO"),
        ],
        ids=["parent", "absolute", "parent-inside", "symbolic-link", "hard-link"],
    )
    def test_is_refused(self, tmp_path: Path, member: tarfile.TarInfo) -> None:
        pin = write_archive(tmp_path / "a.tar.gz", tree_files(), (member,))
        with pytest.raises(SourceError, match="unsafe"):
            unpack(tmp_path / "a.tar.gz", tmp_path / "out", pin)

    def test_leaves_nothing_behind(self, index: Path, home: Path) -> None:
        bad = member_named(f"{INSIDE}/src/link", tarfile.SYMTYPE, "ggml.c")
        pin = write_archive(index / f"{FOLDER}.tar.gz", tree_files(), (bad,))
        with pytest.raises(SourceError):
            find_tree(pin, home)
        assert files_below(home) <= {".fetching.lock"}

    def test_with_another_hash_is_not_even_opened(self, tmp_path: Path) -> None:
        archive = tmp_path / "a.tar.gz"
        archive.write_bytes(b"this is no archive")
        with pytest.raises(SourceError, match="has sha256"):
            unpack(archive, tmp_path / "out", replace(PIN, sdist_sha256="0" * 64))
        assert not (tmp_path / "out").exists()


NAME_PARTS = st.sampled_from(["..", ".", "", "src", "link", "vendor", "llama.cpp", FOLDER, INSIDE])
NAMES = st.lists(NAME_PARTS, min_size=1, max_size=8).map("/".join).filter(lambda name: name != "")
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])


@given(members=st.lists(st.builds(member_named, NAMES, KINDS, NAMES), max_size=4))
def test_no_archive_writes_outside_its_folder(
    members: list[tarfile.TarInfo], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    archive, out = folder / "a.tar.gz", folder / "deep" / "er" / "out"
    pin = write_archive(archive, {}, tuple(members))
    # OSError: a name that is both a file and a folder cannot be written.
    with contextlib.suppress(SourceError, OSError):
        unpack(archive, out, pin)
    strays = [path for path in walk(folder) if path != archive and out not in path.parents]
    assert strays == []
    assert not any(path.is_symlink() for path in walk(folder))


def walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
