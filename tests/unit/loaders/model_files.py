"""Small models with random weights, one for each kind of memory, that llama.cpp loads and runs."""

from __future__ import annotations

from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    Array,
    GgufFile,
    Keys,
    Tensor,
)

N_EMBD, N_FF, N_HEADS, N_KV_HEADS = 32, 64, 2, 1
HEAD = N_EMBD // N_HEADS
CONTEXT = 256


def _general(architecture: str, n_layers: int) -> Keys:
    return {
        "general.architecture": (STRING, architecture),
        "general.name": (STRING, f"tiny {architecture}"),
        "general.file_type": (U32, 0),
        f"{architecture}.block_count": (U32, n_layers),
        f"{architecture}.context_length": (U32, CONTEXT),
        f"{architecture}.embedding_length": (U32, N_EMBD),
        f"{architecture}.feed_forward_length": (U32, N_FF),
    }


def _attention(architecture: str, kv_heads: int = N_KV_HEADS) -> Keys:
    return {
        f"{architecture}.attention.head_count": (U32, N_HEADS),
        f"{architecture}.attention.head_count_kv": (U32, kv_heads),
        f"{architecture}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    }


def _vocabulary(model: str, tokens: list[str], types: list[int]) -> Keys:
    return {
        "tokenizer.ggml.model": (STRING, model),
        "tokenizer.ggml.tokens": (ARRAY, Array(STRING, tokens)),
        "tokenizer.ggml.scores": (ARRAY, Array(F32, [-float(i) for i in range(len(tokens))])),
        "tokenizer.ggml.token_type": (ARRAY, Array(I32, types)),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
    }


def sentencepiece() -> Keys:
    """Three marks, 256 byte tokens and five words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"\u2581w{index}" for index in range(5)]
    keys = _vocabulary("llama", tokens, [2, 3, 3, *[6] * 256, *[1] * 5])
    keys["tokenizer.ggml.add_bos_token"] = (BOOL, True)
    keys["tokenizer.chat_template"] = (
        STRING,
        "{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    return keys


def byte_pairs() -> Keys:
    """Three marks, the letters of GPT-2's bytes that are themselves, and four merges."""
    letters = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]
    merged = ["th", "\u0120t", "he", "the"]
    merges = ["t h", "\u0120 t", "h e", "th e"]
    tokens = ["<unk>", "<s>", "</s>", *letters, *merged]
    keys = _vocabulary("gpt2", tokens, [2, 3, 3, *[1] * (len(tokens) - 3)])
    keys["tokenizer.ggml.pre"] = (STRING, "gpt-2")
    keys["tokenizer.ggml.merges"] = (ARRAY, Array(STRING, merges))
    return keys


def wordpiece() -> Keys:
    """BERT's marks, the letters, and the letters inside of a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokens += [f"\u2581{letter}" for letter in letters] + letters
    keys = _vocabulary("bert", tokens, [2, 3, 3, 3, 3, *[1] * 52])
    keys["tokenizer.ggml.seperator_token_id"] = (U32, 2)
    keys["tokenizer.ggml.padding_token_id"] = (U32, 3)
    keys["tokenizer.ggml.token_type_count"] = (U32, 2)
    return keys


def unigrams() -> Keys:
    """T5's marks, the letters, and the space."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", *letters, *(f"\u2581{x}" for x in letters)]
    keys = _vocabulary("t5", tokens, [3, 3, 2, *[1] * 53])
    keys["tokenizer.ggml.unknown_token_id"] = (U32, 2)
    keys["tokenizer.ggml.eos_token_id"] = (U32, 1)
    keys["tokenizer.ggml.add_eos_token"] = (BOOL, True)
    del keys["tokenizer.ggml.bos_token_id"]
    return keys


def rwkv_words(*, with_newline: bool = True) -> Keys:
    """Every letter and some words of two; without its newline the matcher would never end."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<s>", *letters, "ab", "cd", "\\n\\n", "<"]
    if with_newline:
        tokens.append("\\n")
    return {
        "tokenizer.ggml.model": (STRING, "rwkv"),
        "tokenizer.ggml.tokens": (ARRAY, Array(STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, Array(I32, [3, *[1] * (len(tokens) - 1)])),
    }


def _size(vocabulary: Keys) -> int:
    return len(vocabulary["tokenizer.ggml.tokens"][1].values)


def _attention_tensors(prefix: str, kv_heads: int = N_KV_HEADS) -> list[Tensor]:
    return [
        Tensor(f"{prefix}attn_q.weight", (N_EMBD, N_EMBD)),
        Tensor(f"{prefix}attn_k.weight", (N_EMBD, HEAD * kv_heads)),
        Tensor(f"{prefix}attn_v.weight", (N_EMBD, HEAD * kv_heads)),
    ]


def _feed_forward(prefix: str) -> list[Tensor]:
    return [
        Tensor(f"{prefix}ffn_gate.weight", (N_EMBD, N_FF)),
        Tensor(f"{prefix}ffn_up.weight", (N_EMBD, N_FF)),
        Tensor(f"{prefix}ffn_down.weight", (N_FF, N_EMBD)),
    ]


def tiny_llama(n_layers: int = 1) -> GgufFile:
    """Plain attention, a SentencePiece vocabulary."""
    vocabulary = sentencepiece()
    keys = _general("llama", n_layers) | _attention("llama") | vocabulary
    keys["llama.rope.dimension_count"] = (U32, HEAD)
    keys["llama.vocab_size"] = (U32, _size(vocabulary))
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("output_norm.weight", (N_EMBD,)),
        Tensor("output.weight", (N_EMBD, _size(vocabulary))),
    ]
    for layer in range(n_layers):
        prefix = f"blk.{layer}."
        tensors += [
            Tensor(f"{prefix}attn_norm.weight", (N_EMBD,)),
            *_attention_tensors(prefix),
            Tensor(f"{prefix}attn_output.weight", (N_EMBD, N_EMBD)),
            Tensor(f"{prefix}ffn_norm.weight", (N_EMBD,)),
            *_feed_forward(prefix),
        ]
    return GgufFile(keys=keys, tensors=tensors)


def tiny_moe(n_experts: int = 4) -> GgufFile:
    """Plain attention, a mixture of experts, a byte-pair vocabulary, embeddings used twice."""
    vocabulary = byte_pairs()
    keys = _general("llama", 1) | _attention("llama") | vocabulary
    keys |= {
        "llama.rope.dimension_count": (U32, HEAD),
        "llama.expert_count": (U32, n_experts),
        "llama.expert_used_count": (U32, 2),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("output_norm.weight", (N_EMBD,)),
        Tensor("blk.0.attn_norm.weight", (N_EMBD,)),
        *_attention_tensors("blk.0."),
        Tensor("blk.0.attn_output.weight", (N_EMBD, N_EMBD)),
        Tensor("blk.0.ffn_norm.weight", (N_EMBD,)),
        Tensor("blk.0.ffn_gate_inp.weight", (N_EMBD, n_experts)),
        Tensor("blk.0.ffn_gate_exps.weight", (N_EMBD, N_FF, n_experts)),
        Tensor("blk.0.ffn_up_exps.weight", (N_EMBD, N_FF, n_experts)),
        Tensor("blk.0.ffn_down_exps.weight", (N_FF, N_EMBD, n_experts)),
    ]
    return GgufFile(keys=keys, tensors=tensors)


def tiny_gemma2(window: int = 16) -> GgufFile:
    """Every other layer looks back on a window alone."""
    vocabulary = sentencepiece()
    keys = _general("gemma2", 2) | _attention("gemma2") | vocabulary
    keys |= {
        "gemma2.attention.sliding_window": (U32, window),
        "gemma2.attention.key_length": (U32, HEAD),
        "gemma2.attention.value_length": (U32, HEAD),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("output_norm.weight", (N_EMBD,)),
    ]
    for prefix in ("blk.0.", "blk.1."):
        tensors += [
            Tensor(f"{prefix}attn_norm.weight", (N_EMBD,)),
            *_attention_tensors(prefix),
            Tensor(f"{prefix}attn_output.weight", (N_EMBD, N_EMBD)),
            Tensor(f"{prefix}post_attention_norm.weight", (N_EMBD,)),
            Tensor(f"{prefix}ffn_norm.weight", (N_EMBD,)),
            *_feed_forward(prefix),
            Tensor(f"{prefix}post_ffw_norm.weight", (N_EMBD,)),
        ]
    return GgufFile(keys=keys, tensors=tensors)


def tiny_mamba2() -> GgufFile:
    """A state instead of attention."""
    vocabulary = byte_pairs()
    inner, state, groups, heads, kernel = 64, 16, 1, 4, 4
    conv = inner + 2 * groups * state
    keys = _general("mamba2", 1) | vocabulary
    keys |= {
        "mamba2.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "mamba2.ssm.conv_kernel": (U32, kernel),
        "mamba2.ssm.inner_size": (U32, inner),
        "mamba2.ssm.state_size": (U32, state),
        "mamba2.ssm.time_step_rank": (U32, heads),
        "mamba2.ssm.group_count": (U32, groups),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("output_norm.weight", (N_EMBD,)),
        Tensor("blk.0.attn_norm.weight", (N_EMBD,)),
        Tensor("blk.0.ssm_in.weight", (N_EMBD, inner + conv + heads)),
        Tensor("blk.0.ssm_conv1d.weight", (kernel, conv)),
        Tensor("blk.0.ssm_conv1d.bias", (conv,)),
        Tensor("blk.0.ssm_dt.bias", (heads,)),
        Tensor("blk.0.ssm_a", (1, heads)),
        Tensor("blk.0.ssm_d", (1, heads)),
        Tensor("blk.0.ssm_norm.weight", (inner // groups, groups)),
        Tensor("blk.0.ssm_out.weight", (inner, N_EMBD)),
    ]
    return GgufFile(keys=keys, tensors=tensors)


def tiny_bert() -> GgufFile:
    """An encoder alone, with learned positions and a WordPiece vocabulary."""
    vocabulary = wordpiece()
    keys = _general("bert", 1) | vocabulary
    keys |= {
        "bert.attention.head_count": (U32, N_HEADS),
        "bert.attention.layer_norm_epsilon": (F32, 1e-5),
        "bert.attention.causal": (BOOL, False),
        "bert.pooling_type": (U32, 1),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("token_types.weight", (N_EMBD, 2)),
        Tensor("position_embd.weight", (N_EMBD, CONTEXT)),
        Tensor("token_embd_norm.weight", (N_EMBD,)),
        Tensor("token_embd_norm.bias", (N_EMBD,)),
        *_attention_tensors("blk.0.", kv_heads=N_HEADS),
        Tensor("blk.0.attn_output.weight", (N_EMBD, N_EMBD)),
        Tensor("blk.0.attn_output_norm.weight", (N_EMBD,)),
        Tensor("blk.0.attn_output_norm.bias", (N_EMBD,)),
        Tensor("blk.0.ffn_up.weight", (N_EMBD, N_FF)),
        Tensor("blk.0.ffn_down.weight", (N_FF, N_EMBD)),
        Tensor("blk.0.layer_output_norm.weight", (N_EMBD,)),
        Tensor("blk.0.layer_output_norm.bias", (N_EMBD,)),
    ]
    return GgufFile(keys=keys, tensors=tensors)


def tiny_gpt2(n_positions: int = CONTEXT) -> GgufFile:
    """A decoder with learned positions."""
    vocabulary = byte_pairs()
    keys = _general("gpt2", 1) | vocabulary
    keys |= {
        "gpt2.context_length": (U32, n_positions),
        "gpt2.attention.head_count": (U32, N_HEADS),
        "gpt2.attention.layer_norm_epsilon": (F32, 1e-5),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("position_embd.weight", (N_EMBD, n_positions)),
        *_with_bias("output_norm", (N_EMBD,)),
        *_with_bias("blk.0.attn_norm", (N_EMBD,)),
        *_with_bias("blk.0.attn_qkv", (N_EMBD, 3 * N_EMBD)),
        *_with_bias("blk.0.attn_output", (N_EMBD, N_EMBD)),
        *_with_bias("blk.0.ffn_norm", (N_EMBD,)),
        *_with_bias("blk.0.ffn_up", (N_EMBD, N_FF)),
        *_with_bias("blk.0.ffn_down", (N_FF, N_EMBD)),
    ]
    return GgufFile(keys=keys, tensors=tensors)


def _with_bias(name: str, shape: tuple[int, ...]) -> list[Tensor]:
    return [Tensor(f"{name}.weight", shape), Tensor(f"{name}.bias", shape[-1:])]


def tiny_t5() -> GgufFile:
    """An encoder and a decoder, with relative positions and a unigram vocabulary."""
    vocabulary = unigrams()
    keys = _general("t5", 1) | _attention("t5", kv_heads=N_HEADS) | vocabulary
    keys |= {
        "t5.attention.key_length": (U32, HEAD),
        "t5.attention.value_length": (U32, HEAD),
        "t5.attention.relative_buckets_count": (U32, 32),
        "t5.decoder_start_token_id": (U32, 0),
    }
    tensors = [
        Tensor("token_embd.weight", (N_EMBD, _size(vocabulary))),
        Tensor("enc.output_norm.weight", (N_EMBD,)),
        Tensor("dec.output_norm.weight", (N_EMBD,)),
    ]
    for side in ("enc.", "dec."):
        prefix = f"{side}blk.0."
        tensors += [
            Tensor(f"{prefix}attn_norm.weight", (N_EMBD,)),
            Tensor(f"{prefix}attn_rel_b.weight", (N_HEADS, 32)),
            *_attention_tensors(prefix, kv_heads=N_HEADS),
            Tensor(f"{prefix}attn_o.weight", (N_EMBD, N_EMBD)),
            Tensor(f"{prefix}ffn_norm.weight", (N_EMBD,)),
            *_feed_forward(prefix),
        ]
    tensors += [
        Tensor("dec.blk.0.cross_attn_norm.weight", (N_EMBD,)),
        *(
            Tensor(f"dec.blk.0.cross_attn_{part}.weight", (N_EMBD, N_EMBD))
            for part in ("q", "k", "v", "o")
        ),
    ]
    return GgufFile(keys=keys, tensors=tensors)


ALL = (tiny_llama, tiny_moe, tiny_gemma2, tiny_mamba2, tiny_bert, tiny_t5)
