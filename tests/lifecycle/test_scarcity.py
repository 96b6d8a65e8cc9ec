"""Whatever runs out, calls raise what users expect, and the process lives on; see scarcity.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.tiny_models import write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets allocations and threads fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the package is built with a C compiler"
    library = tmp_path_factory.mktemp("scarce") / "scarce.so"
    source = Path(__file__).with_name("scarce.c")
    command = [compiler, "-O2", "-fPIC", "-shared", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize(
    ("kind", "n_points"),
    [
        ("allocation", 165),
        ("allocations", 44),
        ("address-space", 60),
        ("data", 60),
        ("descriptors", 12),
        ("threads", 12),
    ],
)
def test_nothing_that_runs_out_ends_the_process(
    kind: str, n_points: int, scarce: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "plain.gguf")
    done = subprocess.run(
        [sys.executable, "-m", "tests.lifecycle.scarcity", kind, str(model), str(n_points)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(scarce)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout)
    assert not outcome["bad"], f"{outcome['bad']}\n{done.stderr[-6000:]}"
    assert len(outcome["not_ours"]) <= n_points // 20, outcome["not_ours"]
    assert outcome["raised"], "nothing was scarce"
