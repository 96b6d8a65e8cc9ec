"""How long it takes to read a model's header, to validate it, and to refuse hostile files.

The hostile files are those of the tests: as much of everything as a header may have. Validating
a good file is compared with reading its header, and with llama.cpp reading its vocabulary.
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

HOSTILE_LIMIT = 50.0
"""The most milliseconds that a hostile file may take."""


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The median wall time; a refusal is an answer, too."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        with suppress(ModelValidationError):
            call()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def hostile_files(rounds: int) -> dict[str, float]:
    """The time for each of the tests' largest files."""
    sys.path.insert(0, os.fspath(Path(__file__).parents[1]))
    from tests.unit.loaders.test_validation import GIANTS

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "giant.gguf")
        for name, make in GIANTS.items():
            make().write(path)
            found[name] = milliseconds(lambda: validate_model(path), rounds)
    return found


def main() -> None:
    """Measure, print, and write JSON."""
    setup, options = parse_arguments(__doc__, peers=(), rounds=20)
    model = setup.model
    good = {
        "read the header": milliseconds(lambda: read_gguf(model), options.rounds),
        "validate": milliseconds(lambda: validate_model(model), options.rounds),
        "describe": milliseconds(lambda: ModelMetadata.from_gguf(model), options.rounds),
        "llama.cpp reads the vocabulary": milliseconds(
            lambda: Model(model, vocab_only=True).close(), options.rounds
        ),
    }
    print(f"{model.name}:")
    for name, ms in good.items():
        print(f"  {name:32}{ms:7.2f} ms   {ms / good['read the header']:5.2f} x")
    hostile = hostile_files(options.rounds)
    print(f"hostile files, at most {HOSTILE_LIMIT:g} ms:")
    for name, ms in hostile.items():
        print(f"  {name:32}{ms:7.2f} ms   {'ok' if ms <= HOSTILE_LIMIT else 'above'}")
    write_results(options.output / "validation.json", {"good": good, "hostile": hostile})


if __name__ == "__main__":
    main()
