"""llama.cpp's own tokenizer in a process of its own, and texts that are hard to tokenise."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.gguf_files import (
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    TOKEN_USER_DEFINED,
    GgufFile,
    typed,
)

# fmt: off
# What special tokens look like; some vocabularies have some of them.
SPECIAL = [
    "<s>", "</s>", "<unk>", "<mask>", "[MASK]", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    "<0x0A>",
]

# Characters of every kind that pre-tokenizers tell apart, in several scripts; white space; words,
# numbers and punctuation; what opens or continues a contraction.
ATOMS = [
    *" \n\t\r\v\f\x00\x01\x1c\x7f'\"`.,:;!?()[]{}<>/\\|@#$%^&*-_=+~abzAZ0159",
    *"éßжñ漢字日한글ไयع½²Ⅷ٣€→😀\u017f\uff0c。\u00a0\u0085\u2003\u200b\u3000▁",
    "  ", "   ", "    ", "\n\n", "\n    ", "\r\n", " \n",
    "the", " the", "▁the", "▁▁", "Bar", " Bar", "HTTPServer", "fooBar", "_foo", "x=y",
    "12", "123", "4567", " 1", "1,234.5", "$5", "...", "//", " (",
    "don't", "I'll", "'s", "'S", "'re", "''", "'''",
    "漢字", "日本語", "한국어", "ไทย", "हिन्दी", "العربية", "Привет", "e\u0301", "👩\u200d🚀", "🇩🇪",
    *SPECIAL,
]
# fmt: on


def random_text(source: random.Random, without: Sequence[str] = ()) -> str:
    """A few atoms, or a few hundred."""
    atoms = [atom for atom in ATOMS if atom not in without]
    return "".join(source.choices(atoms, k=source.choice([3, 12, 60, 250])))


class PlainTokenizer:
    """The compiled program, running with one vocabulary."""

    def __init__(self, program: Path, model: Path) -> None:
        self._process = subprocess.Popen(
            [program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"%d %d %d\n" % (add_special, parse_special, len(data)) + data)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line.endswith(b"\n"), f"llama.cpp ended with {self._process.wait()} at {text!r}"
        return [int(token) for token in line.split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def write_vocabulary(
    path: Path,
    tokenizer: str,
    tokens: Sequence[str],
    *,
    special: Sequence[str] = (),
    user_defined: Sequence[str] = (),
    name: str = "",
    **details: Any,
) -> Path:
    """Write a model that is a vocabulary and no more.

    Args:
        path: Where.
        tokenizer: "gpt2" or "llama".
        tokens: The ordinary tokens.
        special: Control tokens behind them.
        user_defined: And tokens that are found in any text before all others.
        name: The model's name.
        details: More of the keys that begin with "tokenizer.ggml.".
    """
    kinds = [TOKEN_NORMAL] * len(tokens)
    kinds += [TOKEN_CONTROL] * len(special)
    kinds += [TOKEN_USER_DEFINED] * len(user_defined)
    values = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.block_count": 1,
        "llama.feed_forward_length": 8,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": tokenizer,
        "tokenizer.ggml.tokens": [*tokens, *special, *user_defined],
        "tokenizer.ggml.token_type": kinds,
    }
    if name:
        values["general.name"] = name
    values |= {f"tokenizer.ggml.{name}": value for name, value in details.items()}
    return GgufFile(keys=typed(values)).write(path)


def byte_names() -> list[str]:
    """How byte-level vocabularies write the 256 bytes (GPT-2's way)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


def pair_merges(source: random.Random) -> list[tuple[str, str]]:
    """Merges of any two bytes that the atoms have, in any order: a wrong cut shows at once."""
    names = byte_names()
    used = sorted(set("".join(ATOMS).encode()))
    pairs = [(names[first], names[second]) for first in used for second in used]
    source.shuffle(pairs)
    return pairs
