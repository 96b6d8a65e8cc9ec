"""Reading a header gives back what was written, and refuses what is not a header."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner.errors import (
    FileReadError,
    InvalidParameterError,
    LlamaError,
    ModelNotFoundError,
    ModelValidationError,
)
from llama_runner.loaders import GgufArray, read_gguf, validate_model
from llama_runner.loaders.gguf.read import part_names
from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Array,
    GgufFile,
    Tensor,
)
from tests.unit.loaders.model_files import N_EMBD, tiny_llama


def plain(value: object) -> object:
    """A value as the writer was given it."""
    return value.values() if isinstance(value, GgufArray) else value


def test_a_line_for_people(tmp_path: Path) -> None:
    path = tiny_llama(n_layers=2).write(tmp_path / "tiny.gguf")
    report = validate_model(path)
    assert str(report.info).startswith(f"{str(path)!r}: architecture 'llama', F32, ")
    assert str(report).startswith(str(report.info))
    assert str(report).endswith("; the full check passed, with 0 notes")
    assert "token_embd.weight" not in repr(report)
    odd = tiny_llama().with_keys(general__architecture=(STRING, "a\n\x1b[2J" * 1000))
    line = str(read_gguf(odd.write(tmp_path / "odd.gguf")))
    assert line.isprintable()
    assert len(line) < 1000


def test_a_model_says_what_it_is(tmp_path: Path) -> None:
    path = tiny_llama(n_layers=2).write(tmp_path / "tiny.gguf")
    info = read_gguf(path)
    assert (info.architecture, info.name, info.quantization) == ("llama", "tiny llama", "F32")
    assert (info.context_length, info.vocab_size) == (256, 264)
    assert info.size == path.stat().st_size
    assert info.number("block_count") == 2
    assert [tensor.name for tensor in info.tensors][:2] == [
        "token_embd.weight",
        "output_norm.weight",
    ]
    assert info.tensors[0].shape == (N_EMBD, 264)
    assert info.n_params == sum(t.n_elements for t in info.tensors) == info.weight_bytes // 4
    last = info.tensors[-1]
    assert info.data_offset + last.offset + last.nbytes == info.size
    assert info.chat_template is not None
    assert "message" in info.chat_template
    assert info.parts == ()


def test_it_agrees_with_an_independent_writer(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Ünïcode 名前")
    writer.add_context_length(4096)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["a", "b", "", "日本"])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_bool("llama.some.flag", True)
    writer.add_float64("llama.some.double", 0.1)
    writer.add_array("llama.some.counts", [1, 2, 3])
    writer.add_tensor("one", np.arange(12, dtype=np.float16).reshape(3, 4))
    writer.add_tensor(
        "two", np.zeros((2, 64), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.I8
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_gguf(path)
    assert info.name == "Ünïcode 名前"
    assert info.quantization == "Q8_0"
    assert info.context_length == 4096
    assert plain(info.keys["tokenizer.ggml.tokens"]) == ["a", "b", "", "日本"]
    assert plain(info.keys["tokenizer.ggml.scores"]) == [0.5, -1.0, 2.0, 0.0]
    assert plain(info.keys["llama.some.counts"]) == [1, 2, 3]
    assert info.keys["llama.some.flag"] is True
    assert info.keys["llama.some.double"] == 0.1
    assert [(t.name, t.shape, t.type, t.nbytes) for t in info.tensors] == [
        ("one", (4, 3), "F16", 24),
        ("two", (64, 2), "I8", 128),
    ]


def test_what_was_read_goes_to_other_processes(tmp_path: Path) -> None:
    keys = {"odd": (ARRAY, Array(U64, [1, 2])), "empty": (ARRAY, Array(STRING, []))}
    model = replace(tiny_llama(), keys=tiny_llama().keys | keys)
    whole = validate_model(model.write(tmp_path / "tiny.gguf"))
    split = validate_model(write_split(tmp_path)[1])
    for report in (whole, split):
        for again in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
            assert again == report
            assert hash(again) == hash(report)
            assert str(again) == str(report)
            for key, value in report.info.keys.items():
                assert plain(again.info.keys[key]) == plain(value)


def test_two_reads_of_one_file_are_equal(tmp_path: Path) -> None:
    path = tiny_llama().write(tmp_path / "tiny.gguf")
    first, second = read_gguf(path), read_gguf(path)
    assert first == second
    assert len({first, second}) == 1
    renamed = tiny_llama().with_keys(general__name=(STRING, "tinY llama"))
    assert read_gguf(renamed.write(path)) != first
    scores = Array(F32, [0.5] * 264)
    other = tiny_llama().with_keys(tokenizer__ggml__scores=(ARRAY, scores))
    assert read_gguf(other.write(path)) != first


def test_what_was_read_cannot_be_changed(tmp_path: Path) -> None:
    info = read_gguf(tiny_llama().write(tmp_path / "tiny.gguf"))
    for mapping in (info.keys, info.value_types):
        with pytest.raises(TypeError):
            mapping["general.architecture"] = "other"  # type: ignore[index]


LIMITS = {U8: (0, 8), I8: (1, 8), U16: (0, 16), I16: (1, 16), U32: (0, 32), I32: (1, 32)}
LIMITS |= {U64: (0, 64), I64: (1, 64)}
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    type_id: st.integers(-signed << (bits - 1) if signed else 0, (1 << (bits - signed)) - 1)
    for type_id, (signed, bits) in LIMITS.items()
}
SCALARS |= {
    F32: st.floats(width=32, allow_nan=False),
    F64: st.floats(allow_nan=False),
    BOOL: st.booleans(),
    STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
}


@st.composite
def values(draw: st.DrawFn) -> tuple[int, Any]:
    type_id = draw(st.sampled_from(sorted(SCALARS)))
    if draw(st.booleans()):
        return type_id, draw(SCALARS[type_id])
    return ARRAY, Array(type_id, draw(st.lists(SCALARS[type_id], max_size=20)))


KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(keys=st.dictionaries(KEYS, values(), max_size=8))
def test_every_value_comes_back(
    keys: dict[str | bytes, tuple[int, Any]], tmp_path_factory: Any
) -> None:
    keys.pop("general.alignment", None)
    keys.pop("split.count", None)
    path = tmp_path_factory.getbasetemp() / "values.gguf"
    info = read_gguf(GgufFile(keys=keys).write(path))
    written = {k: v.values if isinstance(v, Array) else v for k, (_, v) in keys.items()}
    assert {key: plain(value) for key, value in info.keys.items()} == written
    assert list(info.keys) == list(keys)


@given(data=st.binary(max_size=400))
def test_random_bytes_are_only_ever_refused(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    for content in (data, head + data, head[:16] + data):
        path.write_bytes(content)
        with suppress(ModelValidationError):
            read_gguf(path)


def test_a_header_larger_than_one_read(tmp_path: Path) -> None:
    words = [f"word number {index}" for index in range(300_000)]
    keys: dict[str | bytes, tuple[int, Any]] = {
        "before": (STRING, "x" * 100_000),
        "tokenizer.ggml.tokens": (ARRAY, Array(STRING, words)),
        "numbers": (ARRAY, Array(U64, list(range(100_000)))),
        "after": (U32, 7),
    }
    info = read_gguf(GgufFile(keys=keys).write(tmp_path / "large.gguf"))
    tokens, numbers = info.keys["tokenizer.ggml.tokens"], info.keys["numbers"]
    assert isinstance(tokens, GgufArray)
    assert len(tokens) == info.vocab_size == 300_000
    assert tokens.strings()[299999] == b"word number 299999"
    assert plain(numbers) == list(range(100_000))
    assert info.keys["after"] == 7


@pytest.mark.parametrize("key", ["words", "numbers"])
def test_a_large_header_that_is_cut(tmp_path: Path, key: str) -> None:
    words = [f"word number {index}" for index in range(200_000)]
    keys: dict[str | bytes, tuple[int, Any]] = {
        "words": (ARRAY, Array(STRING, words)),
        "numbers": (ARRAY, Array(U64, list(range(500_000)))),
    }
    whole = GgufFile(keys=keys).header()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: whole.index(key.encode()) + 3_000_000])
    with pytest.raises(ModelValidationError, match="past the end") as caught:
        read_gguf(path)
    assert caught.value.field == key


def test_a_header_beyond_the_limit(tmp_path: Path) -> None:
    keys: dict[str | bytes, tuple[int, Any]] = {"a": (STRING, "x" * (25 << 20))}
    with pytest.raises(ModelValidationError, match="header may have at most 24 MiB in all"):
        read_gguf(GgufFile(keys=keys).write(tmp_path / "vast.gguf"))


def test_a_sparse_file_of_terabytes_costs_no_more_than_its_header(tmp_path: Path) -> None:
    path = tiny_llama().write(tmp_path / "sparse.gguf")
    os.truncate(path, 1 << 41)
    report = validate_model(path)
    assert report.info.size == 1 << 41
    assert len(report.notes) == 1


@pytest.mark.parametrize("kind", ["directory", "empty", "text", "pipe", "device"])
def test_a_file_that_is_not_a_model_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    match kind:
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("hello")
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
    for read in (read_gguf, validate_model):
        with pytest.raises(ModelValidationError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git-LFS pointer; fetch the file with git lfs pull",
        ),
        ("<!DOCTYPE html>\n<html>", "a web page; download the file itself"),
        ("\n<HTML lang='en'>", "a web page; download the file itself"),
    ],
)
def test_what_was_fetched_in_place_of_a_model_is_named(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_text(content)
    with pytest.raises(ModelValidationError, match=words) as caught:
        read_gguf(path)
    assert str(caught.value).isprintable()


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model file at"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError):
        validate_model(tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("loop.gguf", FileReadError),
        ("x" * 5000, FileReadError),
        ("nul\0.gguf", ModelValidationError),
        ("\udfff\ud800", ModelValidationError),
        ("a/b", ModelNotFoundError),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str, kind: type[LlamaError]) -> None:
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "a").touch()
    with pytest.raises(kind) as caught:
        read_gguf(tmp_path / name)
    assert str(caught.value).isprintable()


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"x"


@pytest.mark.parametrize("read", [read_gguf, validate_model])
def test_a_value_that_is_neither_a_path_nor_an_open_file_is_refused(
    tmp_path: Path, read: Any
) -> None:
    path = tiny_llama().write(tmp_path / "good.gguf")
    with path.open("rb") as closed:
        pass
    with path.open() as of_text, path.open("ab") as for_writing:
        for wrong in (
            *(None, 3, b"x", 0.5, [path], BytesPath(), io.BytesIO(path.read_bytes())),
            *(closed, of_text, for_writing, io.BufferedReader),
        ):
            with pytest.raises(InvalidParameterError, match=r"^model=.*: must be .*path") as caught:
                read(wrong)
            assert caught.value.field == "model"
            assert str(caught.value).isprintable()


@pytest.mark.parametrize("buffering", [-1, 0])
def test_an_open_file_of_any_kind_is_read(tmp_path: Path, buffering: int) -> None:
    path = tiny_llama().write(tmp_path / "good.gguf")
    with (
        path.open("rb", buffering=buffering) as file,
        os.fdopen(os.dup(file.fileno()), "rb") as again,
    ):
        assert read_gguf(file).architecture == read_gguf(again).architecture == "llama"
    with tempfile.NamedTemporaryFile() as temporary:
        temporary.write(path.read_bytes())
        temporary.flush()
        assert validate_model(temporary).info.path == Path(temporary.name)


def test_an_open_file_is_read_as_it_is_and_stays_open(tmp_path: Path) -> None:
    path = tiny_llama().write(tmp_path / "open.gguf")
    with path.open("rb") as file:
        path.unlink()
        report = validate_model(file)
        assert not file.closed
    assert report.info.architecture == "llama"
    assert report.info.path == path


# ---- splits ------------------------------------------------------------------------------------


def write_split(folder: Path, **changes: Any) -> list[Path]:
    """Tiny llama over three files: the metadata with two tensors, then the others."""
    whole = tiny_llama()
    shares = (whole.tensors[:2], whole.tensors[2:6], whole.tensors[6:])
    paths = []
    for number, share in enumerate(shares):
        keys = dict(whole.keys) if number == 0 else {}
        keys |= {"split.no": (U16, number), "split.count": (U16, 3)}
        keys["split.tensors.count"] = (I32, len(whole.tensors))
        keys |= changes.get(f"part_{number}", {})
        path = folder / f"tiny-{number + 1:05}-of-00003.gguf"
        paths.append(GgufFile(keys=keys, tensors=share).write(path))
    return paths


def test_any_part_of_a_split_model_stands_for_the_whole(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    whole = read_gguf(tiny_llama().write(tmp_path / "whole.gguf"))
    for path in paths:
        info = validate_model(path).info
        assert info.path == paths[0]
        assert [part.path for part in info.parts] == paths
        assert [t.name for t in info.tensors] == [t.name for t in whole.tensors]
        assert info.n_params == whole.n_params
        assert info.size == sum(part.stat().st_size for part in paths)
        assert info.architecture == "llama"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"part_1": {"split.no": (U32, 1)}}, "split.no"),
        ({"part_1": {"split.no": (STRING, "1")}}, "split.no"),
        ({"part_2": {"split.no": (U16, 1)}}, "split.no"),
        ({"part_2": {"split.count": (U16, 2)}}, "split.count"),
        ({"part_0": {"split.tensors.count": (I32, 11)}}, "split.tensors.count"),
        ({"part_0": {"split.tensors.count": (U32, 12)}}, "split.tensors.count"),
    ],
)
def test_parts_that_do_not_belong_together(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    paths = write_split(tmp_path, **changes)
    with pytest.raises(ModelValidationError) as caught:
        validate_model(paths[0])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"large": (ARRAY, Array(STRING, ["x" * (13 << 20)]))}, "large"),
        ({"strings": (ARRAY, Array(STRING, [""] * 460_000))}, "strings"),
        ({"text": (STRING, "x" * (2_200_000))}, "text"),
        ({"no text": (STRING, b"\xff" * 300_000)}, "no text"),
        ({f"key {n}": (U32, n) for n in range(600)}, "n_kv"),
    ],
)
def test_the_parts_share_what_one_file_may_have(
    tmp_path: Path, keys: dict[str, Any], field: str
) -> None:
    read_gguf(write_split(tmp_path, part_1=keys)[0])
    with pytest.raises(ModelValidationError, match=r"a model.* may have") as caught:
        read_gguf(write_split(tmp_path, part_1=keys, part_2=keys)[0])
    assert caught.value.field == field
    assert "00003-of-00003" in str(caught.value)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"tiny-00002-of-00003\.gguf"):
        read_gguf(paths[2])


def test_a_part_that_is_truncated_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    for path in paths:
        with pytest.raises(ModelValidationError, match=r"00003-of-00003\.gguf.*truncated"):
            validate_model(path)


def test_a_tensor_that_cannot_be_is_looked_for_in_its_own_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    keys: dict[str | bytes, tuple[int, Any]] = {
        "split.no": (U16, 2),
        "split.count": (U16, 3),
    }
    tensors = [replace(tensor, type_id=26) for tensor in tiny_llama().tensors[6:]]
    GgufFile(keys=keys, tensors=tensors).write(paths[2])
    with pytest.raises(ModelValidationError, match=r"00003-of-00003\.gguf.* of type I32"):
        validate_model(paths[0])


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    keys: dict[str | bytes, tuple[int, Any]] = {
        "split.no": (U16, 2),
        "split.count": (U16, 3),
    }
    GgufFile(keys=keys, tensors=[Tensor("output_norm.weight", (32,))]).write(paths[2])
    with pytest.raises(
        ModelValidationError, match=r"00003-of-00003\.gguf.*in two parts: it is also in .*00001-of"
    ):
        read_gguf(paths[0])


def test_a_part_under_another_name(tmp_path: Path) -> None:
    path = write_split(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelValidationError, match="not named like one"):
        read_gguf(path)


def test_part_names() -> None:
    assert part_names("a-00002-of-00003.gguf") == [f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for alone in ("a.gguf", "a-00004-of-00003.gguf", "a-0001-of-0003.gguf", "-00001-of-00002.gguf"):
        assert part_names(alone) == [alone]
