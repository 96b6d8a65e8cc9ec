"""A process of its own that validates files, and says what that took.

``python -m tests.fuzz.trial FILE...`` validates these, without arguments 10,000 mutants. Memory is
what the system counts, native code's included; so it can only be measured where nothing else runs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_runner.errors import ModelValidationError
from llama_runner.loaders import validate_model
from tests.unit.loaders.model_files import ALL, tiny_llama
from tests.unit.loaders.mutations import mutated

MUTANTS = 10_000
# What one file may cost.
MILLISECONDS = 50
MEMORY = 64 << 20

_START_SECONDS = 10  # of CPU time, for all that is not validating


@dataclass
class Trial:
    """What became of the files.

    Attributes:
        accepted: How many passed.
        wrong: Refusals that are not one line with a field.
        growth: By how many bytes the process grew, at its peak.
        slowest: The most CPU milliseconds that one took.
        slowest_name: Which one that was.
    """

    accepted: int
    wrong: list[str]
    growth: int
    slowest: float
    slowest_name: str


def run_trial(*paths: Path) -> Trial:
    """Validate the files, or the mutants, in a child process.

    A file that made it work without end would end it: it has CPU time for as many files as there
    are, each of which may cost the most.
    """
    command = [sys.executable, "-m", "tests.fuzz.trial", *map(str, paths)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    if done.returncode:
        raise AssertionError(f"the trial ended with {done.returncode}: {done.stderr[-1000:]}")
    return Trial(**json.loads(done.stdout))


def mutants(folder: Path) -> Iterator[tuple[str, Path]]:
    """Damaged models, one after the other in the same place."""
    path = folder / "mutant.gguf"
    models = [make() for make in ALL]
    for seed in range(MUTANTS):
        path.write_bytes(mutated(seed, models[seed % len(models)]))
        yield f"seed {seed}", path


def validate_all(files: Iterable[tuple[str, Path]]) -> Trial:
    """Validate one file after the other."""
    trial = Trial(0, [], 0, 0.0, "")
    resident = _status("VmRSS")
    for name, path in files:
        start = time.process_time()
        try:
            validate_model(path)
            trial.accepted += 1
        except ModelValidationError as error:
            if not error.field or "\n" in str(error):
                trial.wrong.append(f"{name}: {error!r}")
        taken = (time.process_time() - start) * 1e3
        if taken > trial.slowest:
            trial.slowest, trial.slowest_name = taken, name
    trial.growth = _status("VmHWM") - resident
    return trial


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def main() -> None:
    """Validate the files of the command line, and print JSON."""
    paths = [Path(name) for name in sys.argv[1:]]
    seconds = _START_SECONDS + (len(paths) or MUTANTS) * MILLISECONDS // 1000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with tempfile.TemporaryDirectory() as folder:
        validate_model(tiny_llama().write(Path(folder, "warm.gguf")))
        files = [(path.name, path) for path in paths] or mutants(Path(folder))
        print(json.dumps(asdict(validate_all(files))))


if __name__ == "__main__":
    main()
