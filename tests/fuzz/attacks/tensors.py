"""Attacks with the records of tensors.

Shapes: CVE-2024-21802, sums of sizes: CVE-2025-53630, larger than the file: CVE-2026-7482.
"""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.attacks.registry import MAX64, attack
from tests.gguf_files import GgufFile
from tests.unit.loaders.model_files import tiny_llama


@attack("tensor 0")
def tensor_name_too_long() -> GgufFile:
    return tiny_llama().with_tensor("token_embd.weight", name="t" * 64)


@attack("tensor 0")
def tensor_name_with_a_nul() -> GgufFile:
    return tiny_llama().with_tensor("token_embd.weight", name="token_embd.weight\0x")


@attack("output.weight")
def the_same_tensor_twice() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", name="output.weight")


@attack("output_norm.weight")
def tensor_without_dimensions() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", n_dims=0)


@attack("output_norm.weight")
def tensor_of_five_dimensions() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", n_dims=5)


@attack("output_norm.weight")
def dimension_of_zero() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", shape=(0,), nbytes=128)


@attack("output_norm.weight")
def dimension_is_negative() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", shape=(MAX64 - 31,), nbytes=128)


@attack("output.weight")
def element_count_overflows() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", shape=(1 << 32, 1 << 32), nbytes=128)


@attack("output.weight")
def byte_count_overflows() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", shape=(1 << 61, 1), nbytes=128)


@attack("output_norm.weight")
def padding_of_a_size_overflows() -> GgufFile:
    shape = ((1 << 61) - 1,)
    return tiny_llama().with_tensor("output_norm.weight", shape=shape, nbytes=128)


@attack("output.weight")
def element_count_is_negative() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", shape=(32, 1 << 58), nbytes=128)


@attack("token_embd.weight")
def sum_of_sizes_overflows() -> GgufFile:
    """Each size fits into 64 bits; their sum wraps round to a small one."""
    model = tiny_llama()
    huge = [replace(tensor, shape=(1 << 60, 1)) for tensor in model.tensors[:4]]
    return replace(model, tensors=[*huge, *model.tensors[4:]])


@attack("output.weight")
def tensor_type_that_was_removed() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", type_id=4)


@attack("output.weight")
def tensor_type_out_of_range() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", type_id=MAX64 >> 32)


@attack("blk.0.attn_k.weight")
def row_that_is_no_whole_number_of_blocks() -> GgufFile:
    return tiny_llama().with_tensor("blk.0.attn_k.weight", shape=(16, 32), type_id=2)


@attack("output_norm.weight")
def tensors_that_overlap() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", offset=0)


@attack("output_norm.weight")
def tensor_offset_past_the_end() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", offset=1 << 40)


@attack("blk.0.ffn_down.weight")
def tensor_larger_than_the_file() -> bytes:
    return tiny_llama().to_bytes()[:-64]


@attack("token_embd.weight")
def file_without_its_tensors() -> bytes:
    return tiny_llama().header()


@attack("output.weight")
def weights_that_are_integers() -> GgufFile:
    return tiny_llama().with_tensor("output.weight", type_id=26)


@attack("output_norm.weight")
def quantized_weights_where_none_can_be() -> GgufFile:
    return tiny_llama().with_tensor("output_norm.weight", type_id=2, nbytes=18)
