"""Structure-aware damage to GGUF files: what an attacker, a bad disk or a bug would do to one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Array,
    GgufFile,
    Tensor,
)

INTEGERS = (0, 1, 2, 3, 7, 8, 31, 33, 255, 511, 512, 513, 1024, 1 << 16, (1 << 31) - 1, 1 << 31)
FLOATS = (0.0, -1.0, 1e-5, 1.0, 1e38, -1e38, float("nan"), float("inf"), float("-inf"))
HUGE = (0, 1, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = ("", "llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "test", "mamba", "linear")
LIMITS = {U8: 1 << 8, U16: 1 << 16, U32: 1 << 32, U64: 1 << 64, I8: 1 << 7, I32: 1 << 31}

Mutation = Callable[[random.Random, GgufFile], GgufFile]


def mutated(seed: int, model: GgufFile) -> bytes:
    """The bytes of a damaged copy of the model; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        model = rng.choice(MUTATIONS)(rng, model)
    data = model.to_bytes()
    if rng.random() < 0.25:
        data = _damaged_bytes(rng, data, len(model.header()))
    return data


def _other_value(rng: random.Random, type_id: int, value: Any) -> Any:
    if type_id in (F32, F64):
        return rng.choice(FLOATS)
    if type_id == BOOL:
        return not value
    if type_id == STRING:
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        return rng.choice((*TEXTS, text[:-1], text + "\0x", text * 3, "\udcff".join(text)[:9]))
    near = [value - 1, value + 1, value * 2, value // 2, *INTEGERS, *HUGE]
    return rng.choice([number for number in near if 0 <= number < LIMITS[type_id]])


def change_value(rng: random.Random, model: GgufFile) -> GgufFile:
    key = rng.choice(list(model.keys))
    type_id, value = model.keys[key]
    if type_id == ARRAY:
        return change_array(rng, model, key)
    return _with_key(model, key, (type_id, _other_value(rng, type_id, value)))


def change_type(rng: random.Random, model: GgufFile) -> GgufFile:
    key = rng.choice(list(model.keys))
    new: tuple[int, Any] = rng.choice(
        (
            (U8, 1),
            (U16, 1),
            (I32, 1),
            (U64, 1),
            (F32, 1.0),
            (F64, 1.0),
            (BOOL, True),
            (STRING, "llama"),
            (ARRAY, Array(U32, [1])),
            (ARRAY, Array(STRING, ["a", "a"])),
            (ARRAY, Array(I32, [])),
        )
    )
    return _with_key(model, key, new)


def drop_key(rng: random.Random, model: GgufFile) -> GgufFile:
    key = rng.choice(list(model.keys))
    return replace(model, keys={k: v for k, v in model.keys.items() if k != key})


def rename_key(rng: random.Random, model: GgufFile) -> GgufFile:
    old = rng.choice(list(model.keys))
    other = rng.choice(list(model.keys))
    name = rng.choice(
        (b"", b"\xff", b"a\0b", b"k" * 70000, other if isinstance(other, bytes) else other.encode())
    )
    return replace(model, keys={name if k == old else k: v for k, v in model.keys.items()})


def change_array(rng: random.Random, model: GgufFile, key: str | bytes | None = None) -> GgufFile:
    if key is None:
        key = rng.choice(
            [k for k, (type_id, _) in model.keys.items() if type_id == ARRAY] or [None]
        )
    if key is None:
        return model
    array: Array = model.keys[key][1]
    values = list(array.values)
    match rng.randrange(6):
        case 0:
            return _with_key(model, key, (ARRAY, replace(array, length=rng.choice(HUGE))))
        case 1:
            values = values[: rng.choice((0, 1, len(values) // 2, len(values) - 1))]
        case 2 if values:
            index = rng.randrange(len(values))
            values[index] = _other_value(rng, array.type_id, values[index])
        case 3 if values:
            values[rng.randrange(len(values))] = rng.choice(values)
        case 4:
            values = values + values[:3]
        case _:
            rng.shuffle(values)
    return _with_key(model, key, (ARRAY, Array(array.type_id, values)))


def change_tensor(rng: random.Random, model: GgufFile) -> GgufFile:
    tensors = list(model.tensors)
    index = rng.randrange(len(tensors))
    tensor = tensors[index]
    match rng.randrange(9):
        case 0:
            tensor = replace(tensor, type_id=rng.randrange(45))
        case 1:
            tensor = replace(tensor, offset=rng.choice((*HUGE, 1, 32, 4096)), nbytes=tensor.size())
        case 2:
            tensor = replace(tensor, n_dims=rng.choice((0, 1, 2, 3, 4, 5, 1 << 31)))
        case 3:
            shape = list(tensor.shape)
            shape[rng.randrange(len(shape))] = rng.choice((*HUGE, 1, 2, 31, 64))
            tensor = replace(tensor, shape=tuple(shape), nbytes=tensor.size())
        case 4:
            tensor = replace(tensor, name=rng.choice((b"", b"a\0b", b"n" * 64, "output.weight")))
        case 5:
            tensor = replace(tensor, shape=tuple(reversed(tensor.shape)))
        case 6:
            tensor = replace(tensor, shape=(*tensor.shape, rng.choice((1, 1, 2)))[:4])
        case 7:
            del tensors[index]
            return replace(model, tensors=tensors)
        case _:
            tensors.insert(rng.randrange(len(tensors)), replace(tensor, name="extra.weight"))
            return replace(model, tensors=tensors)
    tensors[index] = tensor
    return replace(model, tensors=tensors)


def change_tensor_type(rng: random.Random, model: GgufFile) -> GgufFile:
    """Another type, with the right number of bytes for it, so that only the type is wrong."""
    sizes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 9: (32, 36), 24: (1, 1), 26: (1, 4)}
    sizes |= {27: (1, 8), 28: (1, 8), 30: (1, 2), 20: (32, 18), 3: (32, 20)}
    tensors: list[Tensor] = list(model.tensors)
    index = rng.randrange(len(tensors))
    type_id = rng.choice(list(sizes))
    block, block_bytes = sizes[type_id]
    elements = replace(tensors[index], nbytes=None).size() // 4
    nbytes = elements // block * block_bytes
    tensors[index] = replace(tensors[index], type_id=type_id, nbytes=nbytes)
    return replace(model, tensors=tensors)


def change_counts(rng: random.Random, model: GgufFile) -> GgufFile:
    match rng.randrange(4):
        case 0:
            return replace(model, n_keys=rng.choice((*HUGE, len(model.keys) + 1)))
        case 1:
            return replace(model, n_tensors=rng.choice((*HUGE, len(model.tensors) + 1)))
        case 2:
            return replace(model, version=rng.choice((0, 1, 2, 4, 3 << 24, 1 << 31)))
        case _:
            alignment = rng.choice((0, 1, 4, 8, 16, 24, 64, 4096, 1 << 16, 1 << 17, 1 << 31))
            written = alignment if alignment in (8, 16, 64, 4096, 1 << 16) else 32
            model = _with_key(model, "general.alignment", (U32, alignment))
            return replace(model, alignment=written)


def add_key(rng: random.Random, model: GgufFile) -> GgufFile:
    """A key that llama.cpp reads if it is there, with a value that may or may not do."""
    _, architecture = model.keys.get("general.architecture", (STRING, "llama"))
    name = rng.choice(OPTIONAL_KEYS).replace("llama.", f"{architecture}.")
    value: tuple[int, Any] = rng.choice(
        (
            (U32, rng.choice((*INTEGERS, (1 << 32) - 1))),
            (F32, rng.choice(FLOATS)),
            (I32, rng.choice((-1, 0, 1))),
            (U16, rng.choice((0, 1, 2))),
            (BOOL, True),
            (STRING, rng.choice((*TEXTS, "yarn", "no such thing"))),
            (ARRAY, Array(I32, [rng.choice((-1, 0, 1, 8)) for _ in range(rng.choice((0, 1, 4)))])),
        )
    )
    return _with_key(model, name, value)


OPTIONAL_KEYS = [
    *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "seperator", "padding")),
    *(f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep")),
    "tokenizer.ggml.pre",
    "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.remove_extra_whitespaces",
    "split.no",
    "split.count",
    "split.tensors.count",
    "general.type",
    "general.tensor_extra.name",
    "tokenizer.chat_template",
    *(
        f"llama.{name}"
        for name in (
            "attention.causal",
            "attention.clamp_kqv",
            "attention.key_length",
            "attention.key_length_swa",
            "attention.layer_norm_epsilon",
            "attention.max_alibi_bias",
            "attention.scale",
            "attention.sliding_window",
            "attention.temperature_length",
            "attention.temperature_scale",
            "attention.value_length",
            "attn_logit_softcapping",
            "classifier.output_labels",
            "embedding_length_out",
            "expert_count",
            "expert_gating_func",
            "expert_group_count",
            "expert_group_used_count",
            "expert_used_count",
            "expert_weights_scale",
            "final_logit_softcapping",
            "full_attention_interval",
            "leading_dense_block_count",
            "logit_scale",
            "n_deepstack_layers",
            "nextn_predict_layers",
            "pooling_type",
            "residual_scale",
            "rope.dimension_count_swa",
            "rope.dimension_sections",
            "rope.freq_base",
            "rope.scale_linear",
            "rope.scaling.attn_factor",
            "rope.scaling.factor",
            "rope.scaling.original_context_length",
            "rope.scaling.type",
            "rope.scaling.yarn_log_multiplier",
            "ssm.group_count",
            "tensor_data_layout",
        )
    ),
]

MUTATIONS: tuple[Mutation, ...] = (
    change_value,
    change_value,
    change_type,
    drop_key,
    rename_key,
    change_array,
    change_tensor,
    change_tensor_type,
    change_counts,
    add_key,
    add_key,
)


def _with_key(model: GgufFile, key: str | bytes, value: tuple[int, Any]) -> GgufFile:
    return replace(model, keys={**model.keys, key: value})


def _damaged_bytes(rng: random.Random, data: bytes, header: int) -> bytes:
    """Flip, cut or insert somewhere, mostly in the header."""
    end = header if rng.random() < 0.9 else len(data)
    position = rng.randrange(end)
    match rng.randrange(4):
        case 0:
            return data[:position]
        case 1:
            return data[:position] + rng.randbytes(rng.choice((1, 8, 100))) + data[position:]
        case 2:
            return data[:position] + data[position + rng.choice((1, 8, 100)) :]
        case _:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 4, 16))):
                changed[rng.randrange(end)] = rng.randrange(256)
            return bytes(changed)
