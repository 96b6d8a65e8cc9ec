"""A package index of our own, in a folder, with a model in it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from tests.unit.loaders.model_files import tiny_llama

MEMBER = "tiny_weights/tiny.gguf"
MODEL = tiny_llama().to_bytes()


def publish(
    home: Path, content: bytes = MODEL, member: str = MEMBER, method: int = zipfile.ZIP_STORED
) -> Path:
    """Put a wheel that carries a model on the index."""
    wheel = home / "index" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        archive.writestr(member, content)
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def describe(home: Path, **changes: Any) -> None:
    """Put the description of that model into the user's catalogue."""
    values = {
        "name": "Tiny",
        "source": f"pypi:tiny-weights==1.0:{MEMBER}",
        "architecture": "llama",
        "size": len(MODEL),
        "sha256": hashlib.sha256(MODEL).hexdigest(),
    } | changes
    values = {key: value for key, value in values.items() if value is not None}
    (home / "catalogue" / "tiny.json").write_text(json.dumps(values))


def cached_files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache").rglob("*") if path.is_file())
