"""Writes the attacks into a directory."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz.attacks import ATTACKS
from tests.unit.loaders.model_files import tiny_bert, tiny_llama, tiny_mamba2, tiny_moe, tiny_t5


def write_corpus(directory: Path) -> None:
    """Write every attack, and the models they are made from, into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, hostile in ATTACKS.items():
        (directory / f"{name}.gguf").write_bytes(hostile.build())
    for make in (tiny_llama, tiny_moe, tiny_mamba2, tiny_bert, tiny_t5):
        make().write(directory / f"{make.__name__}.gguf")


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
