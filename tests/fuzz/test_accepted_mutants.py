"""What the validator accepts, llama.cpp survives: accepted mutants are loaded and run for real."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_runner.errors import ModelValidationError
from llama_runner.loaders import validate_model
from tests.unit.loaders.model_files import ALL
from tests.unit.loaders.mutations import mutated

WANTED = 300
BATCH = 25

# Loads each file, fills a prompt in and decodes; a refusal in words is as good as an answer.
CHILD = """
import sys
from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError

for path in sys.argv[1:]:
    print(path, flush=True)
    try:
        with LlamaRunner(path, n_ctx=256, n_seq_max=1, n_threads=1, n_threads_batch=1) as runner:
            runner.generate_stateless("hello w1", max_tokens=3, temperature=0)
    except (LlamaError, ValueError, MemoryError):
        pass
print("survived")
"""


def accepted_mutants(folder: Path) -> list[Path]:
    """The first mutants of the fixed seeds that the validator lets through."""
    models = [make() for make in ALL]
    paths: list[Path] = []
    seed = 100_000
    while len(paths) < WANTED:
        path = folder / f"{seed}.gguf"
        path.write_bytes(mutated(seed, models[seed % len(models)]))
        try:
            validate_model(path)
            paths.append(path)
        except ModelValidationError:
            path.unlink()
        seed += 1
    return paths


def test_no_accepted_mutant_kills_the_process(tmp_path: Path) -> None:
    paths = accepted_mutants(tmp_path)
    for start in range(0, WANTED, BATCH):
        batch = [str(path) for path in paths[start : start + BATCH]]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *batch], capture_output=True, text=True, timeout=300
        )
        lines = done.stdout.split()
        if done.returncode or lines[-1] != "survived":
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
            pytest.fail(f"{died} at {lines[-1]}: {done.stderr[-500:]}")
