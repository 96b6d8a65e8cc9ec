"""What it takes to read a model's header, to validate it, and to refuse hostile files.

The hostile files are those of the tests: as much of everything as a header may have, and 10,000
damaged models. Validating a good file is compared with reading its header, and with llama.cpp
reading its vocabulary. Times are CPU time, as nobody is waited for.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from _peers import parse_arguments
from _report import write_results

from llama_runner import ModelValidationError, read_gguf, validate_model
from llama_runner._core import Model
from llama_runner.loaders import ModelMetadata

sys.path.insert(0, os.fspath(Path(__file__).parents[1]))
from tests.fuzz.giants import GIANTS
from tests.fuzz.trial import MILLISECONDS, run_trial

RATIO_LIMIT = 1.5
"""Validating a good file takes at most this much of the time of reading its header."""


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median CPU time of each, in rounds of all of them; a refusal is an answer, too."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            with suppress(ModelValidationError):
                call()
            times[name].append((time.process_time() - start) * 1e3)
    return {name: median(taken) for name, taken in times.items()}


def hostile_files(rounds: int) -> dict[str, float]:
    """The time for each of the tests' largest files, and for the slowest of the mutants."""
    found = {}
    for name, write in GIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder))
            found |= milliseconds({name: lambda path=path: validate_model(path)}, rounds)
    mutants = run_trial()
    found[f"mutants, {mutants.slowest_name}"] = mutants.slowest
    return found


def verdict(value: float, limit: float) -> str:
    """Whether a figure is within its limit."""
    return "ok" if value <= limit else "above"


def main() -> None:
    """Measure, print, and write JSON."""
    setup, options = parse_arguments(__doc__, peers=(), rounds=20)
    model = setup.model
    rounds = options.rounds
    # These two are compared; the others would empty the processor's caches between them.
    good = milliseconds(
        {
            "read the header": lambda: read_gguf(model),
            "validate": lambda: validate_model(model),
        },
        rounds,
    )
    good |= milliseconds({"describe": lambda: ModelMetadata.from_gguf(model)}, rounds)
    good |= milliseconds(
        {"llama.cpp reads the vocabulary": lambda: Model(model, vocab_only=True).close()}, rounds
    )
    print(f"{model.name}:")
    for name, ms in good.items():
        print(f"  {name:32}{ms:7.2f} ms   {ms / good['read the header']:5.2f} x")
    ratio = good["validate"] / good["read the header"]
    print(f"  validating is {ratio:.2f} x reading, at most {RATIO_LIMIT}: ", end="")
    print(verdict(ratio, RATIO_LIMIT))
    hostile = hostile_files(rounds)
    print(f"hostile files, at most {MILLISECONDS} ms:")
    for name, ms in hostile.items():
        print(f"  {name:32}{ms:7.2f} ms   {verdict(ms, MILLISECONDS)}")
    write_results(options.output / "validation.json", {"good": good, "hostile": hostile})


if __name__ == "__main__":
    main()
