"""What users give as a model: whatever it is, the answer is one clear line, and nothing waits."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_runner.errors import (
    FileReadError,
    FileWriteError,
    InvalidParameterError,
    LlamaError,
    LlamaSystemError,
    ModelMetadataError,
    ModelNotFoundError,
)
from llama_runner.loaders import (
    ModelMetadata,
    estimate_memory,
    find_model,
    list_models,
    load_model,
    pull,
    read_gguf,
    remove,
    validate_model,
    verify,
)
from llama_runner.loaders.catalogue.resolve import checked_model
from llama_runner.params import ContextParams
from tests.unit.loaders.model_files import tiny_llama

pytestmark = pytest.mark.usefixtures("home")

TAKING_A_MODEL = [
    estimate_memory,
    find_model,
    load_model,
    ModelMetadata.from_gguf,
    read_gguf,
    validate_model,
]
TAKING_A_NAME = [pull, verify, remove]
ODD_NAMES = ["", "x" * 300, "x" * 5000, "a\0b", "\ud800", "~nouser/x.gguf", "x" * 300 + ".gguf"]


def refusal(use: Callable[[Any], object], given: object) -> LlamaError:
    with pytest.raises(LlamaError) as caught:
        use(given)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("use", TAKING_A_MODEL + TAKING_A_NAME)
@pytest.mark.parametrize("given", [None, 3, b"x", io.BytesIO(b"GGUF"), io.StringIO(), ["x"]])
def test_a_value_that_is_not_a_path_is_named(use: Callable[[Any], object], given: object) -> None:
    error = refusal(use, given)
    assert isinstance(error, InvalidParameterError)
    assert "must be a" in str(error)


@pytest.mark.parametrize("use", TAKING_A_MODEL + TAKING_A_NAME)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_nothing_can_have(use: Callable[[Any], object], name: str) -> None:
    error = refusal(use, name)
    assert len(str(error)) < 500
    assert "directory" not in str(error)


@pytest.mark.parametrize("use", [use for use in TAKING_A_MODEL if use is not find_model])
@pytest.mark.parametrize("ending", [".gguf", ".json", ""])
def test_a_path_that_is_not_a_file_is_named(
    use: Callable[[Any], object], ending: str, tmp_path: Path
) -> None:
    def place(name: str) -> Path:
        return tmp_path / f"{name}{ending}"

    os.mkfifo(place("fifo"))
    place("folder").mkdir()
    place("loop").symlink_to(place("loop"))
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(tmp_path, os.O_RDONLY)  # a socket's whole path may have 108 bytes
        server.bind(f"/proc/self/fd/{folder}/socket{ending}")
        os.close(folder)
    kinds = {"fifo": "a pipe", "folder": "a directory", "socket": "a socket", "loop": "symbolic"}
    for name, words in kinds.items():
        assert words in str(refusal(use, place(name)))
    assert "a device" in str(refusal(use, "/dev/null"))


def test_a_pipe_in_the_catalogue_does_not_block_it(home: Path) -> None:
    os.mkfifo(home / "catalogue" / "pipe.json")
    assert "a pipe" in str({entry.name: entry for entry in list_models()}["pipe"].problem)


def test_functions_about_files_say_who_takes_names() -> None:
    with pytest.raises(ModelNotFoundError, match=r"find_model\(\)"):
        read_gguf("smollm2-135m")


@pytest.mark.parametrize("use", TAKING_A_MODEL)
@pytest.mark.parametrize("ending", [".gguf", ".json"])
def test_a_missing_file_is_what_python_says_it_is(
    use: Callable[[Any], object], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"missing{ending}"
    error = refusal(use, path)
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (errno.ENOENT, str(path))


@pytest.fixture
def folder(home: Path) -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)
        for forbidden in Path(place).iterdir():
            forbidden.chmod(0o700)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user for whom permissions count."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("forbidden", ["files", "folder"])
def test_what_this_user_may_not_read_is_what_python_says_it_is(
    forbidden: str, folder: Path
) -> None:
    inside = folder / "inside"
    inside.mkdir()
    model = tiny_llama().write(inside / "tiny.gguf")
    description = inside / "tiny.json"
    description.write_text('{"name": "Tiny", "path": "tiny.gguf", "architecture": "llama"}')
    uses = [(use, model) for use in TAKING_A_MODEL if use not in (find_model, load_model)]
    uses += [(find_model, description), (load_model, description)]
    if forbidden == "folder":
        uses.append((find_model, model))
        inside.chmod(0)
    else:
        model.chmod(0)
        description.chmod(0)
    for use, path in uses:
        with nobody(), pytest.raises(FileReadError, match="let this user read it") as caught:
            use(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EACCES, str(path))


@pytest.mark.parametrize("forbidden", ["model", "folder", "description"])
def test_a_model_that_has_a_name_and_may_not_be_read(
    forbidden: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", str(folder))
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(folder / "cache"))
    inside = folder / "inside"
    inside.mkdir()
    model = tiny_llama().write(inside / "tiny.gguf")
    values = {"name": "Tiny", "path": str(model), "architecture": "llama", "sha256": "0" * 64}
    description = folder / "tiny.json"
    description.write_text(json.dumps(values))
    {"model": model, "folder": inside, "description": description}[forbidden].chmod(0)
    with nobody(), pytest.raises(FileReadError, match="let this user read it") as caught:
        verify("tiny")
    assert caught.value.filename == str(description if forbidden == "description" else model)
    if forbidden == "description":
        with nobody():
            entries = {entry.name: entry for entry in list_models()}
        assert "Permission denied" in str(entries["tiny"].problem)
    if forbidden == "folder":
        for use in (find_model, pull):
            with nobody(), pytest.raises(FileReadError):
                use("tiny")


def test_a_disk_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama().write(folder / "tiny.gguf")

    def broken(descriptor: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with checked_model(model, "full") as found:
        monkeypatch.setattr("os.pread", broken)
        with pytest.raises(FileReadError, match="Input/output error") as caught:
            found.fingerprint()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(model))


def test_a_model_file_is_no_description(tmp_path: Path) -> None:
    with pytest.raises(ModelMetadataError, match="from_gguf"):
        load_model(tiny_llama().write(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("variable", ["LLAMA_RUNNER_CACHE", "LLAMA_RUNNER_CATALOGUE"])
def test_a_directory_that_cannot_be(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/" + "x" * 5000, __file__):
        monkeypatch.setenv(variable, place)
        with pytest.raises(LlamaSystemError, match=variable):
            list_models()
    refusal(find_model, "smollm2-135m")
    refusal(pull, "hf:owner/repo:tiny.gguf")


def test_a_tilde_is_the_home_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    model = tiny_llama().write(home / "tiny.gguf")
    for given in ("~/tiny.gguf", Path("~/tiny.gguf")):
        assert find_model(given) == model
        assert read_gguf(given).path == model
        assert validate_model(given).info.path == model
        metadata = ModelMetadata.from_gguf(given)
        assert metadata.path == model
        assert ModelMetadata(name="Tiny", architecture="llama", path=Path(given)).path == model
    metadata.save("~/saved.json")
    description = home / "catalogue" / "tiny.json"
    description.write_text('{"name": "Tiny", "path": "~/tiny.gguf", "architecture": "llama"}')
    for described in ("~/saved.json", "~/catalogue/tiny.json"):
        assert load_model(described).path == find_model(described) == model
    assert find_model("tiny") == model
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", "~/catalogue")
    assert find_model("tiny") == model
    assert ContextParams(parking_dir="~/cache").parking_dir == str(home / "cache")
    with pytest.raises(ModelNotFoundError, match="no model file at"):
        read_gguf("~/missing.gguf")


def test_a_description_whose_path_is_too_long(tmp_path: Path) -> None:
    description = tmp_path / "long.json"
    description.write_text(
        '{"name": "Long", "architecture": "llama", "path": "%s.gguf"}' % ("x" * 300)
    )
    assert isinstance(refusal(estimate_memory, description), FileReadError)


@pytest.mark.parametrize(
    "place", ["missing/x.json", ".", "x" * 300, "a\0b", "\ud800", None, 3], ids=repr
)
def test_a_description_that_cannot_be_saved_there(place: Any, tmp_path: Path) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    refusal(metadata.save, str(tmp_path / place) if isinstance(place, str) else place)
    assert list(tmp_path.glob("*.part")) == list(tmp_path.glob(".*.part")) == []


def test_a_saved_description_is_as_readable_as_other_files(tmp_path: Path) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    before = os.umask(0o022)
    try:
        metadata.save(tmp_path / "tiny.json")
    finally:
        os.umask(before)
    assert (tmp_path / "tiny.json").stat().st_mode & 0o777 == 0o644


def test_a_description_that_is_written_again_is_for_those_whom_it_was_for(tmp_path: Path) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    path = tmp_path / "tiny.json"
    for mode in (0o600, 0o664):
        path.touch()
        path.chmod(mode)
        metadata.save(path)
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_description_that_root_writes_again_keeps_its_owner(folder: Path) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    path = folder / "tiny.json"
    path.touch()
    os.chown(path, 1000, 2000)
    path.chmod(0o660)
    metadata.save(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1000, 2000, 0o660)


def test_a_group_that_cannot_be_kept_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    path = tmp_path / "tiny.json"
    path.touch()
    path.chmod(0o664)

    def refused(descriptor: int, owner: int, group: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.fchown", refused)
    metadata.save(path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_what_cannot_be_written_is_what_python_says_it_is(tmp_path: Path) -> None:
    metadata = ModelMetadata(name="Tiny", path=Path("x.gguf"), architecture="llama")
    path = tmp_path / "no such folder" / "tiny.json"
    with pytest.raises(OSError, match="cannot be written") as caught:
        metadata.save(path)
    assert isinstance(caught.value, FileWriteError)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))
