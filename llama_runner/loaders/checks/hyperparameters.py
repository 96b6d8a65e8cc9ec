"""Checks of the numbers that describe a model's layers.

Each check stands for a place where llama.cpp aborts, divides by zero or reads out of bounds if the
number is wrong. Numbers that llama.cpp itself refuses with a clear error are not checked here.
"""

from __future__ import annotations

import math
from typing import Final

from llama_runner.loaders.checks.architectures import (
    ARCHITECTURES,
    EQUAL_HEADS,
    HYBRID,
    RECURRENT,
    ROTATED_HEADS,
)
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.gguf.header import quoted

__all__ = ["check_hyperparameters"]

MAX_LAYERS: Final = 512
MAX_EXPERTS: Final = 1024
MAX_COUNT: Final = 1 << 20
INT32_MAX: Final = (1 << 31) - 1

# Divisors and sizes of states: a zero would divide by zero or make an empty tensor.
_AT_LEAST_ONE: Final = (
    "attention.group_norm_groups",
    "attention.indexer.block_size",
    "attention.indexer.head_count",
    "attention.indexer.key_length",
    "attention.output_group_count",
    "block_size",
    "conv_group_size",
    "experts_per_group",
    "full_attention_interval",
    "hrm.h_cycles",
    "hrm.l_cycles",
    "hrm.layers_per_stack",
    "kda.head_dim",
    "num_loops",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "wkv.head_size",
)

# Sizes of a head; any of these keys may be missing.
_HEAD_SIZES: Final = tuple(
    f"attention.{part}_length{kind}"
    for part in ("key", "value")
    for kind in ("", "_mla", "_swa", "_mla_swa")
)
_MAX_HEAD_SIZE: Final = 65536

# By design, the output of these is wider than their embeddings, and is checked against a tensor.
_OWN_OUTPUT_WIDTH: Final = ("deepseek4", "gemma4-assistant", "wavtokenizer-dec")

_ROPE_SCALINGS: Final = ("none", "linear", "yarn", "longrope")
_EPSILONS: Final = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")


def check_hyperparameters(facts: Facts) -> None:
    """Check every number that could make the pinned llama.cpp fail badly.

    Raises:
        ModelValidationError: A number is impossible; ``field`` is its key.
    """
    _check_architecture(facts)
    _check_finite(facts)
    n_layers = facts.required_integer(facts.key("block_count"), 1, MAX_LAYERS)
    facts.required_integer(facts.key("context_length"), 1, INT32_MAX)
    n_embd = facts.required_integer(facts.key("embedding_length"), 1, MAX_COUNT)
    facts.per_layer("feed_forward_length", n_layers, MAX_COUNT)
    facts.integer(facts.key("vocab_size"), 1, MAX_COUNT)
    for suffix in _AT_LEAST_ONE:
        facts.integer(facts.key(suffix), 1, INT32_MAX)
    _check_layer_counts(facts, n_layers)
    _check_attention(facts, n_layers, n_embd)
    _check_rope_scaling(facts)
    _check_experts(facts, n_layers)
    _check_recurrence(facts, n_embd)
    _check_output_width(facts, n_embd)
    facts.integer(facts.key("pooling_type"), 0, 4)


def _check_architecture(facts: Facts) -> None:
    field = "general.architecture"
    name = facts.text(field)
    if name is None:
        facts.fail(field, f"the key {field} is missing")
    if name == "clip":
        facts.fail(field, "it is a projector for images or audio, which is used with a model")
    if name not in ARCHITECTURES:
        facts.fail(field, f"the architecture {quoted(name)} is unknown to this llama.cpp")
    if facts.text("general.type") == "adapter":
        facts.fail("general.type", "it is a LoRA adapter, which is used with a model")


def _check_finite(facts: Facts) -> None:
    for key, value in facts.info.keys.items():
        if isinstance(value, float) and not math.isfinite(value):
            facts.fail(key, f"{quoted(key)} is {value}")


def _check_layer_counts(facts: Facts, n_layers: int) -> None:
    facts.integer(facts.key("nextn_predict_layers"), 0, n_layers - 1)
    facts.integer(facts.key("leading_dense_block_count"), 0, n_layers)
    facts.integer(facts.key("n_deepstack_layers"), 0, n_layers)
    facts.integer(facts.key("decoder_block_count"), 1, n_layers)
    facts.integer(facts.key("attention.shared_kv_layers"), 0, max(0, n_layers - 2))
    facts.integer(facts.key("posnet.block_count"), 0, n_layers)
    facts.integer(facts.key("convnext.block_count"), 0, n_layers)
    # With fewer than four buckets, T5's relative positions divide by zero.
    facts.integer(facts.key("attention.relative_buckets_count"), 4, MAX_COUNT)


def _check_attention(facts: Facts, n_layers: int, n_embd: int) -> None:
    heads = facts.per_layer("attention.head_count", n_layers, MAX_COUNT) or (0,) * n_layers
    kv_heads = facts.per_layer("attention.head_count_kv", n_layers, MAX_COUNT) or heads
    field = facts.key("attention.head_count")
    if not any(heads) and facts.architecture not in RECURRENT | HYBRID:
        facts.fail(field, f"{field} is 0 or missing")
    for layer, (queries, keys) in enumerate(zip(heads, kv_heads, strict=True)):
        if keys and queries % keys:
            facts.fail(
                f"{field}_kv",
                f"layer {layer} has {queries} heads, not a multiple of its {keys} key/value heads",
            )
    for suffix in _HEAD_SIZES:
        facts.integer(facts.key(suffix), 1, _MAX_HEAD_SIZE)
    for name in _EPSILONS:
        facts.number(facts.key(f"attention.{name}"), 0, 1)
    if facts.number(facts.key("attention.temperature_scale"), -1e9, 1e9):
        facts.integer(facts.key("attention.temperature_length"), 1, INT32_MAX)
    if heads[0]:
        _check_head_sizes(facts, n_embd // heads[0])


def _check_head_sizes(facts: Facts, default_size: int) -> None:
    def size(suffix: str, default: int) -> int:
        value = facts.integer(facts.key(suffix), 0, _MAX_HEAD_SIZE)
        return default if value is None else value

    key_size = size("attention.key_length", default_size)
    value_size = size("attention.value_length", default_size)
    swa_key_size = size("attention.key_length_swa", key_size)
    swa_value_size = size("attention.value_length_swa", value_size)
    rotated = size("rope.dimension_count", key_size)
    swa_rotated = size("rope.dimension_count_swa", rotated)
    field = facts.key("rope.dimension_count")
    for count, of in ((rotated, key_size), (swa_rotated, swa_key_size)):
        if count % 2 or count > of:
            facts.fail(
                field,
                f"RoPE cannot rotate {count} of {of} dimensions: the number must be even, and at "
                f"most {of}",
            )
    if facts.architecture in EQUAL_HEADS:
        for kind, one, other in (
            ("", key_size, value_size),
            ("_swa", swa_key_size, swa_value_size),
        ):
            if one != other:
                key = facts.key(f"attention.value_length{kind}")
                facts.fail(key, f"heads have keys of size {one} but values of size {other}")
    if facts.architecture in ROTATED_HEADS and (rotated, swa_rotated) != (key_size, swa_key_size):
        facts.fail(field, f"RoPE rotates {rotated} dimensions, but heads have {key_size}")
    sections = facts.per_layer("rope.dimension_sections", 4, _MAX_HEAD_SIZE)
    if sections is not None and not any(sections[:3]):
        key = facts.key("rope.dimension_sections")
        facts.fail(key, f"{key} has only empty sections")


def _check_rope_scaling(facts: Facts) -> None:
    field = facts.key("rope.scaling.type")
    scaling = facts.text(field)
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        facts.fail(field, f"{field} is {quoted(scaling)}, not one of {', '.join(_ROPE_SCALINGS)}")
    for suffix in ("rope.freq_base", "rope.freq_base_swa"):
        facts.number(facts.key(suffix), 1e-6, 1e30)
    for suffix in ("rope.scaling.factor", "rope.scale_linear"):
        facts.number(facts.key(suffix), 0, 1e9)


def _check_experts(facts: Facts, n_layers: int) -> None:
    n_experts = facts.integer(facts.key("expert_count"), 0, MAX_EXPERTS) or 0
    used_field = facts.key("expert_used_count")
    used = max(facts.per_layer("expert_used_count", n_layers, INT32_MAX) or (0,))
    groups_field = facts.key("expert_group_count")
    groups = facts.integer(groups_field, 0, INT32_MAX) or 0
    groups_used_field = facts.key("expert_group_used_count")
    groups_used = facts.integer(groups_used_field, 0, INT32_MAX) or 0
    facts.integer(facts.key("expert_gating_func"), 0, 4)
    if facts.architecture in ("hunyuan_vl", "hunyuan-dense") and n_experts <= 1:
        n_experts = used = 0  # as in llama.cpp
    if used > n_experts:
        facts.fail(used_field, f"{used} experts are used, but there are {n_experts}")
    if n_experts and not used:
        facts.fail(used_field, f"there are {n_experts} experts, but none is used")
    if groups and groups >= n_experts:
        facts.fail(groups_field, f"{n_experts} experts cannot form {groups} groups")
    if groups > 1 and n_experts % groups:
        facts.fail(groups_field, f"{n_experts} experts cannot form {groups} equal groups")
    if groups > 1 and not 0 < groups_used < groups:
        facts.fail(groups_used_field, f"{groups_used} of {groups} expert groups are used")


def _check_recurrence(facts: Facts, n_embd: int) -> None:
    head_field = facts.key("wkv.head_size")
    head_size = facts.integer(head_field, 1, MAX_COUNT)
    if head_size and n_embd % head_size:
        facts.fail(head_field, f"embeddings of {n_embd} cannot be split into heads of {head_size}")
    if facts.architecture.startswith(("rwkv", "arwkv")):
        shifts = 2 if facts.architecture in ("rwkv6", "rwkv7") else 1
        facts.integer(facts.key("token_shift_count"), shifts, shifts)
    _check_state_space(facts, n_embd)
    # 1 would be a convolution over nothing; 0 means that the model has none.
    if facts.integer(facts.key("shortconv.l_cache"), 0, MAX_COUNT) == 1:
        key = facts.key("shortconv.l_cache")
        facts.fail(key, f"{key} is 1; a convolution needs at least 2")


def _check_output_width(facts: Facts, n_embd: int) -> None:
    """Check the width with which llama.cpp reads embeddings: a wrong one reads out of bounds."""
    field = facts.key("embedding_length_out")
    width = facts.integer(field, 1, MAX_COUNT)
    if width in (None, n_embd) or facts.architecture in _OWN_OUTPUT_WIDTH:
        return
    for tensor in facts.info.tensors:
        if tensor.name == "dense_2.weight" and tensor.shape[-1] == width:
            return
    facts.fail(field, f"{field} is {width}, but the model's embeddings have {n_embd} dimensions")


def _check_state_space(facts: Facts, n_embd: int) -> None:
    inner_field, groups_field, heads_field = (
        facts.key(f"ssm.{name}") for name in ("inner_size", "group_count", "time_step_rank")
    )
    inner = facts.integer(inner_field, 1, INT32_MAX)
    # PLaMo 2 has the key but no groups, and its graph requires that.
    lowest, highest = (0, 0) if facts.architecture == "plamo2" else (1, INT32_MAX)
    groups = facts.integer(groups_field, lowest, highest)
    heads = facts.integer(heads_field, 1, INT32_MAX)
    if facts.architecture in ("jamba", "granitehybrid") and inner not in (None, 2 * n_embd):
        facts.fail(inner_field, f"{inner_field} is {inner}, not twice the embedding length")
    if facts.architecture in ("mamba", "jamba"):
        return  # in Mamba 1, time_step_rank is a rank, not the number of heads
    for field, parts in ((groups_field, groups), (heads_field, heads)):
        if inner and parts and inner % parts:
            facts.fail(field, f"{inner} inner dimensions cannot be split into {parts} parts")
    if heads and groups and heads % groups:
        facts.fail(groups_field, f"{heads} state-space heads cannot form {groups} groups")
