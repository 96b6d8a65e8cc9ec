"""Model files that cost as much as a file can before they are refused, or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.fuzz.attacks.vocabulary import with_tokens
from tests.gguf_files import (
    ARRAY,
    F32,
    I32,
    STRING,
    U16,
    U32,
    Array,
    GgufFile,
    Keys,
    Tensor,
)
from tests.unit.loaders.model_files import tiny_llama, tiny_moe

WORDS = [f"word {index}" for index in range(393_216)]
# Each of its characters takes four bytes in Python as soon as one is beyond the others.
WIDE = b"\xf0\x9f\x98\x80"


def everything() -> GgufFile:
    """As much of everything as a file may have, with the last thing that is looked at wrong."""
    model = with_tokens(tiny_moe(), WORDS)
    types = Array(I32, [0x600] * len(WORDS))  # whose bytes look like byte tokens, misaligned
    template = "{{ a }}" * 37_000
    model = model.with_keys(
        tokenizer__ggml__token_type=(ARRAY, types),
        tokenizer__ggml__scores=(ARRAY, Array(F32, [0.0] * len(WORDS))),
        tokenizer__ggml__merges=(ARRAY, Array(STRING, ["a b"] * 490_000 + ["ab"])),
        tokenizer__chat_template=(STRING, template),
        **{f"more__{n}": (STRING, b"\xff" * 460) for n in range(960)},
    )
    more = [Tensor(f"blk.0.more_{n}.weight", (32, 1, 1, 1)) for n in range(4000)]
    return replace(model, tensors=[*model.tensors[1:], *more])


def text_and_arrays() -> GgufFile:
    """All the text there may be, as wide as it can be, and an array that fills the rest."""
    strings = Array(STRING, ["x" * 12] * 890_000)
    return GgufFile(keys={"a": (STRING, WIDE + b"x" * 4_100_000), "b": (ARRAY, strings)})


def whole(make: Callable[[], GgufFile]) -> Callable[[Path], Path]:
    """Writes a model of one file into a folder."""
    return lambda folder: make().write(folder / "giant.gguf")


def split(n_parts: int, keys_of: Callable[[int], Keys]) -> Callable[[Path], Path]:
    """Writes a model of many files into a folder: tiny llama, with more keys in each part."""

    def write(folder: Path) -> Path:
        model = tiny_llama()
        shared = {"split.count": (U16, n_parts), "split.tensors.count": (I32, 0)}
        paths = []
        for number in range(n_parts):
            keys: Keys = {**(model.keys if number == 0 else {}), **shared}
            keys |= {"split.no": (U16, number), **keys_of(number)}
            tensors = model.tensors if number == 0 else []
            path = folder / f"giant-{number + 1:05}-of-{n_parts:05}.gguf"
            paths.append(GgufFile(keys=keys, tensors=tensors).write(path))
        return paths[0]

    return write


GIANTS: dict[str, Callable[[Path], Path]] = {
    "tokens": whole(lambda: with_tokens(tiny_llama(), [*WORDS[:-1], WORDS[0]])),
    "tokens with NUL": whole(
        lambda: with_tokens(tiny_llama(), [*(f"{word}\0" for word in WORDS[:-1]), WORDS[0]])
    ),
    "long tokens": whole(
        lambda: with_tokens(tiny_llama(), [*(f"{n:020}" for n in range(299_000)), f"{0:020}"])
    ),
    "too many tokens": whole(lambda: with_tokens(tiny_llama(), [*WORDS, "one more"])),
    "empty strings": whole(lambda: GgufFile(keys={"a": (ARRAY, Array(STRING, [""] * 900_000))})),
    "numbers": whole(lambda: GgufFile(keys={"a": (ARRAY, Array(U32, list(range(1_000_000)) * 5))})),
    "keys": whole(lambda: GgufFile(keys={f"key {n}": (U32, n) for n in range(1024)})),
    "long keys": whole(
        lambda: GgufFile(keys={"x" * 60_000 + str(n): (U32, n) for n in range(380)})
    ),
    "wide text": whole(lambda: GgufFile(keys={"a": (STRING, WIDE + b"x" * (22 << 20))})),
    "no text": whole(lambda: GgufFile(keys={"a": (STRING, b"\xff" * (520 << 10))})),
    "text and arrays": whole(text_and_arrays),
    "merges": whole(
        lambda: tiny_moe().with_keys(
            tokenizer__ggml__merges=(ARRAY, Array(STRING, ["a b"] * 890_000 + ["ab"]))
        )
    ),
    "template": whole(
        lambda: tiny_llama().with_keys(
            tokenizer__chat_template=(STRING, "{{ a }}" * 37_000 + "{{" + "(" * 200)
        )
    ),
    "everything": whole(everything),
    "parts": split(256, lambda number: {}),
    "parts with keys": split(256, lambda number: {f"key {n}": (U32, n) for n in range(2000)}),
    "parts with a few keys": split(256, lambda number: {f"key {n}": (U32, n) for n in range(4)}),
    "parts with text": split(5, lambda number: {"a": (STRING, WIDE + b"x" * 3_900_000)}),
    "parts with a little text": split(256, lambda number: {"a": (STRING, WIDE + b"x" * 16_000)}),
    "parts with strings": split(256, lambda number: {"a": (ARRAY, Array(STRING, [""] * 3_500))}),
    "parts with a long string": split(
        24, lambda number: {"a": (ARRAY, Array(STRING, ["x" * 1_040_000]))}
    ),
}
