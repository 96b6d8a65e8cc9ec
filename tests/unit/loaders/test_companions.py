"""LoRA adapters, projectors and chat templates: what goes with a model is checked as strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_runner.errors import ModelValidationError
from llama_runner.loaders import GgufInfo, read_gguf, validate_lora, validate_mmproj, validate_model
from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    Array,
    GgufFile,
    Tensor,
)
from tests.unit.loaders.model_files import N_EMBD, N_FF, tiny_llama, tiny_moe

RANK = 4


@pytest.fixture
def base(tmp_path: Path) -> GgufInfo:
    return read_gguf(tiny_llama().write(tmp_path / "base.gguf"))


def adapter() -> GgufFile:
    """A LoRA adapter for tiny llama: one matrix and the embeddings."""
    return GgufFile(
        keys={
            "general.architecture": (STRING, "llama"),
            "general.type": (STRING, "adapter"),
            "adapter.type": (STRING, "lora"),
            "adapter.lora.alpha": (F32, 8.0),
        },
        tensors=[
            Tensor("blk.0.ffn_up.weight.lora_a", (N_EMBD, RANK)),
            Tensor("blk.0.ffn_up.weight.lora_b", (RANK, N_FF)),
            Tensor("token_embd.weight.lora_a", (RANK, 264)),
            Tensor("token_embd.weight.lora_b", (RANK, N_EMBD)),
        ],
    )


def test_an_adapter_for_this_model_passes(tmp_path: Path, base: GgufInfo) -> None:
    info = validate_lora(adapter().write(tmp_path / "lora.gguf"), base)
    assert len(info.tensors) == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"general__type": (STRING, "model")}, "general.type"),
        ({"general__type": None}, "general.type"),
        ({"general__type": (U32, 1)}, "general.type"),
        ({"adapter__type": (STRING, "dora")}, "adapter.type"),
        ({"general__architecture": (STRING, "qwen2")}, "general.architecture"),
        ({"adapter__lora__alpha": (STRING, "8")}, "adapter.lora.alpha"),
        ({"adapter__lora__alpha": (F32, float("inf"))}, "adapter.lora.alpha"),
        (
            {"adapter__alora__invocation_tokens": (ARRAY, Array(I32, [1]))},
            "adapter.alora.invocation_tokens",
        ),
    ],
)
def test_an_adapter_with_wrong_metadata(
    tmp_path: Path, base: GgufInfo, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelValidationError) as caught:
        validate_lora(adapter().with_keys(**change).write(tmp_path / "lora.gguf"), base)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("blk.0.ffn_up.weight.lora_a", {"shape": (RANK, N_EMBD)}),
        ("blk.0.ffn_up.weight.lora_a", {"shape": (N_EMBD, RANK, 2)}),
        ("blk.0.ffn_up.weight.lora_b", {"shape": (RANK + 1, N_FF)}),
        ("blk.0.ffn_up.weight.lora_b", {"name": "blk.0.ffn_up.weight.lora_c"}),
        ("blk.0.ffn_up.weight.lora_b", {"name": "blk.7.ffn_up.weight.lora_b"}),
        ("token_embd.weight.lora_a", {"shape": (264, RANK)}),
        ("token_embd.weight.lora_b", {"shape": (RANK + 1, N_EMBD)}),
    ],
)
def test_an_adapter_that_does_not_fit(
    tmp_path: Path, base: GgufInfo, name: str, change: dict[str, Any]
) -> None:
    with pytest.raises(ModelValidationError):
        validate_lora(adapter().with_tensor(name, **change).write(tmp_path / "lora.gguf"), base)


def test_an_adapter_of_embeddings_that_are_the_output_too(tmp_path: Path) -> None:
    model = tiny_llama()
    tied = replace(model, tensors=[t for t in model.tensors if t.name != "output.weight"])
    base = read_gguf(tied.write(tmp_path / "tied.gguf"))
    with pytest.raises(ModelValidationError, match="also uses for its output") as caught:
        validate_lora(adapter().write(tmp_path / "lora.gguf"), base)
    assert caught.value.field == "token_embd.weight"


def test_an_adapter_for_one_expert_of_many_would_be_read_past_its_end(tmp_path: Path) -> None:
    base = read_gguf(tiny_moe().write(tmp_path / "moe.gguf"))
    flat = [
        Tensor("blk.0.ffn_up_exps.weight.lora_a", (N_EMBD, RANK)),
        Tensor("blk.0.ffn_up_exps.weight.lora_b", (RANK, N_FF)),
    ]
    with pytest.raises(ModelValidationError, match="do not fit"):
        validate_lora(replace(adapter(), tensors=flat).write(tmp_path / "flat.gguf"), base)
    deep = [replace(tensor, shape=(*tensor.shape, 4)) for tensor in flat]
    validate_lora(replace(adapter(), tensors=deep).write(tmp_path / "deep.gguf"), base)


def test_an_adapter_that_changes_nothing(tmp_path: Path, base: GgufInfo) -> None:
    with pytest.raises(ModelValidationError, match="does not change any tensor"):
        validate_lora(replace(adapter(), tensors=[]).write(tmp_path / "lora.gguf"), base)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelValidationError, match="LoRA adapter"):
        validate_model(adapter().write(tmp_path / "lora.gguf"))


# ---- projectors --------------------------------------------------------------------------------


def projector() -> GgufFile:
    """A vision projector's metadata with one of its tensors."""
    return GgufFile(
        keys={
            "general.architecture": (STRING, "clip"),
            "clip.has_vision_encoder": (BOOL, True),
            "clip.projector_type": (STRING, "mlp"),
            "clip.use_gelu": (BOOL, True),
            "clip.vision.image_size": (U32, 224),
            "clip.vision.patch_size": (U32, 14),
            "clip.vision.embedding_length": (U32, 64),
            "clip.vision.feed_forward_length": (U32, 128),
            "clip.vision.block_count": (U32, 2),
            "clip.vision.projection_dim": (U32, 32),
            "clip.vision.attention.head_count": (U32, 4),
            "clip.vision.attention.layer_norm_epsilon": (F32, 1e-5),
            "clip.vision.image_mean": (ARRAY, Array(F32, [0.5, 0.5, 0.5])),
            "clip.vision.image_std": (ARRAY, Array(F32, [0.5, 0.5, 0.5])),
        },
        tensors=[Tensor("v.patch_embd.weight", (14, 14, 3, 64))],
    )


def test_a_projector_passes(tmp_path: Path) -> None:
    validate_mmproj(projector().write(tmp_path / "mmproj.gguf"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"general__architecture": (STRING, "llama")}, "general.architecture"),
        ({"clip__has_vision_encoder": (BOOL, False)}, "clip.has_vision_encoder"),
        ({"clip__has_vision_encoder": (U32, 1)}, "clip.has_vision_encoder"),
        ({"clip__use_silu": (BOOL, True)}, "clip.use_silu"),
        ({"clip__projector_type": (U32, 1)}, "clip.projector_type"),
        ({"clip__vision__patch_size": (U32, 0)}, "clip.vision.patch_size"),
        ({"clip__vision__patch_size": (U32, 225)}, "clip.vision.patch_size"),
        ({"clip__vision__patch_size": (I32, 14)}, "clip.vision.patch_size"),
        ({"clip__vision__image_size": (U32, 1 << 20)}, "clip.vision.image_size"),
        ({"clip__vision__attention__head_count": (U32, 0)}, "clip.vision.attention.head_count"),
        ({"clip__vision__attention__head_count": (U32, 5)}, "clip.vision.attention.head_count"),
        ({"clip__vision__block_count": (U32, 1000)}, "clip.vision.block_count"),
        ({"clip__vision__window_size": (F32, 1.0)}, "clip.vision.window_size"),
        ({"clip__vision__spatial_merge_size": (U32, 0)}, "clip.vision.spatial_merge_size"),
        ({"clip__vision__image_std": (ARRAY, Array(F32, [0.0, 1, 1]))}, "clip.vision.image_std"),
        ({"clip__vision__image_mean": (ARRAY, Array(F32, [0.5]))}, "clip.vision.image_mean"),
        ({"clip__has_audio_encoder": (BOOL, True)}, "clip.audio.embedding_length"),
    ],
)
def test_a_broken_projector(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelValidationError) as caught:
        validate_mmproj(projector().with_keys(**change).write(tmp_path / "mmproj.gguf"))
    assert caught.value.field == field


def test_a_projector_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelValidationError, match="projector"):
        validate_model(projector().write(tmp_path / "mmproj.gguf"))


# ---- chat templates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ bos_token }}" + "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}" * 50,
        "{% if a %}x{% elif b %}y{% else %}z{% endif %}" * 500,
        "{{ '((((' * 200 ~ \")\" * 3 }}" * 200,
        "{# " + "(" * 1000 + " #}",
        "{% set x = [" + "{'a': (1, 2)}, " * 200 + "] %}",
        "{% macro m(a) %}{{ a }}{% endmacro %}" * 200,
        "text with ((((((( and {{ '}}' }} and { % signs",
    ],
)
def test_ordinary_templates_pass(tmp_path: Path, template: str) -> None:
    model = tiny_llama().with_keys(tokenizer__chat_template=(STRING, template))
    validate_model(model.write(tmp_path / "template.gguf"))


def test_the_templates_of_the_pinned_tree_pass(tmp_path: Path) -> None:
    root = Path(__file__).parents[3] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
    templates = sorted(root.glob("*.jinja"))
    if not templates:
        pytest.skip("the pinned tree was unpacked without its test assets")
    for template in templates:
        source = template.read_text(encoding="utf-8")
        model = tiny_llama().with_keys(tokenizer__chat_template=(STRING, source))
        validate_model(model.write(tmp_path / "template.gguf"))
