"""Which model a file holds, told without reading all of it."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

__all__ = ["fingerprint"]

# A model differs from another of its kind nearly everywhere, so a few places tell them apart.
_N_SAMPLES = 64
_SAMPLE_BYTES = 16 * 1024


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A hash of a model file's size, its beginning and evenly spaced samples, as hex.

    Takes milliseconds for a file of any size. It tells models apart; it does not prove that a
    file is unchanged.

    Raises:
        OSError: The file cannot be read.
    """
    status = Path(path).stat()
    return _fingerprint(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _fingerprint(path: Path, size: int, _mtime_ns: int) -> str:
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        for i in range(_N_SAMPLES):
            file.seek(i * max(0, size - _SAMPLE_BYTES) // (_N_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
