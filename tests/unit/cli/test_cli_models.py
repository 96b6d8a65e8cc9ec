"""The commands about model files: info, models, pull, verify and rm."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llama_runner.cli import output
from llama_runner.errors import DownloadError
from llama_runner.loaders import validate_model
from tests.gguf_files import F32, U32
from tests.unit.cli.fakes import Run
from tests.unit.loaders.model_files import tiny_llama
from tests.unit.loaders.test_reading import write_split


def test_info_shows_a_file_without_its_control_codes(model: Path, run: Run) -> None:
    status, out, _ = run("info", model, "--tensors")
    assert status == 1  # it has too little of a vocabulary
    assert "evil\\x1b[31m\\nname" in out
    assert "\x1b" not in out
    assert "token_embd.weight" in out
    assert "32 x 3" in out
    assert "3 x str" in out


def test_info_json(model: Path, run: Run) -> None:
    found = json.loads(run("info", model, "--json", "--tensors")[1])
    assert (found["architecture"], found["context_length"]) == ("llama", 64)
    assert found["keys"]["tokenizer.ggml.tokens"] == {"type": "str", "length": 3}
    assert found["tensors"][0]["shape"] == [32, 3]
    assert "tensors" not in json.loads(run("info", model, "--json")[1])


def test_info_says_why_a_broken_file_cannot_be_loaded(model: Path, run: Run) -> None:
    model.write_bytes(model.read_bytes()[:-64])
    status, out, _ = run("info", model)
    assert status == 1
    assert "not valid: " in out
    assert "truncated" in out
    status, out, _ = run("info", "--json", model)
    assert status == 1
    assert "truncated" in json.loads(out)["problem"]


def test_info_of_a_sound_file_is_a_success(tmp_path: Path, run: Run) -> None:
    path = tiny_llama().write(tmp_path / "sound.gguf")
    assert run("info", path)[0] == run("info", "--json", path)[0] == 0


def test_info_of_no_model_is_an_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "text.gguf").write_text("not a model at all, I am afraid")
    for path in (tmp_path / "missing.gguf", tmp_path, tmp_path / "text.gguf"):
        status, out, err = run("info", path)
        assert (status, out, err.count("\n")) == (1, "", 1)


def test_models_lists_the_catalogue(run: Run, tmp_path: Path, model: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    entry = {"name": "Mine", "path": str(model), "architecture": "llama", "license": "mit"}
    (tmp_path / "catalogue" / "mine.json").write_text(json.dumps(entry))
    lines = run("models")[1].splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["+", "mine"], ["*", "smollm2-135m"]]
    mine, default = json.loads(run("models", "--json")[1])
    assert (mine["name"], mine["installed"], mine["license"]) == ("mine", True, "mit")
    assert (default["default"], default["installed"]) == (True, False)


def test_pull_prints_the_path_and_what_it_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    def pull(name: str, progress: Callable[[int, int, str], None]) -> Path:
        for done in (0, 50, 100):
            progress(done, 100, "download")
        progress(100, 100, "verify")
        return model

    monkeypatch.setattr("llama_runner.loaders.pull", pull, raising=False)
    status, out, err = run("pull", "some-model")
    assert (status, out) == (0, f"{model}\n")
    assert err.splitlines() == [
        "downloading some-model",
        "verifying some-model",
        "some-model is ready",
    ]


def test_a_failed_pull_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: object) -> Path:
        raise DownloadError("the network is down")

    monkeypatch.setattr("llama_runner.loaders.pull", pull, raising=False)
    status, out, err = run("pull", "some-model")
    assert (status, out, err) == (1, "", "error: the network is down\n")


@pytest.fixture
def pulled(tmp_path: Path, model: Path) -> Path:
    """A model of the user's catalogue, as if it had been pulled."""
    content = tiny_llama().to_bytes()
    (tmp_path / "catalogue").mkdir()
    entry = {
        "name": "Mine",
        "source": "pypi:mine==1.0:mine/mine.gguf",
        "architecture": "llama",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (tmp_path / "catalogue" / "mine.json").write_text(json.dumps(entry))
    path = tmp_path / "cache" / "models" / "mine" / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_verify_tells_a_whole_file_from_a_damaged_one(run: Run, pulled: Path) -> None:
    assert run("verify", "mine") == (0, "", "verifying mine\nmine is intact\n")
    pulled.write_bytes(pulled.read_bytes()[:-1] + b"x")
    status, out, err = run("verify", "mine")
    assert (status, out) == (1, "")
    assert "has the sha256" in err
    assert "remove it with llama-runner rm, and pull it again" in err


def test_verify_says_what_it_could_not_compare(run: Run, tmp_path: Path, pulled: Path) -> None:
    description = tmp_path / "catalogue" / "mine.json"
    entry = json.loads(description.read_text())
    del entry["sha256"]
    description.write_text(json.dumps(entry))
    status, _, err = run("verify", "mine")
    assert status == 0
    assert "intact" not in err
    assert "no sha256" in err


def test_a_part_of_a_model_is_not_taken_for_it(run: Run, pulled: Path) -> None:
    assert "+  mine" in run("models")[1]
    pulled.write_bytes(pulled.read_bytes()[:-1])
    assert "~  mine" in run("models")[1]


def test_verify_refuses_what_could_not_be_loaded(run: Run, tmp_path: Path, pulled: Path) -> None:
    tiny_llama().with_keys(llama__block_count=(U32, 0)).write(pulled)
    description = tmp_path / "catalogue" / "mine.json"
    entry = json.loads(description.read_text())
    del entry["sha256"]
    description.write_text(json.dumps(entry | {"size": pulled.stat().st_size}))
    status, _, err = run("verify", "mine")
    assert status == 1
    assert "block_count" in err


def test_rm_deletes_the_file_and_keeps_the_name(run: Run, pulled: Path) -> None:
    size = output.byte_size(pulled.stat().st_size)
    assert run("rm", "mine") == (0, "", f"removed mine: {size} freed\n")
    assert not pulled.exists()
    assert json.loads(run("models", "--json")[1])[0]["installed"] is False
    status, out, err = run("rm", "mine")
    assert (status, out) == (1, "")
    assert "not on this machine" in err


def test_what_is_broken_or_half_here_is_listed(run: Run, tmp_path: Path, pulled: Path) -> None:
    (tmp_path / "catalogue" / "bad.json").write_text("{")
    pulled.rename(pulled.with_suffix(".partial"))
    status, out, err = run("models")
    assert status == 0
    marks = {line.split()[1]: line.split()[0] for line in out.splitlines()[1:] if line[0] in "~!"}
    assert marks == {"mine": "~", "bad": "!"}
    assert "broken: bad: " in err
    assert "bad.json" in err
    assert run("rm", "mine")[0] == 0
    assert not pulled.parent.exists()


def test_info_lists_the_parts_of_a_split_model(run: Run, tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    out = run("info", parts[1])[1]
    assert "3 files" in out
    assert all(part.name in out for part in parts)
    found = json.loads(run("info", "--json", parts[1])[1])
    assert [part["path"] for part in found["parts"]] == [str(part) for part in parts]


def test_info_shows_oddities(run: Run, tmp_path: Path) -> None:
    path = replace(tiny_llama(), tail=bytes(1000)).write(tmp_path / "longer.gguf")
    notes = validate_model(path).notes
    assert notes
    assert notes[0] in run("info", path)[1]
    assert json.loads(run("info", "--json", path)[1])["notes"] == list(notes)


def test_json_has_only_numbers_that_json_knows(run: Run, tmp_path: Path) -> None:
    path = tiny_llama().with_keys(general__odd=(F32, math.nan)).write(tmp_path / "odd.gguf")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(run("info", "--json", path)[1], parse_constant=refuse)
    assert found["keys"]["general.odd"] == "nan"
