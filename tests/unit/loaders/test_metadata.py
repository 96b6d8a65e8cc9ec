"""Model descriptions: read, compared with their file, and written whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner.errors import ModelMetadataError, ModelNotFoundError, ModelValidationError
from llama_runner.loaders import ModelMetadata, SamplingDefaults, load_model
from llama_runner.params import GenerationParams
from tests.gguf_files import ARRAY, STRING, U32, Array
from tests.unit.loaders.model_files import tiny_llama


def described(folder: Path, **fields: Any) -> Path:
    """A JSON description beside a tiny model."""
    tiny_llama().write(folder / "tiny.gguf")
    values = {"name": "Tiny", "path": "tiny.gguf", "architecture": "llama"} | fields
    path = folder / "tiny.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


def test_the_form_that_was_asked_for(tmp_path: Path) -> None:
    path = described(tmp_path, quantization="F32", context_length=128)
    metadata = load_model(path)
    assert metadata.name == "Tiny"
    assert metadata.path == tmp_path / "tiny.gguf"
    assert (metadata.architecture, metadata.quantization) == ("llama", "F32")
    assert metadata.context_length == 128


def test_a_description_cannot_be_changed(tmp_path: Path) -> None:
    metadata = load_model(described(tmp_path))
    with pytest.raises(ModelMetadataError, match=r"^name: ModelMetadata is frozen; make a new one"):
        metadata.name = "other"  # type: ignore[misc]
    with pytest.raises(ModelMetadataError, match=r"^name: .* is frozen"):
        del metadata.name
    assert metadata.name == "Tiny"
    assert metadata.changed(name="other").name == "other"
    with pytest.raises(ModelMetadataError):
        metadata.changed(context_length=0)


def test_from_gguf_reads_the_header(tmp_path: Path) -> None:
    model = tiny_llama().with_keys(
        general__license=(STRING, "mit"), general__tags=(ARRAY, Array(STRING, ["small", ""]))
    )
    path = model.write(tmp_path / "tiny.gguf")
    metadata = ModelMetadata.from_gguf(path)
    assert metadata == ModelMetadata(
        name="tiny llama",
        path=path,
        architecture="llama",
        quantization="F32",
        context_length=256,
        size=path.stat().st_size,
        license="mit",
        tags=("small",),
    )
    metadata.check()


def test_from_gguf_with_odd_metadata(tmp_path: Path) -> None:
    model = tiny_llama().with_keys(
        general__name=(STRING, ""),
        general__license=(U32, 1),
        general__tags=(ARRAY, Array(U32, [1])),
        general__file_type=(U32, 9999),
        llama__context_length=(U32, 0),
    )
    metadata = ModelMetadata.from_gguf(model.write(tmp_path / "odd.gguf"))
    assert (metadata.name, metadata.license, metadata.tags) == ("odd", None, ())
    assert (metadata.quantization, metadata.context_length) == ("F32", None)
    long = tiny_llama().with_keys(general__name=(STRING, "x" * 5000))
    assert len(ModelMetadata.from_gguf(long.write(tmp_path / "long.gguf")).name) == 1024
    nameless = tiny_llama().with_keys(general__architecture=None).write(tmp_path / "none.gguf")
    with pytest.raises(ModelMetadataError, match="architecture"):
        ModelMetadata.from_gguf(nameless)


def test_contradictions_are_reported_field_by_field(tmp_path: Path) -> None:
    path = described(
        tmp_path, architecture="qwen2", quantization="Q8_0", context_length=512, size=1
    )
    with pytest.raises(ModelMetadataError) as caught:
        load_model(path)
    message = str(caught.value)
    for part in ("'qwen2'", "'llama'", "'Q8_0'", "'F32'", "512", "256", "size is 1"):
        assert part in message
    assert "\n" not in message
    assert caught.value.field == "architecture"


def test_a_shorter_context_than_the_model_was_trained_with_is_no_contradiction(
    tmp_path: Path,
) -> None:
    load_model(described(tmp_path, context_length=64))


def test_a_model_file_that_is_not_there_yet_is_not_compared(tmp_path: Path) -> None:
    metadata = load_model(described(tmp_path, path="elsewhere/later.gguf"))
    assert metadata.path == tmp_path / "elsewhere" / "later.gguf"
    with pytest.raises(ModelNotFoundError):
        metadata.check()


def test_a_broken_model_file_is_refused(tmp_path: Path) -> None:
    path = described(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelValidationError):
        load_model(path)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"architecture": None}, "architecture"),
        ({"context_length": 0}, "context_length"),
        ({"context_length": "many"}, "context_length"),
        ({"contxt_length": 5}, "contxt_length"),
        ({"self": 1}, "self"),
        ({"two\nlines": 1}, "two\nlines"),
        ({"sha256": "abc"}, "sha256"),
        ({"source": "ftp://example"}, "source"),
        ({"sampling": {"temperature": -1}}, "sampling"),
        ({"tags": "one"}, "tags"),
        ({"n_gpu_layers": -2}, "n_gpu_layers"),
        ({"n_gpu_layers": 10**20}, "n_gpu_layers"),
        ({"context_length": "4096"}, "context_length"),
        ({"context_length": True}, "context_length"),
        ({"sampling": {"top_k": 10**20}}, "sampling.top_k"),
        ({"sampling": {"repeat_penalty": 0.001}}, "sampling.repeat_penalty"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature"),
        ({"sampling": 3}, "sampling"),
        ({"source": "hf:owner/repo:../../x.gguf"}, "source"),
        ({"path": 3}, "path"),
        ({"path": ""}, "path"),
        ({"path": "."}, "path"),
        ({"path": ".."}, "path"),
        ({"chat_template": 3}, "chat_template"),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template": "\u00fc" * (140 << 10)}, "chat_template"),
        ({"size": 1.5}, "size"),
        ({"sha256": []}, "sha256"),
        ({"tags": [3]}, "tags"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    path = described(tmp_path, **fields)
    with pytest.raises(ModelMetadataError) as caught:
        load_model(path)
    assert str(caught.value.field).startswith(field)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not re.search("(?i)input|extra|pattern|valid ", str(caught.value))


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    for twice, name in (
        ('"path": "a.gguf", "name": "b", "name": "c"', "name"),
        ('"path": "a.gguf", "name": "b", "sampling": {"top_k": 1, "top_k": 2}', "top_k"),
    ):
        path.write_text(f'{{"architecture": "llama", {twice}}}')
        with pytest.raises(ModelMetadataError, match=f"'{name}' occurs twice") as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "not JSON" not in str(caught.value)


def test_unlike_names_are_not_proposed(tmp_path: Path) -> None:
    with pytest.raises(ModelMetadataError, match="unknown field 'stop'; known are temperature, "):
        load_model(described(tmp_path, sampling={"stop": "x"}))


def test_an_unknown_field_names_the_nearest_known(tmp_path: Path) -> None:
    for fields in ({"contxt_length": 5}, {"sampling": {"temprature": 1}}):
        with pytest.raises(
            ModelMetadataError, match=r"did you mean '(context_length|temperature)'"
        ):
            load_model(described(tmp_path, **fields))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelMetadata(name="x"),  # type: ignore[call-arg]
        lambda: ModelMetadata.model_validate({"name": "x", "architecture": 3}),
        lambda: ModelMetadata.model_validate(3),
        lambda: ModelMetadata.model_validate_json(b'{"name": ""}'),
        lambda: ModelMetadata.model_validate_json(b"{"),
        lambda: ModelMetadata.model_validate_strings({"name": "x"}),
        lambda: ModelMetadata(name="x", architecture="y").model_copy(update={"size": -1}),
        lambda: SamplingDefaults(top_k=-1),
        lambda: SamplingDefaults.model_validate({"top_k": -1}),
    ],
)
def test_every_way_to_make_one_checks_it(make: Callable[[], object]) -> None:
    with pytest.raises(ModelMetadataError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_description_comes_back_from_its_own_json() -> None:
    metadata = ModelMetadata(
        name="x",
        architecture="llama",
        path=Path("x.gguf"),
        sha256=("0" * 64, "1" * 64),
        tags=("a",),
        sampling=SamplingDefaults(top_k=3),
    )
    assert ModelMetadata.model_validate_json(metadata.model_dump_json()) == metadata
    assert ModelMetadata.model_validate(metadata) is metadata


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b"3", b"[" * 100_000, b'{"a": 1e999}', b" " * (2 << 20)]
)
def test_a_file_that_is_not_a_description_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ModelMetadataError):
        load_model(path)


def test_a_missing_description(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_model(tmp_path / "missing.json")
    with pytest.raises(ModelMetadataError):
        load_model(tmp_path)


def test_neither_path_nor_source(tmp_path: Path) -> None:
    with pytest.raises(ModelMetadataError, match="path or source must say"):
        load_model(described(tmp_path, path=None))


def test_saved_beside_its_model_it_can_be_moved(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    metadata = ModelMetadata.from_gguf(tiny_llama().write(first / "tiny.gguf"))
    metadata.save(first / "tiny.json")
    assert json.loads((first / "tiny.json").read_text())["path"] == "tiny.gguf"
    first.rename(second)
    assert load_model(second / "tiny.json").path == second / "tiny.gguf"


def test_saved_elsewhere_it_keeps_the_whole_path(tmp_path: Path) -> None:
    metadata = ModelMetadata.from_gguf(tiny_llama().write(tmp_path / "tiny.gguf"))
    folder = tmp_path / "descriptions"
    folder.mkdir()
    metadata.save(folder / "tiny.json")
    assert load_model(folder / "tiny.json") == metadata


def test_a_relative_path_is_saved_as_the_file_that_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama().write(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    metadata = ModelMetadata(name="Tiny", path=Path("tiny.gguf"), architecture="llama")
    metadata.check()
    for place in (Path("sub", "tiny.json"), Path("tiny.json")):
        metadata.save(place)
        assert load_model(place).path == tmp_path / "tiny.gguf"


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = described(tmp_path)
    before = path.read_text()
    metadata = load_model(path)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        metadata.changed(name="new").save(path)
    assert path.read_text() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tiny.gguf", "tiny.json"]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50)


@given(
    name=TEXT,
    license_name=st.none() | TEXT,
    tags=st.lists(TEXT, max_size=4),
    temperature=st.none() | st.floats(0, 100),
    template=st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    license_name: str | None,
    tags: list[str],
    temperature: float | None,
    template: str | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "saved.json"
    metadata = ModelMetadata(
        name=name,
        source="hf:owner/repo:file.gguf",
        architecture="llama",
        license=license_name,
        tags=tuple(tags),
        chat_template=template,
        sampling=SamplingDefaults(temperature=temperature),
    )
    metadata.save(path)
    assert load_model(path) == metadata


def test_sampling_defaults_are_generation_parameters() -> None:
    assert set(SamplingDefaults.model_fields) <= set(GenerationParams.model_fields)
