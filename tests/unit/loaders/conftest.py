"""What tests of the catalogue and of pulling share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, a catalogue and a package index of our own, and no way out to another."""
    for name in ("cache", "catalogue", "index"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("LLAMA_RUNNER_MODEL", raising=False)
    return tmp_path
