"""The validator refuses every known attack, lets every good model through, and says why."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from llama_runner.errors import InvalidParameterError, ModelError, ModelValidationError
from llama_runner.loaders import validate_model
from llama_runner.loaders.checks.architectures import ARCHITECTURES, HYBRID, RECURRENT
from llama_runner.loaders.gguf.types import FILE_TYPES, TENSOR_TYPES
from tests.fuzz.attacks import ATTACKS
from tests.fuzz.attacks.registry import TOKENS
from tests.fuzz.attacks.vocabulary import tiny_llama_with, tokens_of, with_tokens
from tests.fuzz.giants import GIANTS
from tests.fuzz.trial import MEMORY, run_trial
from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    Array,
    GgufFile,
)
from tests.unit.loaders.model_files import ALL, rwkv_words, tiny_bert, tiny_llama, tiny_moe

PINNED = Path(__file__).parents[3] / "llama_cpp_src" / "llama.cpp"


@pytest.mark.parametrize("name", ATTACKS)
def test_known_attack_is_refused_and_names_the_culprit(name: str, tmp_path: Path) -> None:
    path = tmp_path / "attack.gguf"
    path.write_bytes(ATTACKS[name].build())
    with pytest.raises(ModelValidationError) as caught:
        validate_model(path)
    assert caught.value.field == ATTACKS[name].field
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_there_is_an_attack_of_each_known_kind() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize("make", ALL)
def test_good_models_pass(make: Callable[[], GgufFile], tmp_path: Path) -> None:
    path = make().write(tmp_path / "good.gguf")
    for level in ("header", "full"):
        report = validate_model(path, level)
        assert report.level == level
        assert report.notes == ()


def test_every_vocabulary_of_the_pinned_tree_passes() -> None:
    paths = sorted((PINNED / "models").glob("ggml-vocab-*.gguf"))
    if not paths:
        pytest.skip(f"no vocabularies in {PINNED}: a build from a checkout puts them there")
    for path in paths:
        validate_model(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_llama_with(rwkv_words()),
        lambda: with_tokens(tiny_llama(), [*tokens_of(tiny_llama())[:-2], "", "a\0b"]),
        lambda: with_tokens(tiny_llama(), [*tokens_of(tiny_llama())[:-1], "long " * 200]),
        lambda: tiny_llama().with_keys(tokenizer__ggml__model=(STRING, "none")),
        lambda: tiny_llama().with_keys(llama__rope__scaling__type=(STRING, "yarn")),
        lambda: tiny_llama().with_keys(
            llama__attention__head_count=(ARRAY, Array(I32, [2])),
            llama__feed_forward_length=(ARRAY, Array(U32, [64])),
        ),
        lambda: tiny_moe().with_keys(
            llama__expert_group_count=(U32, 2), llama__expert_group_used_count=(U32, 1)
        ),
        lambda: tiny_moe().with_keys(tokenizer__ggml__pre=(STRING, "llama-bpe")),
        lambda: tiny_bert().with_keys(tokenizer__ggml__add_sep_token=(BOOL, False)),
    ],
)
def test_unusual_models_pass(make: Callable[[], GgufFile], tmp_path: Path) -> None:
    assert validate_model(make().write(tmp_path / "unusual.gguf")).notes == ()


def test_oddities_are_noted(tmp_path: Path) -> None:
    model = tiny_llama().with_keys(
        tokenizer__ggml__padding_token_id=(U32, 264), llama__vocab_size=(U32, 300)
    )
    model.tail = bytes(100)
    notes = validate_model(model.write(tmp_path / "odd.gguf")).notes
    assert len(notes) == 3
    assert any("padding_token_id is 264" in note for note in notes)
    assert any("100 bytes follow" in note for note in notes)


def test_the_header_level_looks_at_the_structure_alone(tmp_path: Path) -> None:
    broken = tiny_llama().with_keys(llama__block_count=(U32, 0)).write(tmp_path / "broken.gguf")
    validate_model(broken, "header")
    with pytest.raises(ModelValidationError):
        validate_model(broken, "full")
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(ModelValidationError, match="truncated"):
        validate_model(broken, "header")


@pytest.mark.parametrize("level", ["bogus", "", "Full", None, False, True, 1])
def test_a_level_that_does_not_exist(level: Any, tmp_path: Path) -> None:
    path = tiny_llama().write(tmp_path / "good.gguf")
    with pytest.raises(InvalidParameterError, match="must be 'header', 'full' or 'graph'"):
        validate_model(path, level)


def test_ten_thousand_mutants() -> None:
    trial = run_trial()
    assert trial.wrong == []
    # Neither everything nor nothing: the mutants are worth their name.
    assert 1_000 < trial.accepted < 4_000
    assert trial.growth <= MEMORY


@pytest.mark.parametrize("name", GIANTS)
def test_memory_is_bounded(name: str, tmp_path: Path) -> None:
    trial = run_trial(GIANTS[name](tmp_path))
    assert (trial.accepted, trial.wrong) == (0, [])
    assert trial.growth <= MEMORY


def test_infinite_scores_of_both_signs_pass(tmp_path: Path) -> None:
    scores = Array(F32, [float("inf"), float("-inf"), *[0.0] * 262])
    model = tiny_llama().with_keys(tokenizer__ggml__scores=(ARRAY, scores))
    validate_model(model.write(tmp_path / "scores.gguf"))


# ---- the data about the pinned llama.cpp --------------------------------------------------------


def pinned(path: str) -> str:
    file = PINNED / path
    if not file.exists():
        pytest.skip(f"no tree in {PINNED}: a build from a checkout puts it there")
    return file.read_text(encoding="utf-8")


def test_architectures_are_those_of_the_pin() -> None:
    source = pinned("src/llama-arch.cpp")
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+), +"([^"]+)"', source))
    built = re.findall(r"case (LLM_ARCH_\w+):\s+return new", pinned("src/llama-model.cpp"))
    assert {names[name] for name in built} - {"clip"} == ARCHITECTURES
    for function, known in (("is_recurrent", RECURRENT), ("is_hybrid", HYBRID)):
        body = source[source.index(f"bool llm_arch_{function}") :].partition("default:")[0]
        assert {names[name] for name in re.findall(r"case (LLM_ARCH_\w+):", body)} == known


def test_tensor_types_are_those_of_the_pin() -> None:
    header = pinned("ggml/include/ggml.h")
    numbers = {
        int(number): name.upper()
        for name, number in re.findall(r"^ +GGML_TYPE_(\w+) += (\d+),", header, re.MULTILINE)
        if name != "COUNT"
    }
    assert {number: layout.name for number, layout in TENSOR_TYPES.items()} == numbers
    for kind, (block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # whose size that package has wrong: two halves, not two floats
            assert TENSOR_TYPES[kind.value][1:] == (block, block_bytes), kind.name


def test_file_types_are_those_of_the_pin() -> None:
    header = pinned("include/llama.h")
    names = {
        int(number): name
        for name, number in re.findall(
            r"^ +LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+) += (\d+),", header, re.MULTILINE
        )
    }
    assert names == FILE_TYPES


def test_a_float_key_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    broken = tiny_llama().with_keys(llama__rope__freq_base=(U32, 10_000))
    with pytest.raises(ModelError, match="of type u32 instead of f32"):
        validate_model(broken.write(tmp_path / "broken.gguf"))


def test_scores_may_be_infinite_but_not_nothing(tmp_path: Path) -> None:
    for score, passes in ((float("-inf"), True), (float("nan"), False)):
        scores = Array(F32, [score, *[0.0] * 263])
        path = (
            tiny_llama()
            .with_keys(tokenizer__ggml__scores=(ARRAY, scores))
            .write(tmp_path / "scores.gguf")
        )
        if passes:
            validate_model(path)
        else:
            with pytest.raises(ModelValidationError, match="not a number"):
                validate_model(path)


def test_names_from_the_file_cannot_break_the_line(tmp_path: Path) -> None:
    key = "line\nfeed\x1b[31m"
    path = tmp_path / "names.gguf"
    path.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
        + struct.pack("<Q", len(key))
        + key.encode()
        + struct.pack("<IQ", STRING, 1 << 20)
        + bytes(50)
    )
    with pytest.raises(ModelValidationError) as caught:
        validate_model(path)
    assert str(caught.value).isprintable()
    assert TOKENS not in str(caught.value)
