"""A small sound model for an architecture, found by asking llama.cpp what it misses.

llama.cpp names the key, the tensor or the shape that a file lacks. So a file grows by one answer
at a time until it loads; nothing here repeats which tensors an architecture has. Only the sizes
are ours, and only where a size that serves all architectures would not do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_runner import set_log_level
from llama_runner._core import Model
from llama_runner.errors import LlamaError
from llama_runner.loaders.checks.architectures import ARCHITECTURES, RECURRENT
from llama_runner.loaders.gguf.header import words
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
from tests.unit.loaders.model_files import byte_pairs, rwkv_words

__all__ = ["ASKED", "RUNNABLE", "Found", "completed", "discover"]

Value = tuple[int, Any]

# Encoders, audio decoders, diffusion models and parts of other models: the runner refuses them.
_OTHER_KINDS = words(
    """
    bert dflash dream eagle3 eurobert gemma-embedding gemma4-assistant jina-bert-v2 jina-bert-v3
    llada llada-moe llama-embed modern-bert neo-bert nomic-bert nomic-bert-moe rnd1 t5 t5encoder
    wavtokenizer-dec
    """
)
RUNNABLE = tuple(sorted(ARCHITECTURES - _OTHER_KINDS))

N_EMBD, N_FF, N_HEADS, HEAD, N_LAYERS, N_EXPERTS, CONTEXT = 64, 64, 4, 16, 2, 4, 256

# What every file has.
_GENERAL: dict[str, Value] = {
    "context_length": (U32, CONTEXT),
    "embedding_length": (U32, N_EMBD),
    "block_count": (U32, N_LAYERS),
    "feed_forward_length": (U32, N_FF),
    "attention.head_count": (U32, N_HEADS),
    "attention.head_count_kv": (U32, N_HEADS),
    "attention.layer_norm_epsilon": (F32, 1e-5),
    "attention.layer_norm_rms_epsilon": (F32, 1e-5),
}

# Keys that are set to this when llama.cpp asks for them.
ASKED: dict[str, Value] = {
    "attention.group_norm_epsilon": (F32, 1e-5),
    "attention.group_norm_groups": (U32, 4),
    "attention.key_length": (U32, HEAD),
    "attention.value_length": (U32, HEAD),
    "attention.key_length_mla": (U32, 2 * HEAD),
    "attention.value_length_mla": (U32, HEAD),
    "attention.key_length_swa": (U32, HEAD),
    "attention.value_length_swa": (U32, HEAD),
    "attention.kv_lora_rank": (U32, 32),
    "attention.q_lora_rank": (U32, 32),
    "attention.sliding_window": (U32, 16),
    "attention.sliding_window_pattern": (ARRAY, Array(BOOL, [1, 0])),
    "attention.recurrent_layers": (ARRAY, Array(BOOL, [1, 0])),
    "attention.indexer.head_count": (U32, 2),
    "attention.indexer.key_length": (U32, 64),
    "attention.indexer.top_k": (U32, 8),
    "attention.indexer.types": (ARRAY, Array(BOOL, [1, 1])),
    "attention.compress_ratios": (ARRAY, Array(U32, [0, 4])),
    "attention.max_alibi_bias": (F32, 8.0),
    "expert_count": (U32, N_EXPERTS),
    "expert_used_count": (U32, 2),
    "expert_feed_forward_length": (U32, 32),
    "expert_shared_feed_forward_length": (U32, 32),
    "expert_chunk_feed_forward_length": (U32, 32),
    "expert_shared_count": (U32, 1),
    "expert_gating_func": (U32, 2),
    "experts_per_group": (U32, 2),
    "interleave_moe_layer_step": (U32, 1),
    "moe_every_n_layers": (U32, 2),
    "moe_latent_size": (U32, 32),
    "expert_latent_length": (U32, 32),
    "expert_weights_scale": (F32, 1.0),
    "leading_dense_block_count": (U32, 1),
    "full_attention_interval": (U32, 2),
    "logit_scale": (F32, 0.1),
    "embedding_length_per_layer_input": (U32, 16),
    "rope.dimension_count": (U32, HEAD),
    "rope.dimension_sections": (ARRAY, Array(I32, [2, 2, 2, 2])),
    "rope.freq_base": (F32, 10000.0),
    "rope.freq_base_swa": (F32, 10000.0),
    "rope.scaling.factor": (F32, 1.0),
    "ssm.conv_kernel": (U32, 4),
    "ssm.inner_size": (U32, 2 * N_EMBD),
    "ssm.state_size": (U32, 16),
    "ssm.time_step_rank": (U32, 8),
    "ssm.group_count": (U32, 2),
    "wkv.head_size": (U32, 16),
    "time_mix_extra_dim": (U32, 32),
    "time_decay_extra_dim": (U32, 64),
    "shortconv.l_cache": (U32, 3),
    "kda.head_dim": (U32, 16),
    "hyper_connection.count": (U32, 4),
    "hyper_connection.sinkhorn_iterations": (U32, 4),
    "hyper_connection.epsilon": (F32, 1e-6),
    "rescale_every_n_layers": (U32, 0),
}
_MOREASKED: tuple[tuple[str, Value], ...] = (
    ("_scale", (F32, 1.0)),
    ("_rank", (U32, 32)),
    ("_length", (U32, 32)),
    ("_count", (U32, 1)),
    ("epsilon", (F32, 1e-5)),
    ("softcapping", (F32, 30.0)),
    ("", (U32, 2)),
)

# Where a graph insists on more than llama.cpp says while it reads the keys.
_SECTIONS: dict[str, Value] = {"rope.dimension_sections": (ARRAY, Array(I32, [2, 2, 2, 2]))}
_EXPERTS = {
    name: ASKED[name]
    for name in (
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_gating_func",
    )
}
# Latent attention: keys and values are one compressed row, of which a part is rotated.
_LATENT: dict[str, Value] = {
    "attention.head_count_kv": (U32, 1),
    "attention.key_length": (U32, 48),
    "attention.value_length": (U32, 32),
    "attention.key_length_mla": (U32, 32),
    "attention.value_length_mla": (U32, HEAD),
    "attention.kv_lora_rank": (U32, 32),
    "rope.dimension_count": (U32, HEAD),
}
# The models found of these load, but their graphs fail, so that no mutant of them is known to run:
# chameleon (wants the 8,192 tokens of images in the vocabulary), deepseek4 (the graph reshapes to
# another size) and dots3note (no rotation of the size of its indexer's keys).

# The layers whose heads have no keys are recurrent.
_HYBRID: dict[str, Value] = {"attention.head_count_kv": (ARRAY, Array(U32, [0, N_HEADS]))}
_LATENT_HYBRID = _LATENT | {"attention.head_count_kv": (ARRAY, Array(U32, [0, 1]))}
_SPECIAL: dict[str, dict[str, Value]] = {
    "afmoe": {"attention.sliding_window": ASKED["attention.sliding_window"]},
    "arwkv7": {"token_shift_count": (U32, 1), "attention.gate_lora_rank": (U32, 32)},
    "bailingmoe3": _LATENT_HYBRID | {"kda.gate_lower_bound": (F32, -5.0)},
    "deepseek2": _LATENT,
    "deepseek32": _LATENT,
    "deepseek4": {"expert_gating_func": (U32, 4)},
    "dots3note": _LATENT
    | {
        "attention.key_length_mla_swa": (U32, 32),
        "attention.value_length_mla_swa": (U32, HEAD),
        "attention.kv_lora_rank_swa": (U32, 32),
    },
    "glm-dsa": _LATENT,
    "granitehybrid": _HYBRID,
    "graniteswitch": {
        "block_count": (U32, N_LAYERS + 1),
        "adapters.count": (U32, 1),
        "adapters.lora_rank": (U32, 4),
        "adapters.token_ids_activate": (ARRAY, Array(I32, [3])),
        "adapters.token_ids_substitute": (ARRAY, Array(I32, [4])),
    },
    "hrm_text": {
        "block_count": (U32, 4),
        "hrm.layers_per_stack": (U32, 1),
        "hrm.h_cycles": (U32, 2),
        "hrm.l_cycles": (U32, 1),
    },
    "jamba": _HYBRID,
    "kimi-k3": _LATENT_HYBRID,
    "kimi-linear": _LATENT_HYBRID,
    "lfm2": _HYBRID,
    "lfm2moe": _HYBRID,
    "minimax-01": {"full_attention_interval": ASKED["full_attention_interval"]},
    "mistral4": _LATENT,
    "paddleocr": _SECTIONS,
    "plamo2": _HYBRID | {"ssm.group_count": (U32, 0)},
    "plm": _LATENT | {"attention.head_count_kv": (U32, N_HEADS)},
    "qwen4exp": {"full_attention_interval": ASKED["full_attention_interval"]},
    "qwen2vl": _SECTIONS,
    "rwkv6": {"token_shift_count": (U32, 2)},
    "rwkv6qwen2": {"token_shift_count": (U32, 1)},
    "rwkv7": {"token_shift_count": (U32, 2), "attention.gate_lora_rank": (U32, 32)},
}

_MISSING_KEY = re.compile(r"key not found in model: (\S+)")
_NOT_FOUND = re.compile(r"(?:tensor '([^']+)' not found|missing tensor '([^']+)')")
_WRONG_TYPE = re.compile(r"key (\S+) has wrong type \S+ but expected type (\S+)")
_WANTS_EXPERTS = re.compile(r"expert|n_ids_used")
_NEEDED_TENSOR = re.compile(r"layer\.(\w+) == NULL")
_WRONG_SHAPE = re.compile(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+), got")
_WANTED_TENSOR = re.compile(r"loading tensor (\S+)")
_OF_TYPE: dict[str, Value] = {"f32": (F32, 1.0), "bool": (BOOL, True), "u32": (U32, 2)}
# Of a tensor whose shape is not known yet. Laguna asserts this one or another for its gates.
_FIRST_SHAPE = (N_EMBD, N_HEADS)
_MOST_ANSWERS = 2000


@dataclass
class Found:
    """What llama.cpp wants of an architecture.

    Attributes:
        model: A file that loads.
        optional: Tensors that it looked for and does without.
    """

    model: GgufFile
    optional: list[Tensor] = field(default_factory=list)


def discover(architecture: str, path: Path, *, experts: bool = False) -> Found:
    """Find a file that llama.cpp loads.

    Args:
        architecture: One of RUNNABLE.
        path: Where to write the attempts.
        experts: Ask for a mixture of experts, even if it can do without.

    Raises:
        LookupError: llama.cpp says something that this module does not understand.
    """
    model = _beginning(architecture, _EXPERTS if experts else {})
    return completed(model, architecture, path)


def completed(
    model: GgufFile,
    architecture: str,
    path: Path,
    *,
    optional: bool = True,
    most_answers: int = _MOST_ANSWERS,
) -> Found:
    """Add and reshape tensors until llama.cpp loads the model.

    Args:
        model: What there is already.
        architecture: Its architecture.
        path: Where to write the attempts.
        optional: Find the optional tensors, too.
        most_answers: How many of llama.cpp's demands to meet.

    Raises:
        LookupError: llama.cpp says something that this module does not understand.
    """
    for _ in range(most_answers):
        model.write(path)
        with _listening() as lines:
            try:
                Model(path, no_alloc=True).close()
                said = ""
            except LlamaError as error:
                said = error.native or str(error)
        wanted = [match[1] for line in lines if (match := _WANTED_TENSOR.search(line))]
        if not said:
            return Found(model, _optional(model, wanted, path) if optional else [])
        model = _answered(model, architecture, said)
    raise LookupError(f"{architecture}: no end of questions")


def _beginning(architecture: str, more: dict[str, Value]) -> GgufFile:
    vocabulary = rwkv_words() if "rwkv" in architecture else byte_pairs()
    keys: dict[str | bytes, Value] = {"general.architecture": (STRING, architecture)}
    general = dict(_GENERAL)
    if architecture in RECURRENT:
        del general["attention.head_count"], general["attention.head_count_kv"]
    general |= more | _SPECIAL.get(architecture, {})
    keys |= {f"{architecture}.{name}": value for name, value in general.items()}
    return GgufFile(keys=keys | vocabulary)


def _answered(model: GgufFile, architecture: str, said: str) -> GgufFile:
    """The model with what llama.cpp asks for."""
    if match := _MISSING_KEY.search(said):
        name = match[1].removeprefix(f"{architecture}.")
        value = ASKED.get(name) or next(
            value for ending, value in _MOREASKED if name.endswith(ending)
        )
        return replace(model, keys=model.keys | {match[1]: value})
    if match := _WRONG_TYPE.search(said):
        return replace(model, keys=model.keys | {match[1]: _OF_TYPE[match[2]]})
    if match := _NOT_FOUND.search(said):
        return replace(model, tensors=[*model.tensors, Tensor(match[1] or match[2], _FIRST_SHAPE)])
    if match := _WRONG_SHAPE.search(said):
        return model.with_tensor(match[1], shape=_shape(match[2]))
    if match := _NEEDED_TENSOR.search(said):
        names = (f"blk.{layer}.{match[1]}.weight" for layer in range(N_LAYERS))
        return replace(
            model, tensors=[*model.tensors, *(Tensor(name, _FIRST_SHAPE) for name in names)]
        )
    experts = f"{architecture}.expert_count"
    if experts not in model.keys and _WANTS_EXPERTS.search(said):
        more = {f"{architecture}.{name}": value for name, value in _EXPERTS.items()}
        return replace(model, keys=more | model.keys)
    raise LookupError(f"{architecture}: {said}")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def _optional(model: GgufFile, wanted: list[str], path: Path) -> list[Tensor]:
    """The tensors that were looked for and not there, each with the shape that it would have."""
    there = {tensor.name for tensor in model.tensors}
    found = []
    for name in dict.fromkeys(wanted):
        if name in there:
            continue
        replace(model, tensors=[Tensor(name, (3, 1, 1, 7)), *model.tensors]).write(path)
        try:
            Model(path, no_alloc=True).close()
        except LlamaError as error:
            if match := _WRONG_SHAPE.search(error.native or ""):
                found.append(Tensor(name, _shape(match[2])))
    return found


@contextmanager
def _listening() -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("llama_runner.native")
    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    set_log_level("debug")
    try:
        yield lines
    finally:
        set_log_level(None)
        logger.removeHandler(handler)
