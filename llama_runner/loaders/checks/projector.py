"""Checks of a projector file (``mmproj``), which turns images or sound into embeddings.

The code that reads it aborts on any key of the wrong type, so all keys are checked.
"""

from __future__ import annotations

from typing import Final

from llama_runner.loaders.checks.hyperparameters import INT32_MAX, MAX_COUNT, MAX_LAYERS
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.checks.tensors import check_tensor_layout, check_tensor_types
from llama_runner.loaders.gguf.header import ModelPath, words
from llama_runner.loaders.gguf.info import GgufInfo
from llama_runner.loaders.gguf.read import read_gguf

__all__ = ["validate_mmproj"]

_ENCODERS: Final = ("vision", "audio", "gen_audio")
_FLAGS: Final = (*(f"has_{encoder}_encoder" for encoder in _ENCODERS), "use_gelu", "use_silu")
_MAX_IMAGE_SIDE: Final = 1 << 14

# Keys by the type that they are read as; a key is recognised by the last part of its name.
_NUMBERS: Final = words(
    """
    block_count chunk_size codebook_size conv_kernel_size downsample_rate embedding_length
    expert_used_count feed_forward_length head_count head_count_kv head_dim image_max_pixels
    image_min_pixels image_size local_block_count local_group_size max_pos_emb
    minicpmv_query_num n_wa_pattern num_mel_bins num_quantizers patch_size preproc_image_size
    preproc_max_tiles preproc_min_tiles projection_dim query_side scale_factor
    spatial_merge_size stack_factor subsampling_factor window_side window_size
    """
)
_TEXTS: Final = ("projector_type", "mm_patch_merge_type", "model_variant")
_FLOATS: Final = ("layer_norm_epsilon", "swiglu_clamp")
_ARRAYS: Final[dict[str, tuple[str, ...]]] = {
    "image_mean": ("f32",),
    "image_std": ("f32",),
    "image_grid_pinpoints": ("i32", "u32"),
    "feature_layer": ("i32", "u32"),
    "wa_layer_indexes": ("i32", "u32"),
    "wa_pattern_mode": ("i32", "u32"),
    "spatial_offsets": ("i32", "u32"),
}


def validate_mmproj(path: ModelPath) -> GgufInfo:
    """Check that a projector can be loaded together with a model, and return its header.

    Raises:
        ModelNotFoundError: There is no such file.
        FileReadError: The system does not allow reading it.
        ModelValidationError: It is not a projector, or is broken; ``field`` says where.
    """
    info = read_gguf(path)
    facts = Facts(info)
    check_tensor_layout(facts, info)
    check_tensor_types(facts)
    if facts.text("general.architecture") != "clip":
        facts.fail("general.architecture", "it is not a projector, whose architecture is 'clip'")
    for key in ("general.name", "general.description"):
        facts.text(key)
    flags = {name: facts.flag(f"clip.{name}") for name in _FLAGS}
    if not any(flags[f"has_{encoder}_encoder"] for encoder in _ENCODERS):
        facts.fail("clip.has_vision_encoder", "it has no encoder for images or sound")
    if flags["use_gelu"] and flags["use_silu"]:
        facts.fail("clip.use_silu", "it claims two activation functions")
    _check_types(facts)
    for encoder in ("vision", "audio"):
        if flags[f"has_{encoder}_encoder"]:
            _check_encoder(facts, f"clip.{encoder}")
    if flags["has_vision_encoder"]:
        _check_images(facts)
    if flags["has_audio_encoder"]:
        facts.required_integer("clip.audio.num_mel_bins", 1, MAX_COUNT)
    return info


def _check_types(facts: Facts) -> None:
    for key in facts.info.keys:
        prefix, _, last = key.rpartition(".")
        if not prefix.startswith("clip"):
            continue
        if last in _TEXTS:
            facts.text(key)
        elif last in _FLOATS:
            facts.number(key, 0, 1e9)
        elif last in _ARRAYS:
            facts.array(key, *_ARRAYS[last])
        elif last in _NUMBERS:
            facts.integer(key, 0, INT32_MAX)


def _check_encoder(facts: Facts, prefix: str) -> None:
    n_embd = facts.required_integer(f"{prefix}.embedding_length", 1, MAX_COUNT)
    facts.required_integer(f"{prefix}.block_count", 0, MAX_LAYERS)
    facts.required_integer(f"{prefix}.feed_forward_length", 0, MAX_COUNT)
    heads_key = f"{prefix}.attention.head_count"
    heads = facts.required_integer(heads_key, 1, MAX_COUNT)
    if not facts.has(f"{prefix}.attention.head_dim") and n_embd % heads:
        facts.fail(heads_key, f"embeddings of {n_embd} cannot be split into {heads} heads")
    facts.number(f"{prefix}.attention.layer_norm_epsilon", 0, 1)


def _check_images(facts: Facts) -> None:
    side = facts.required_integer("clip.vision.image_size", 1, _MAX_IMAGE_SIDE)
    facts.required_integer("clip.vision.patch_size", 1, side)
    for key in ("spatial_merge_size", "projector.scale_factor"):
        facts.integer(f"clip.vision.{key}", 1, 64)
    for name in ("image_mean", "image_std"):
        key = f"clip.vision.{name}"
        values = facts.array(key, "f32")
        if values is not None and len(values) < 3:
            facts.fail(key, f"{key} has {len(values)} values instead of 3")
        if values is not None and name == "image_std" and not all(values.values()):
            facts.fail(key, f"{key} has a zero, but images are divided by it")
