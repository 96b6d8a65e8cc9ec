"""A fuzzer for the model reader and validator, to be run for hours.

::

    python -m pip install atheris
    python -m tests.fuzz.attacks corpus
    python -m tests.fuzz.fuzz_validate corpus -max_len=200000 -timeout=10 -rss_limit_mb=2048

Anything but acceptance or a `ModelValidationError` of one line is a finding; atheris writes the
file that caused it. It belongs into ``attacks/`` then.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llama_runner.loaders"]):
    from llama_runner.errors import ModelValidationError
    from llama_runner.loaders import validate_model

from tests.unit.loaders.model_files import ALL
from tests.unit.loaders.mutations import mutated

_TARGET = Path(tempfile.mkdtemp(prefix="fuzz-validate-")) / "model.gguf"
_MODELS = [make() for make in ALL]


def check(data: bytes) -> None:
    """Validate one file; whatever else it raises is a finding."""
    _TARGET.write_bytes(data)
    try:
        validate_model(_TARGET)
    except ModelValidationError as error:
        if "\n" in str(error) or not error.field:
            raise AssertionError(f"not one line, or no field: {error!r}") from error


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time the fuzzer's own damage, half of the time ours, which knows the format."""
    if seed % 2:
        return atheris.Mutate(data, max_size)
    return mutated(seed, random.Random(seed).choice(_MODELS))[:max_size]


def main() -> None:
    """Run until stopped; the arguments are libFuzzer's."""
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
