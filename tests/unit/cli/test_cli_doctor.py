"""``llama-runner doctor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.fakes import Run
from tests.unit.loaders.model_files import tiny_llama


def test_doctor_says_what_is_missing(run: Run) -> None:
    status, out, _ = run("doctor")
    assert status == 1
    assert "missing: " in out
    assert "llama-runner pull smollm2-135m" in out
    assert "threads" in out


def test_doctor_is_content_with_a_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_runner._core")
    model = tiny_llama().write(tmp_path / "sound.gguf")
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", str(model))
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert (status, report["missing"]) == (0, [])
    assert str(model) in report["found"]["default model"]
    assert report["found"]["accelerators"]


def test_doctor_and_models_work_without_the_core(tmp_path: Path) -> None:
    # In a process of its own, where nothing that needs the core was imported before.
    program = (
        "import sys; sys.modules['llama_runner._core'] = None\n"
        "from llama_runner.cli import main; main(sys.argv[1:])"
    )
    env = {**os.environ, "LLAMA_RUNNER_CACHE": str(tmp_path)}
    env.pop("LLAMA_RUNNER_MODEL", None)

    def run(command: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-c", program, command]
        return subprocess.run(whole, capture_output=True, text=True, env=env)

    doctor, models = run("doctor"), run("models")
    assert doctor.returncode == 1
    assert "missing: the native core" in doctor.stdout
    assert "llama-runner pull" in doctor.stdout
    assert models.returncode == 0
    assert "smollm2-135m" in models.stdout


def test_doctor_looks_into_the_default_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", "/etc/passwd")
    status, out, _ = run("doctor")
    assert status == 1
    assert "missing: '/etc/passwd' is not a valid model" in out
