"""Models of a few kilobytes with random weights, for every kind of memory.

They say the nastiest things, half characters among them, and answer at once, so that properties
can be tested on many examples. All weights are float32, so that another order of
additions moves a logit by some 1e-6 of the distance between two of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_files import (
    TOKEN_BYTE,
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    GgufFile,
    Keys,
    Tensor,
    read_keys,
    typed,
)

KINDS = ("plain", "swa", "recurrent", "hybrid", "mrope")
ARCHITECTURES = {
    "plain": "llama",
    "shallow": "llama",
    "swa": "cohere2",
    "recurrent": "mamba",
    "hybrid": "jamba",
    "mrope": "qwen2vl",
}
N_CTX_TRAIN = 4096
WINDOW = 24
UNKNOWN, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
# Of one to four bytes in UTF-8, and pieces that share beginnings.
PIECES = [*"▁abc<>éß漢字€😀\ufffd\n", "ab", "abc", "▁the", "▁a", "<|", "漢字", "😀😀", "👩\u200d🚀"]
N_VOCAB = FIRST_BYTE + 256 + len(PIECES)
# With ``overflow``, the only token with a part in the last direction of the embeddings.
OVERFLOWING = FIRST_BYTE + 256 + PIECES.index("ß")
OVERFLOWS = {"key": ("attn_k", 3e4), "value": ("attn_v", 3e4), "state": ("ssm_in", 1e25)}

N_EMBD, N_HEAD, N_HEAD_KV, N_FF = 32, 4, 2, 48
HEAD_DIM = N_EMBD // N_HEAD
D_INNER, D_STATE, D_CONV, DT_RANK = 2 * N_EMBD, 8, 4, 4


def write_model(
    path: Path,
    kind: str = "plain",
    *,
    suppressed: Sequence[int] = (),
    broken: bool = False,
    control: Sequence[str] = (),
    vocabulary: Path | None = None,
    overflow: str = "",
    one_head: bool = False,
) -> Path:
    """Write a model file.

    Args:
        path: Where.
        kind: The kind of memory it has, one of ``ARCHITECTURES``.
        suppressed: Token ids that the file says must never be sampled.
        broken: All logits are NaN.
        control: Further control tokens.
        vocabulary: A model file whose vocabulary to use instead.
        overflow: What of the token ``OVERFLOWING`` is finite, but more than a half float (or, for
            "state", the state's recurrence) holds; one of ``OVERFLOWS``.
        one_head: One head of 32 numbers, so that it can be quantized; what overflows is larger.
    """
    arch = ARCHITECTURES[kind]
    layers = _layers(kind)
    n_head, n_head_kv = (1, 1) if one_head else (N_HEAD, N_HEAD_KV)
    by_layer = [0 if layer == "ssm" else n_head_kv for layer in layers]
    values = {
        "context_length": N_CTX_TRAIN,
        "embedding_length": N_EMBD,
        "block_count": len(layers),
        "feed_forward_length": N_FF,
        "attention.head_count": n_head,
        "attention.head_count_kv": by_layer if kind == "hybrid" else n_head_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if kind == "swa":
        values |= {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.sliding_window": WINDOW,
            "logit_scale": 1.0,
        }
    if kind == "mrope":
        values["rope.dimension_sections"] = [2, 1, 1, 0]
    if "ssm" in layers:
        values |= {
            "ssm.conv_kernel": D_CONV,
            "ssm.inner_size": D_INNER,
            "ssm.state_size": D_STATE,
            "ssm.time_step_rank": DT_RANK,
        }
    keys = typed({f"{arch}.{name}": value for name, value in values.items()})
    keys |= copied_vocabulary(vocabulary) if vocabulary else byte_vocabulary(control)
    if suppressed:
        keys |= typed({"tokenizer.ggml.suppress_tokens": [int(token) for token in suppressed]})
    tensors = []
    for name, array in _tensors(kind, layers, _n_tokens(keys), n_head_kv * N_EMBD // n_head):
        if overflow:
            weight, size = OVERFLOWS[overflow]
            # A block that is quantized has a half float as its scale.
            _make_overflow(name, array, weight, size * 1000 if one_head else size)
        tensors.append(Tensor.of(name, array * np.float32("nan") if broken else array))
    return GgufFile(keys=typed({"general.architecture": arch}) | keys, tensors=tensors).write(path)


def piece(token: int) -> bytes:
    """The bytes that a generated token adds to the text."""
    if token < FIRST_BYTE:
        return b""
    if token < FIRST_BYTE + 256:
        return bytes([token - FIRST_BYTE])
    return PIECES[token - FIRST_BYTE - 256].replace("▁", " ").encode()


def byte_vocabulary(control: Sequence[str] = ()) -> Keys:
    """Make a vocabulary of all bytes and ``PIECES``, with further control tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    names += control
    types = [TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_CONTROL]
    types += [TOKEN_BYTE] * 256 + [TOKEN_NORMAL] * len(PIECES)
    types += [TOKEN_CONTROL] * len(control)
    values = {
        "model": "llama",
        "tokens": names,
        "scores": [float(len(name)) for name in names],
        "token_type": types,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "unknown_token_id": UNKNOWN,
        "add_bos_token": True,
    }
    return typed({f"tokenizer.ggml.{name}": value for name, value in values.items()})


def copied_vocabulary(path: Path) -> Keys:
    """Take over everything that a model file says about its vocabulary."""
    return {
        name: value
        for name, value in read_keys(path).items()
        if str(name).startswith("tokenizer.") and name != "tokenizer.chat_template"
    }


def _n_tokens(keys: Keys) -> int:
    _, tokens = keys["tokenizer.ggml.tokens"]
    _, n_tokens = struct.unpack_from("<IQ", tokens.to_bytes())
    return int(n_tokens)


def _layers(kind: str) -> list[str]:
    return {
        "plain": ["attention"] * 2,
        # Keys and values of a first layer depend on their token alone: what moves up after
        # others were removed remembers nothing of them, and must be as if computed afresh.
        "shallow": ["attention"],
        "mrope": ["attention"] * 2,
        "swa": ["attention"] * 4,  # three with a window, one without
        "recurrent": ["ssm"] * 2,
        "hybrid": ["ssm", "attention"],
    }[kind]


def _make_overflow(name: str, array: np.ndarray[Any, Any], weight: str, size: float) -> None:
    """Have one weight of one layer multiply the last direction by a large number.

    No layer before writes to that direction, so that only one token has a part in it.
    """
    if name == "token_embd.weight":
        array[:, -1] = 0
        array[OVERFLOWING, -1] = 100
    elif name.endswith(("attn_output.weight", "ssm_out.weight", "ffn_down.weight")):
        array[-1] = 0
    elif name.endswith(f"{weight}.weight"):
        array[:, -1] = size * np.where(np.arange(len(array)) % 2, 1, -1)


def _tensors(
    kind: str, layers: list[str], n_vocab: int, n_embd_kv: int
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    random = np.random.default_rng(20)

    def matrix(n_out: int, n_in: int, scale: float = 1.5) -> np.ndarray[Any, Any]:
        return (random.standard_normal((n_out, n_in)) * scale / n_in**0.5).astype(np.float32)

    def ones(n: int) -> np.ndarray[Any, Any]:
        return np.ones(n, np.float32)

    yield "token_embd.weight", matrix(n_vocab, N_EMBD, 3.0)
    yield "output_norm.weight", ones(N_EMBD)
    if kind != "swa":  # which uses the embeddings once more
        yield "output.weight", matrix(n_vocab, N_EMBD, 3.0)
    for i, layer in enumerate(layers):
        yield f"blk.{i}.attn_norm.weight", ones(N_EMBD)
        if layer == "ssm":
            yield f"blk.{i}.ssm_in.weight", matrix(2 * D_INNER, N_EMBD)
            yield f"blk.{i}.ssm_conv1d.weight", matrix(D_INNER, D_CONV)
            yield f"blk.{i}.ssm_conv1d.bias", np.zeros(D_INNER, np.float32)
            yield f"blk.{i}.ssm_x.weight", matrix(DT_RANK + 2 * D_STATE, D_INNER)
            yield f"blk.{i}.ssm_dt.weight", matrix(D_INNER, DT_RANK)
            yield f"blk.{i}.ssm_dt.bias", np.zeros(D_INNER, np.float32)
            yield f"blk.{i}.ssm_a", -np.exp(matrix(D_INNER, D_STATE))
            yield f"blk.{i}.ssm_d", ones(D_INNER)
            yield f"blk.{i}.ssm_out.weight", matrix(N_EMBD, D_INNER)
            if kind == "hybrid":
                yield f"blk.{i}.ssm_dt_norm.weight", ones(DT_RANK)
                yield f"blk.{i}.ssm_b_norm.weight", ones(D_STATE)
                yield f"blk.{i}.ssm_c_norm.weight", ones(D_STATE)
        else:
            yield f"blk.{i}.attn_q.weight", matrix(N_EMBD, N_EMBD)
            yield f"blk.{i}.attn_k.weight", matrix(n_embd_kv, N_EMBD)
            yield f"blk.{i}.attn_v.weight", matrix(n_embd_kv, N_EMBD)
            yield f"blk.{i}.attn_output.weight", matrix(N_EMBD, N_EMBD)
        if kind == "recurrent":
            continue
        if kind != "swa":  # which computes both parts of a layer from one norm
            yield f"blk.{i}.ffn_norm.weight", ones(N_EMBD)
        yield f"blk.{i}.ffn_gate.weight", matrix(N_FF, N_EMBD)
        yield f"blk.{i}.ffn_up.weight", matrix(N_FF, N_EMBD)
        yield f"blk.{i}.ffn_down.weight", matrix(N_EMBD, N_FF)
