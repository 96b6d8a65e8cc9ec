"""Checks of the places and the types of a file's tensors."""

from __future__ import annotations

from typing import Final

from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.gguf.header import quoted, refuse, words
from llama_runner.loaders.gguf.info import GgufInfo, TensorInfo

__all__ = [
    "check_needed_tensors",
    "check_plain_tensors",
    "check_tensor_layout",
    "check_tensor_types",
]

# llama.cpp maps the tensor data as it is in the file, and aborts on a smaller alignment.
MEMORY_ALIGNMENT: Final = 32

# The types that ggml can multiply with on every machine. The others are for internal use (Q8_1,
# Q8_K) or for tables; as weights, they make ggml call a null function pointer.
_WEIGHT_TYPES: Final = words(
    """
    F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS
    IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0
    """
)
_TABLE_TYPES: Final = ("I32", "I64")
_TABLES: Final = ("d2t", "ffn_gate_tid2eid")
# Weights that are not multiplied as matrices; converters always write them as F32.
_PLAIN_WEIGHTS: Final = (
    "_norm.weight",
    "ssm_conv1d.weight",
    "ssm_conv1d_q.weight",
    "ssm_conv1d_k.weight",
    "ssm_conv1d_v.weight",
    "shortconv.conv.weight",
    "time_mix_first.weight",
    "time_mix_lerp_fused.weight",
    "token_types.weight",
    "altup_correct_coef.weight",
)
_MATRICES: Final = (".weight", ".lora_a", ".lora_b")

# Tensors that are optional for the loader, but that the graph uses without a check.
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "t5": ("enc.blk.0.attn_rel_b.weight", "dec.blk.0.attn_rel_b.weight"),
    "t5encoder": ("enc.blk.0.attn_rel_b.weight",),
}


def check_tensor_layout(facts: Facts, part: GgufInfo) -> None:
    """Check that one file's tensors follow one another without gaps, inside the file."""
    padding, whole = part.alignment - 1, -part.alignment  # the alignment is a power of 2
    if part.tensors and part.data_offset % MEMORY_ALIGNMENT:
        refuse(
            part.path,
            "general.alignment",
            f"its tensors start at byte {part.data_offset}, not at a multiple of "
            f"{MEMORY_ALIGNMENT}; convert it with the usual alignment",
        )
    expected = 0
    room = part.size - part.data_offset
    for name, _, _, offset, nbytes, _ in part.tensors:
        if offset != expected:
            facts.fail(name, f"{quoted(name)} is at offset {offset} instead of {expected}")
        if expected + nbytes > room:
            end = part.data_offset + expected + nbytes
            facts.fail(
                name,
                f"the file is truncated: {quoted(name)} ends at byte {end}, but the file at "
                f"{part.size}; fetch it again",
            )
        expected += (nbytes + padding) & whole
    trailing = part.size - (part.data_offset + expected)
    if part.tensors and trailing > 0:
        facts.notes.append(f"{trailing} bytes follow the last tensor of {part.path.name}")


def check_tensor_types(facts: Facts) -> None:
    """Check that every tensor has a type that ggml can compute with."""
    doubtful = {tensor.type for tensor in facts.info.tensors} - _WEIGHT_TYPES
    for tensor in facts.info.tensors if doubtful else ():
        if tensor.type in doubtful and not _is_table(tensor):
            facts.fail(
                tensor.name,
                f"{quoted(tensor.name)} is of type {tensor.type}, which weights cannot have",
            )


def check_plain_tensors(facts: Facts) -> None:
    """Check that tensors that are not multiplied as matrices are F32."""
    for tensor in facts.info.tensors:
        if tensor.type == "F32":
            continue
        name = tensor.name
        matrix = len(tensor.shape) > 1 and name.endswith(_MATRICES)
        if (not matrix or name.endswith(_PLAIN_WEIGHTS)) and not _is_table(tensor):
            facts.fail(name, f"{quoted(name)} is of type {tensor.type} instead of F32")


def check_needed_tensors(facts: Facts) -> None:
    """Check for tensors whose absence llama.cpp would notice too late."""
    needed = _NEEDED.get(facts.architecture)
    if needed is None or not facts.info.tensors:
        return
    names = {tensor.name for tensor in facts.info.tensors}
    for name in needed:
        if name not in names:
            facts.fail(name, f"the tensor {name!r} is missing")


def _is_table(tensor: TensorInfo) -> bool:
    return tensor.type in _TABLE_TYPES and any(name in tensor.name for name in _TABLES)
