"""What an attack is, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.gguf_files import GgufFile

TOKENS = "tokenizer.ggml.tokens"
MAX64 = (1 << 64) - 1


@dataclass(frozen=True)
class Attack:
    """A hostile file, and what its refusal must name as the culprit."""

    build: Callable[[], bytes]
    field: str


ATTACKS: dict[str, Attack] = {}


def attack(field: str) -> Callable[[Callable[[], GgufFile | bytes]], Callable[[], bytes]]:
    """Register a function that makes a hostile file, under its own name."""

    def register(make: Callable[[], GgufFile | bytes]) -> Callable[[], bytes]:
        def build() -> bytes:
            made = make()
            return made if isinstance(made, bytes) else made.to_bytes()

        ATTACKS[make.__name__] = Attack(build, field)
        return build

    return register
