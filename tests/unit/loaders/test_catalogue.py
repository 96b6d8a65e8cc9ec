"""Models by name: which there are, which are here, and where they come from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama_runner.errors import (
    InvalidParameterError,
    LlamaError,
    ModelMetadataError,
    ModelNotFoundError,
)
from llama_runner.loaders import (
    default_model,
    find_model,
    list_models,
    pull,
    remove,
    verify,
)
from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL, find_entry
from llama_runner.loaders.catalogue.sources import HubSource, PackageSource, parse_source
from tests.unit.loaders.model_files import tiny_llama
from tests.unit.loaders.packages import MODEL, describe

pytestmark = pytest.mark.usefixtures("home")


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
