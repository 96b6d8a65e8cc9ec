"""Pulling from Hugging Face with its own client, from a hub that this test serves on loopback."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llama_runner.errors import (
    DownloadError,
    MissingDependencyError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
    NoDiskSpaceError,
)
from llama_runner.loaders import find_model, list_models, pull, remove, verify
from tests.unit.loaders.model_files import tiny_llama
from tests.unit.loaders.test_pulling import cached_files, describe
from tests.unit.loaders.test_reading import write_split

pytest.importorskip("huggingface_hub")

MODEL = tiny_llama().to_bytes()
# The client writes pieces of 10 MiB to disk; what it has of another one is lost with it.
LARGE = replace(tiny_llama(), tail=bytes(24 << 20)).to_bytes()
HALF = len(LARGE) // 2
SPEC = "hf:owner/repo:tiny.gguf"
LARGE_SPEC = "hf:owner/repo:large.gguf"


@dataclass
class Hub:
    """Files by name, from which bytes on they were asked for, and what goes wrong."""

    files: dict[str, bytes]
    url: str = ""
    starts: list[int] = field(default_factory=list)
    broken_answers: int = 0
    damaged: bool = False
    tagged: bool = True
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            content = hub.files.get(self.path.removeprefix("/owner/repo/resolve/main/"))
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if hub.tagged:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content) - start))
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if with_body:
                hub.starts.append(start)
                self.send_body(content[start:] if not hub.damaged else bytes(len(content)))

        def send_body(self, content: bytes) -> None:
            if not hub.broken_answers and not hub.stalls:
                self.wfile.write(content)
                return
            self.wfile.write(content[:HALF])
            self.wfile.flush()
            if hub.stalls:
                hub.stalled.set()
                threading.Event().wait(60)  # the client is killed meanwhile
            hub.broken_answers -= 1
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"tiny.gguf": MODEL, "deep/er/tiny.gguf": MODEL, "large.gguf": LARGE})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    # In this process the client has read its address already; in others it will.
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(home / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    server.shutdown()
    thread.join()
    server.socket.close()


def start_pull(spec: str) -> subprocess.Popen[bytes]:
    """A process that pulls a model."""
    code = "import sys; from llama_runner.loaders import pull; pull(sys.argv[1])"
    return subprocess.Popen([sys.executable, "-c", code, spec], cwd=Path(__file__).parents[3])


def test_a_model_from_the_hub(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=f"llama-runner pull {SPEC}"):
        find_model(SPEC)
    reports: list[tuple[int, int, str]] = []
    path = pull(SPEC, lambda *report: reports.append(report))
    assert path.read_bytes() == MODEL
    assert (len(MODEL), len(MODEL), "download") in reports
    assert find_model(SPEC) == path
    assert pull(SPEC) == path
    assert hub.starts == [0]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["model.json", "tiny.gguf"]
    entry = {entry.name: entry for entry in list_models()}[SPEC]
    assert entry.installed
    assert entry.metadata.architecture == "llama"
    assert entry.metadata.sha256 == hashlib.sha256(MODEL).hexdigest()
    verify(SPEC)
    assert remove(SPEC) > len(MODEL)
    assert SPEC not in {entry.name for entry in list_models()}


def test_files_of_one_name_in_two_folders_are_two_models(hub: Hub) -> None:
    assert pull(SPEC) != pull("hf:owner/repo:deep/er/tiny.gguf")


def test_a_catalogue_name_for_a_model_from_the_hub(home: Path, hub: Hub) -> None:
    describe(home, source=SPEC, size=len(MODEL))
    path = pull("tiny")
    assert find_model("tiny") == path
    assert [entry.name for entry in list_models() if entry.installed] == ["tiny"]


def test_what_came_from_the_hub_is_compared_with_its_description(home: Path, hub: Hub) -> None:
    describe(home, source=SPEC, sha256="0" * 64)
    with pytest.raises(DownloadError, match="sha256"):
        pull("tiny")
    with pytest.raises(ModelNotFoundError):
        find_model("tiny")


def test_a_description_without_hash_is_compared_with_what_came(home: Path, hub: Hub) -> None:
    describe(home, source=SPEC, architecture="qwen2", size=None, sha256=None)
    with pytest.raises(DownloadError, match=r"architecture is 'qwen2', but the file says 'llama'"):
        pull("tiny")
    with pytest.raises(ModelNotFoundError):
        find_model("tiny")


def test_what_was_damaged_on_its_way_is_not_kept(home: Path, hub: Hub) -> None:
    hub.damaged = True
    with pytest.raises(DownloadError, match="does not have the sha256"):
        pull(SPEC)
    hub.damaged = False
    assert pull(SPEC).read_bytes() == MODEL


def test_a_split_model_comes_with_all_its_parts(home: Path, hub: Hub) -> None:
    for part in write_split(home):
        hub.files[part.name] = part.read_bytes()
    path = pull("hf:owner/repo:tiny-00002-of-00003.gguf")
    assert path.name == "tiny-00001-of-00003.gguf"
    assert len(list(path.parent.glob("*.gguf"))) == 3
    assert hub.starts == [0, 0, 0]
    assert find_model("hf:owner/repo:tiny-00001-of-00003.gguf") == path


SPLIT_SPEC = "hf:owner/repo:tiny-00001-of-00003.gguf"


def test_a_split_model_is_all_its_parts(home: Path, hub: Hub) -> None:
    for part in write_split(home):
        hub.files[part.name] = part.read_bytes()
    path = pull(SPLIT_SPEC)
    verify(SPLIT_SPEC)
    last = path.with_name("tiny-00003-of-00003.gguf")
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelValidationError, match=last.name):
        verify(SPLIT_SPEC)
    last.unlink()
    for use in (find_model, verify):
        with pytest.raises(ModelNotFoundError, match="llama-runner pull"):
            use(SPLIT_SPEC)
    assert pull(SPLIT_SPEC) == path
    verify(SPLIT_SPEC)
    remove(SPLIT_SPEC)
    assert not cached_files(home) or all(name.endswith(".lock") for name in cached_files(home))


def test_a_described_split_model_is_compared_part_by_part(home: Path, hub: Hub) -> None:
    parts = write_split(home)
    for part in parts:
        hub.files[part.name] = part.read_bytes()
    hashes = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    size = sum(part.stat().st_size for part in parts)
    describe(home, source=SPLIT_SPEC, size=size, sha256=hashes[0])
    with pytest.raises(DownloadError, match="1 sha256 for 3 files"):
        pull("tiny")
    describe(home, source=SPLIT_SPEC, size=size, sha256=[*hashes[:2], "0" * 64])
    with pytest.raises(DownloadError, match=r"00003-of-00003\.gguf' has the sha256"):
        pull("tiny")
    describe(home, source=SPLIT_SPEC, size=size, sha256=hashes)
    pull("tiny")
    verify("tiny")


def test_a_broken_sidecar_is_listed_and_blocks_nothing(hub: Hub) -> None:
    path = pull(SPEC)
    sidecar = path.with_name("model.json")
    sidecar.write_text("{")
    assert "model.json" in str({entry.name: entry for entry in list_models()}[SPEC].problem)
    with pytest.raises(ModelMetadataError, match="llama-runner pull"):
        find_model(SPEC)
    assert pull(SPEC) == path
    verify(SPEC)
    sidecar.write_text("{")
    assert remove(SPEC) > len(MODEL)
    assert SPEC not in {entry.name for entry in list_models()}


def test_an_interrupted_pull_is_listed_and_can_be_removed(home: Path, hub: Hub) -> None:
    def interrupt(done: int, total: int, stage: str) -> None:
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(LARGE_SPEC, interrupt)
    entry = {entry.name: entry for entry in list_models()}[LARGE_SPEC]
    assert not entry.installed
    assert remove(LARGE_SPEC) > 0
    assert LARGE_SPEC not in {entry.name for entry in list_models()}
    with pytest.raises(ModelNotFoundError):
        remove(LARGE_SPEC)


def test_what_the_callback_raises_comes_back_as_it_is(hub: Hub) -> None:
    def fail(done: int, total: int, stage: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pull(SPEC, fail)


def test_a_page_instead_of_a_model(home: Path, hub: Hub) -> None:
    hub.files["page.gguf"] = b"<html>" * 100
    with pytest.raises(DownloadError, match="unusable"):
        pull("hf:owner/repo:page.gguf")
    assert not [name for name in cached_files(home) if name.endswith(".gguf")]


def test_a_file_that_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(DownloadError, match=r"missing\.gguf of owner/repo could not be") as caught:
        pull("hf:owner/repo:missing.gguf")
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/{revision}/{filename}",
    )
    with pytest.raises(DownloadError, match="check the name and the network connection"):
        pull(SPEC)


def test_a_disk_that_fills_up_on_the_way(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(NoDiskSpaceError, match="LLAMA_RUNNER_CACHE"):
        pull(SPEC)


def test_without_huggingface_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"llama-runner\[hf\]"):
        pull(SPEC)


# ---- what is cut short, and what happens at once ------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.broken_answers = 1
    assert pull(LARGE_SPEC).read_bytes() == LARGE
    assert hub.starts[0] == 0 < hub.starts[1] <= HALF


def test_an_interrupted_pull_is_taken_up_by_the_next(hub: Hub) -> None:
    def interrupt(done: int, total: int, stage: str) -> None:
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(LARGE_SPEC, interrupt)
    with pytest.raises(ModelNotFoundError):
        find_model(LARGE_SPEC)
    reports: list[tuple[int, int, str]] = []
    assert pull(LARGE_SPEC, lambda *report: reports.append(report)).read_bytes() == LARGE
    assert hub.starts[0] == 0 < hub.starts[1]
    assert all(hub.starts[1] < done <= total for done, total, stage in reports[:1])


def test_a_killed_pull_is_taken_up_by_the_next(home: Path, hub: Hub) -> None:
    hub.stalls = True
    process = start_pull(LARGE_SPEC)
    assert hub.stalled.wait(60)
    while not any(path.stat().st_size for path in (home / "cache").rglob("*.partial")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    hub.stalls = False
    assert pull(LARGE_SPEC).read_bytes() == LARGE
    assert hub.starts[0] == 0 < hub.starts[1] <= HALF


@pytest.mark.parametrize("tagged", [True, False])
def test_another_content_starts_anew(hub: Hub, tagged: bool) -> None:
    """Also where the hub does not tell one content from another."""
    hub.tagged = tagged

    def interrupt(done: int, total: int, stage: str) -> None:
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(LARGE_SPEC, interrupt)
    hub.files["large.gguf"] = LARGE[:-1] + b"x"
    assert pull(LARGE_SPEC).read_bytes() == hub.files["large.gguf"]
    assert hub.starts == [0, 0]


def test_two_processes_pull_one_model_once(home: Path, hub: Hub) -> None:
    processes = [start_pull(SPEC), start_pull(SPEC)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert find_model(SPEC).read_bytes() == MODEL
    assert hub.starts == [0]


def test_threads_pull_one_model_once(hub: Hub) -> None:
    threads = [threading.Thread(target=pull, args=(SPEC,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.starts == [0]
