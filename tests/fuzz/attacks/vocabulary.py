"""Attacks with the vocabulary.

Lengths of tokens: CVE-2025-49847, duplicates: llama.cpp #25739.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.fuzz.attacks.registry import TOKENS, attack
from tests.fuzz.attacks.structure import raw_file, raw_key
from tests.gguf_files import ARRAY, BOOL, F32, I32, STRING, U8, U32, Array, GgufFile
from tests.unit.loaders.model_files import rwkv_words, tiny_bert, tiny_llama, tiny_moe, tiny_t5


def with_tokens(model: GgufFile, tokens: list[str]) -> GgufFile:
    """The model with other tokens."""
    return model.with_keys(tokenizer__ggml__tokens=(ARRAY, Array(STRING, tokens)))


def tokens_of(model: GgufFile) -> list[str]:
    """A copy of the model's tokens."""
    return list(model.keys[TOKENS][1].values)


@attack(TOKENS)
def duplicate_tokens() -> GgufFile:
    tokens = tokens_of(tiny_llama())
    tokens[-1] = tokens[-2]
    return with_tokens(tiny_llama(), tokens)


@attack(TOKENS)
def tokens_that_are_equal_up_to_a_nul() -> GgufFile:
    tokens = tokens_of(tiny_llama())
    tokens[-2:] = ["same\0one", "same\0two"]
    return with_tokens(tiny_llama(), tokens)


@attack(TOKENS)
def token_named_like_the_stand_in_for_an_empty_one() -> GgufFile:
    tokens = tokens_of(tiny_llama())
    tokens[-2:] = ["", f"[EMPTY_{len(tokens) - 2}]"]
    return with_tokens(tiny_llama(), tokens)


@attack(TOKENS)
def no_tokens() -> GgufFile:
    return with_tokens(tiny_llama(), [])


@attack(TOKENS)
def tokens_that_are_numbers() -> GgufFile:
    return tiny_llama().with_keys(tokenizer__ggml__tokens=(ARRAY, Array(I32, [1, 2, 3])))


@attack(TOKENS)
def token_length_overflows_an_int() -> bytes:
    tokens = struct.pack("<IQQ", STRING, 1, (1 << 31) + 1) + bytes(200)
    return raw_file(0, 1, raw_key(TOKENS, ARRAY, tokens))


@attack("token_embd.weight")
def more_tokens_than_embeddings() -> GgufFile:
    tokens = tokens_of(tiny_llama())
    return with_tokens(tiny_llama(), [*tokens, "one more"]).with_keys(
        tokenizer__ggml__scores=None, tokenizer__ggml__token_type=None
    )


@attack("tokenizer.ggml.scores")
def scores_shorter_than_the_vocabulary() -> GgufFile:
    return tiny_llama().with_keys(tokenizer__ggml__scores=(ARRAY, Array(F32, [0.0])))


@attack("tokenizer.ggml.scores")
def scores_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(tokenizer__ggml__scores=(ARRAY, Array(STRING, ["0"])))


@attack("tokenizer.ggml.token_type")
def token_types_shorter_than_the_vocabulary() -> GgufFile:
    return tiny_llama().with_keys(tokenizer__ggml__token_type=(ARRAY, Array(I32, [1])))


@attack("tokenizer.ggml.token_type")
def byte_token_that_names_no_byte() -> GgufFile:
    tokens = tokens_of(tiny_llama())
    tokens[3] = "<"
    return with_tokens(tiny_llama(), tokens)


@attack("tokenizer.ggml.token_type")
def byte_token_in_wordpiece() -> GgufFile:
    n_tokens = len(tokens_of(tiny_bert()))
    types = Array(I32, [2, 3, 3, 3, 3, 6, *[1] * (n_tokens - 6)])
    return tiny_bert().with_keys(tokenizer__ggml__token_type=(ARRAY, types))


@attack("tokenizer.ggml.add_bos_token")
def beginning_of_text_that_does_not_exist() -> GgufFile:
    model = tiny_moe().with_keys(tokenizer__ggml__bos_token_id=None)
    return with_few_tokens(model).with_keys(tokenizer__ggml__add_bos_token=(BOOL, True))


@attack("tokenizer.ggml.add_sep_token")
def separator_that_does_not_exist() -> GgufFile:
    return tiny_bert().with_keys(tokenizer__ggml__seperator_token_id=None)


def with_few_tokens(model: GgufFile) -> GgufFile:
    """The model with ten tokens, fewer than the defaults for special ids count on."""
    tokens = tokens_of(model)[:10]
    model = with_tokens(model, tokens).with_keys(
        tokenizer__ggml__scores=None, tokenizer__ggml__token_type=None
    )
    return model.with_tensor("token_embd.weight", shape=(32, 10))


@attack("tokenizer.ggml.model")
def unknown_tokenizer() -> GgufFile:
    return tiny_llama().with_keys(tokenizer__ggml__model=(STRING, "abacus"))


@attack("tokenizer.ggml.merges")
def no_merges() -> GgufFile:
    return tiny_moe().with_keys(tokenizer__ggml__merges=None)


@attack("tokenizer.ggml.merges")
def merge_of_one_piece() -> GgufFile:
    return tiny_moe().with_keys(tokenizer__ggml__merges=(ARRAY, Array(STRING, ["th", "h e"])))


@attack("tokenizer.ggml.precompiled_charsmap")
def table_of_replacements_past_its_end() -> GgufFile:
    table = Array(U8, [*struct.pack("<I", 1 << 20), *bytes(60)])
    return tiny_t5().with_keys(tokenizer__ggml__precompiled_charsmap=(ARRAY, table))


@attack(TOKENS)
def rwkv_vocabulary_that_never_ends() -> GgufFile:
    return tiny_llama_with(rwkv_words(with_newline=False))


def tiny_llama_with(vocabulary: dict[str | bytes, tuple[int, object]]) -> GgufFile:
    """The llama model with another vocabulary."""
    model = tiny_llama()
    keys = {key: value for key, value in model.keys.items() if "tokenizer" not in str(key)}
    n_tokens = len(vocabulary[TOKENS][1].values)  # type: ignore[attr-defined]
    model = replace(model, keys={**keys, **vocabulary, "llama.vocab_size": (U32, n_tokens)})
    for name in ("token_embd.weight", "output.weight"):
        model = model.with_tensor(name, shape=(32, n_tokens))
    return model
