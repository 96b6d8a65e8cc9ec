"""Checks of a model's vocabulary.

Duplicate tokens, byte tokens that do not name a byte, and special tokens that are to be added but
do not exist abort llama.cpp while it loads or, worse, later while it tokenises.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from llama_runner._core import StringArray
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.gguf.header import quoted, words

__all__ = ["TOKENS", "check_vocabulary"]

TOKENS: Final = "tokenizer.ggml.tokens"
# The largest vocabularies in use have 262,144 tokens in 4 MiB.
MAX_TOKENS: Final = 393_216
MAX_TOKEN_ARRAY_BYTES: Final = 8 << 20
# For tokenizers that build a tree of all characters, or all suffixes, of all tokens.
MAX_TREE_BYTES: Final = 4 << 20
MAX_TREE_TOKEN_BYTES: Final = 1024

_MODEL: Final = "tokenizer.ggml.model"
_SCORES: Final = "tokenizer.ggml.scores"
_TYPES: Final = "tokenizer.ggml.token_type"
_MERGES: Final = "tokenizer.ggml.merges"

# The kinds of tokenizer, with the ids of the beginning, end and separator tokens that they use if
# the file does not name any; None: there is none.
_DEFAULT_SPECIALS: Final[dict[str, tuple[int | None, int | None, int | None]]] = {
    "llama": (1, 2, None),
    "bert": (101, None, 102),
    "gpt2": (11, 11, None),
    "hybriddna": (11, 11, None),
    "whitespace": (11, 11, None),
    "gemma4": (None, None, None),
    "t5": (None, 1, None),
    "rwkv": (None, None, None),
    "plamo2": (1, 2, None),
    "test": (None, None, None),
}
_NO_VOCABULARY: Final = ("no_vocab", "none")
_BPE: Final = ("gpt2", "hybriddna", "whitespace", "gemma4")
# The pre-tokenizers that add a beginning-of-text token by default.
_PRE_ADDS_BOS: Final = words(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "tekken chameleon"
)
# Those that add it even if the file says not to.
_PRE_INSISTS_ON_BOS: Final = ("gemma4", "granite-embed-multi-311m")
_PRE_WITHOUT_DEFAULT_BOS: Final = ("chatglm-bpe", "glm4", "glm5")

_SPECIAL_IDS: Final = sorted(
    words(
        "eot eom unknown padding mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep "
        "prefix suffix middle"
    )
)

_BYTE_TYPE: Final = 6
_BYTE_TOKEN: Final = re.compile(rb"<0x[0-9A-Fa-f]{2}>")


def check_vocabulary(facts: Facts) -> None:
    """Check the tokens and everything that refers to them.

    Raises:
        ModelValidationError: The vocabulary cannot be used; ``field`` names the key at fault.
    """
    kind = facts.text(_MODEL)
    if kind is None:
        facts.fail(_MODEL, f"the key {_MODEL} is missing")
    if kind in _NO_VOCABULARY:
        return
    if kind not in _DEFAULT_SPECIALS:
        facts.fail(_MODEL, f"the tokenizer {quoted(kind)} is unknown to this llama.cpp")
    tokens = _check_tokens(facts)
    _check_numbers(facts, len(tokens))
    _check_byte_tokens(facts, kind, tokens)
    _check_special_tokens(facts, kind, len(tokens))
    if kind in _BPE:
        _check_merges(facts)
    if kind in ("t5", "rwkv", "plamo2"):
        _check_tree_size(facts, tokens)
    if kind == "t5":
        _check_charsmap(facts)
    if kind == "rwkv":
        _check_every_start_is_a_token(facts, tokens)
    _check_embedding_rows(facts, len(tokens))


def _check_tokens(facts: Facts) -> StringArray:
    found = facts.array(TOKENS, "str")
    if found is None:
        facts.fail(TOKENS, f"the key {TOKENS} is missing")
    if not 1 <= len(found) <= MAX_TOKENS:
        facts.fail(TOKENS, f"{TOKENS} has {len(found)} tokens; 1 to {MAX_TOKENS} are accepted")
    if found.nbytes > MAX_TOKEN_ARRAY_BYTES:
        facts.fail(TOKENS, f"{TOKENS} takes {found.nbytes >> 20} MiB")
    tokens = found.strings()
    duplicate = tokens.find_duplicate()
    if duplicate is not None:
        facts.fail(
            TOKENS,
            f"the token {quoted(tokens[duplicate])} occurs twice, the second time as {duplicate}",
        )
    return tokens


def _check_tree_size(facts: Facts, tokens: StringArray) -> None:
    array = facts.array(TOKENS, "str")
    assert array is not None
    longest, total = tokens.longest, array.nbytes - 8 * len(tokens)
    if longest > MAX_TREE_TOKEN_BYTES or total > MAX_TREE_BYTES:
        facts.fail(TOKENS, f"tokens of {total} bytes, the longest of {longest}, are too large")


def _check_numbers(facts: Facts, n_tokens: int) -> None:
    for key, types in ((_SCORES, ("f32", "i32")), (_TYPES, ("i32",))):
        numbers = facts.array(key, *types)
        if numbers is not None and len(numbers) < n_tokens:
            facts.fail(key, f"{key} has {len(numbers)} values for {n_tokens} tokens")
    scores = facts.array(_SCORES, "f32", "i32")
    if scores is not None and scores.element_type == "f32" and scores.find_nan() is not None:
        facts.fail(_SCORES, f"{_SCORES} has a value that is not a number")
    facts.array("tokenizer.ggml.suppress_tokens", "i32")


def _check_byte_tokens(facts: Facts, kind: str, tokens: StringArray) -> None:
    types = facts.array(_TYPES, "i32")
    if types is None or kind == "rwkv":
        return
    index = types.find(_BYTE_TYPE)
    while index is not None and index < len(tokens):
        if kind == "bert":
            facts.fail(_TYPES, f"token {index} is a byte token, which WordPiece cannot have")
        # The loop is short: without duplicates, there are only so many ways to write a byte.
        if not _BYTE_TOKEN.fullmatch(tokens[index]):
            facts.fail(
                _TYPES, f"the byte token {index} is {quoted(tokens[index])} instead of <0xNN>"
            )
        index = types.find(_BYTE_TYPE, index + 1)


def _check_special_tokens(facts: Facts, kind: str, n_tokens: int) -> None:
    def resolved(name: str, default: int | None) -> int | None:
        """Return the id that llama.cpp will use; it ignores one that is out of range."""
        key = f"tokenizer.ggml.{name}_token_id"
        given = facts.integer(key, 0, 0xFFFFFFFF)
        if given is not None and given < n_tokens:
            return given
        if given is not None:
            facts.notes.append(f"{key} is {given}, but there are {n_tokens} tokens; it is ignored")
        return default if default is not None and default < n_tokens else None

    bos, eos, separator = _DEFAULT_SPECIALS[kind]
    pre = facts.text("tokenizer.ggml.pre") or ""
    if pre in _PRE_WITHOUT_DEFAULT_BOS:
        bos = None
    ids = {"bos": resolved("bos", bos), "eos": resolved("eos", eos)}
    ids["sep"] = resolved("seperator", separator)  # spelt so in the format
    for name in _SPECIAL_IDS:
        resolved(name, None)
    if kind in ("rwkv", "plamo2", "test"):
        return  # these do not add any
    insists = kind == "gemma4" or (kind in _BPE and pre in _PRE_INSISTS_ON_BOS)
    by_default = {
        "bos": kind == "llama" or (kind in _BPE and pre in _PRE_ADDS_BOS),
        "eos": kind == "t5",
        "sep": False,
    }
    always = {"bos": kind == "bert" or insists, "eos": False, "sep": kind == "bert"}
    for name, default in by_default.items():
        key = f"tokenizer.ggml.add_{name}_token"
        said = facts.flag(key)
        wanted = always[name] or (default if said is None else said)
        if wanted and ids[name] is None and (name != "sep" or kind == "bert"):
            facts.fail(key, f"a {name} token is to be added to every text, but there is none")


def _check_merges(facts: Facts) -> None:
    """Check that every merge is two pieces with a space between them."""
    merges = facts.array(_MERGES, "str")
    if merges is None:
        if facts.text("tokenizer.ggml.pre") != "kimi-k2":
            facts.fail(_MERGES, f"the key {_MERGES} is missing")
        return
    strings = merges.strings()
    index = strings.find_without_gap()
    if index is not None:
        facts.fail(
            _MERGES, f"merge {index} is {quoted(strings[index])}, which does not join two pieces"
        )


def _check_charsmap(facts: Facts) -> None:
    key = "tokenizer.ggml.precompiled_charsmap"
    charsmap = facts.array(key, "i8", "u8")
    if charsmap is None or not len(charsmap):
        return
    raw = charsmap.raw()
    if len(raw) < 4:
        facts.fail(key, f"{key} has {len(raw)} bytes")
    (size,) = struct.unpack_from("<I", raw)
    if size % 4 or size + 4 >= len(raw):
        facts.fail(key, f"{key} has {len(raw)} bytes and claims a table of {size}")


def _check_every_start_is_a_token(facts: Facts, tokens: StringArray) -> None:
    start = tokens.find_dead_end()
    if start is not None:
        facts.fail(TOKENS, f"{quoted(start)} starts a token but is not a token itself")


def _check_embedding_rows(facts: Facts, n_tokens: int) -> None:
    size_key = facts.key("vocab_size")
    for tensor in facts.info.tensors:
        if tensor.name == "token_embd.weight" and tensor.shape[1:2] != (n_tokens,):
            rows = tensor.shape[1] if len(tensor.shape) > 1 else 1
            facts.fail(tensor.name, f"'token_embd.weight' has {rows} rows for {n_tokens} tokens")
    declared = facts.integer(size_key, 1, 0xFFFFFFFF)
    if declared is not None and declared != n_tokens:
        facts.notes.append(f"{size_key} is {declared}, but there are {n_tokens} tokens")
