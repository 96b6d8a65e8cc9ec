"""One GGUF file for each known way to attack a reader of them, made here and never downloaded.

``python -m tests.fuzz.attacks DIRECTORY`` writes them out, as seeds for the fuzzer.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.unit.loaders.gguf_writer import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U16,
    U32,
    Array,
    GgufFile,
    text,
)
from tests.unit.loaders.model_files import (
    rwkv_words,
    tiny_bert,
    tiny_llama,
    tiny_mamba2,
    tiny_moe,
    tiny_t5,
)

TOKENS = "tokenizer.ggml.tokens"
MAX64 = (1 << 64) - 1


@dataclass(frozen=True)
class Attack:
    """A hostile file, and what its refusal must name as the culprit."""

    build: Callable[[], bytes]
    field: str


ATTACKS: dict[str, Attack] = {}


def attack(field: str) -> Callable[[Callable[[], GgufFile | bytes]], Callable[[], bytes]]:
    """Register a function that makes a hostile file, under its own name."""

    def register(make: Callable[[], GgufFile | bytes]) -> Callable[[], bytes]:
        def build() -> bytes:
            made = make()
            return made if isinstance(made, bytes) else made.to_bytes()

        ATTACKS[make.__name__] = Attack(build, field)
        return build

    return register


def raw_file(n_tensors: int, n_keys: int, rest: bytes) -> bytes:
    """A file whose parts after the counts are written by hand."""
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_keys) + rest


def raw_key(key: str, type_id: int, value: bytes) -> bytes:
    """One metadata key, written by hand."""
    return text(key) + struct.pack("<I", type_id) + value


# ---- the file as a whole -----------------------------------------------------------------------


@attack("magic")
def empty_file() -> bytes:
    return b""


@attack("magic")
def three_bytes() -> bytes:
    return b"GGU"


@attack("magic")
def another_format() -> bytes:
    return b"PK\x03\x04" + bytes(100)


@attack("header")
def nothing_after_the_magic() -> bytes:
    return b"GGUF"


@attack("version")
def version_one() -> GgufFile:
    return replace(tiny_llama(), version=1)


@attack("version")
def version_of_the_future() -> GgufFile:
    return replace(tiny_llama(), version=4)


@attack("version")
def big_endian() -> GgufFile:
    return replace(tiny_llama(), version=3 << 24)


# ---- counts (CVE-2024-23605: n_kv; CVE-2024-21836: n_tensors) ----------------------------------


@attack("n_kv")
def key_count_overflows_an_allocation() -> GgufFile:
    return replace(tiny_llama(), n_keys=(1 << 61) + 1)


@attack("n_kv")
def key_count_is_negative() -> GgufFile:
    return replace(tiny_llama(), n_keys=MAX64)


@attack("n_kv")
def more_keys_than_bytes() -> bytes:
    return raw_file(0, 4000, bytes(1000))


@attack("n_tensors")
def tensor_count_overflows_an_allocation() -> GgufFile:
    return replace(tiny_llama(), n_tensors=(1 << 60) + 1)


@attack("n_tensors")
def more_tensors_than_bytes() -> bytes:
    return raw_file(16000, 0, bytes(1000))


# ---- keys and values (CVE-2024-23496: string length; CVE-2024-21825: arrays) -------------------


@attack("key 0")
def key_length_overflows() -> bytes:
    return raw_file(0, 1, struct.pack("<Q", MAX64) + bytes(100))


@attack("key 0")
def key_longer_than_the_file() -> bytes:
    return raw_file(0, 1, struct.pack("<Q", 60_000) + bytes(100))


@attack("key 0")
def empty_key() -> bytes:
    return raw_file(0, 1, raw_key("", U32, struct.pack("<I", 1)))


@attack("key 0")
def key_with_a_nul() -> bytes:
    return raw_file(0, 1, raw_key("general\0.name", U32, struct.pack("<I", 1)))


@attack("key 0")
def key_that_is_not_utf8() -> bytes:
    return raw_file(0, 1, text(b"\xff\xfe") + struct.pack("<II", U32, 1))


@attack("a")
def the_same_key_twice() -> bytes:
    return raw_file(0, 2, 2 * raw_key("a", U32, struct.pack("<I", 1)))


@attack("a")
def unknown_value_type() -> bytes:
    return raw_file(0, 1, raw_key("a", 13, bytes(100)))


@attack("a")
def string_length_overflows() -> bytes:
    return raw_file(0, 1, raw_key("a", STRING, struct.pack("<Q", MAX64) + bytes(100)))


@attack("a")
def string_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", STRING, struct.pack("<Q", 101) + bytes(100)))


@attack("a")
def array_length_overflows_in_bytes() -> bytes:
    value = struct.pack("<IQ", U32, (1 << 62) + 1) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def array_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", U8, 101) + bytes(100)))


@attack("a")
def string_array_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", STRING, 1000) + bytes(100)))


@attack("a")
def string_in_an_array_overflows() -> bytes:
    value = struct.pack("<IQQ", STRING, 2, MAX64 - 7) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def array_of_arrays() -> bytes:
    value = struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def unknown_element_type() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", 99, 1) + bytes(100)))


# ---- alignment ---------------------------------------------------------------------------------


@attack("general.alignment")
def alignment_of_zero() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 0))


@attack("general.alignment")
def alignment_not_a_power_of_two() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 24))


@attack("general.alignment")
def alignment_overflows_the_padding() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 1 << 31))


@attack("general.alignment")
def alignment_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(STRING, "32"))


@attack("general.alignment")
def data_that_cannot_be_mapped() -> GgufFile:
    model = replace(tiny_llama().with_keys(general__alignment=(U32, 8)), alignment=8)
    while len(model.header()) % 32 in (0, *range(25, 32)):
        _, name = model.keys["general.name"]
        model = model.with_keys(general__name=(STRING, name + "x"))
    return model


# ---- tensors (CVE-2024-21802: shapes; CVE-2025-53630: sum of sizes; CVE-2026-7482: larger than
# the file) --------------------------------------------------------------------------------------


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


# ---- hyperparameters ---------------------------------------------------------------------------


@attack("general.architecture")
def no_architecture() -> GgufFile:
    return tiny_llama().with_keys(general__architecture=None)


@attack("general.architecture")
def unknown_architecture() -> GgufFile:
    return tiny_llama().with_keys(general__architecture=(STRING, "(unknown)"))


@attack("general.architecture")
def projector_as_a_model() -> GgufFile:
    return tiny_llama().with_keys(general__architecture=(STRING, "clip"))


@attack("llama.block_count")
def no_layers() -> GgufFile:
    return tiny_llama().with_keys(llama__block_count=(U32, 0))


@attack("llama.block_count")
def more_layers_than_fit_the_arrays() -> GgufFile:
    return tiny_llama().with_keys(llama__block_count=(U32, 513))


@attack("llama.attention.head_count")
def no_heads() -> GgufFile:
    return tiny_llama().with_keys(llama__attention__head_count=(U32, 0))


@attack("llama.attention.head_count_kv")
def heads_that_cannot_share_keys() -> GgufFile:
    return tiny_llama().with_keys(llama__attention__head_count_kv=(U32, 3))


@attack("llama.attention.head_count")
def head_counts_for_other_layers() -> GgufFile:
    return tiny_llama().with_keys(llama__attention__head_count=(ARRAY, Array(I32, [2, 2])))


@attack("llama.attention.value_length")
def values_of_another_size_than_keys() -> GgufFile:
    return tiny_llama().with_keys(llama__attention__value_length=(U32, 8))


@attack("llama.rope.dimension_count")
def odd_rope_dimensions() -> GgufFile:
    return tiny_llama().with_keys(llama__rope__dimension_count=(U32, 15))


@attack("llama.rope.scaling.type")
def unknown_rope_scaling() -> GgufFile:
    return tiny_llama().with_keys(llama__rope__scaling__type=(STRING, "spiral"))


@attack("llama.attention.layer_norm_rms_epsilon")
def epsilon_that_is_not_a_number() -> GgufFile:
    nan = float("nan")
    return tiny_llama().with_keys(llama__attention__layer_norm_rms_epsilon=(F32, nan))


@attack("llama.attention.layer_norm_rms_epsilon")
def negative_epsilon() -> GgufFile:
    return tiny_llama().with_keys(llama__attention__layer_norm_rms_epsilon=(F32, -1.0))


@attack("llama.nextn_predict_layers")
def every_layer_predicts_ahead() -> GgufFile:
    return tiny_llama().with_keys(llama__nextn_predict_layers=(U32, 1))


@attack("llama.pooling_type")
def unknown_pooling() -> GgufFile:
    return tiny_llama().with_keys(llama__pooling_type=(U32, 9))


@attack("llama.expert_used_count")
def experts_of_which_none_is_used() -> GgufFile:
    return tiny_moe().with_keys(llama__expert_used_count=(U32, 0))


@attack("llama.expert_used_count")
def more_experts_used_than_there_are() -> GgufFile:
    return tiny_moe().with_keys(llama__expert_used_count=(U32, 5))


@attack("llama.expert_count")
def more_experts_than_fit_the_arrays() -> GgufFile:
    return tiny_moe().with_keys(llama__expert_count=(U32, 1025))


@attack("llama.expert_group_count")
def expert_groups_of_unequal_size() -> GgufFile:
    return tiny_moe().with_keys(llama__expert_group_count=(U32, 3))


@attack("llama.expert_gating_func")
def unknown_expert_gating() -> GgufFile:
    return tiny_moe().with_keys(llama__expert_gating_func=(U32, 7))


@attack("mamba2.ssm.group_count")
def state_space_of_no_groups() -> GgufFile:
    return tiny_mamba2().with_keys(mamba2__ssm__group_count=(U32, 0))


@attack("mamba2.ssm.time_step_rank")
def state_space_heads_that_do_not_divide() -> GgufFile:
    return tiny_mamba2().with_keys(mamba2__ssm__time_step_rank=(U32, 5))


@attack("t5.attention.relative_buckets_count")
def no_relative_positions() -> GgufFile:
    return tiny_t5().with_keys(t5__attention__relative_buckets_count=(U32, 0))


@attack("t5.decoder_block_count")
def more_decoder_layers_than_layers() -> GgufFile:
    return tiny_t5().with_keys(t5__decoder_block_count=(U32, 2))


@attack("enc.blk.0.attn_rel_b.weight")
def relative_positions_without_their_table() -> GgufFile:
    model = tiny_t5()
    rest = [tensor for tensor in model.tensors if tensor.name != "enc.blk.0.attn_rel_b.weight"]
    return replace(model, tensors=rest)


@attack("llama.embedding_length_out")
def embeddings_wider_than_they_are() -> GgufFile:
    return tiny_llama().with_keys(llama__embedding_length_out=(U32, 255))


# ---- vocabulary (CVE-2025-49847: token length; llama.cpp #25739: duplicates) -------------------


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


# ---- splits ------------------------------------------------------------------------------------


@attack("split.count")
def one_of_many_parts_without_the_others() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U16, 65535), split__no=(U16, 0))


@attack("split.count")
def split_count_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U32, 3), split__no=(U32, 0))


# ---- chat templates (CVE-2026-115911: unbounded work) ------------------------------------------


def with_template(template: str) -> GgufFile:
    """The llama model with another chat template."""
    return tiny_llama().with_keys(tokenizer__chat_template=(STRING, template))


@attack("tokenizer.chat_template")
def template_of_a_megabyte() -> GgufFile:
    return with_template("x" * (1 << 20))


@attack("tokenizer.chat_template")
def template_nested_deeply() -> GgufFile:
    return with_template("{% if a %}" * 200 + "{% endif %}" * 200)


@attack("tokenizer.chat_template")
def template_of_parentheses() -> GgufFile:
    return with_template("{{ " + "(" * 10_000)


@attack("tokenizer.chat_template")
def template_of_negations() -> GgufFile:
    return with_template("{{ " + "not " * 10_000 + "a }}")


@attack("tokenizer.chat_template")
def template_of_a_long_sum() -> GgufFile:
    return with_template("{{ " + "a + " * 10_000 + "a }}")


@attack("tokenizer.chat_template")
def template_of_many_alternatives() -> GgufFile:
    return with_template("{% if a %}" + "{% elif b %}" * 500 + "{% endif %}")


@attack("tokenizer.chat_template")
def template_whose_tag_ends_in_a_string() -> GgufFile:
    return with_template('{{ "}}" + ' + "(" * 60_000)


@attack("tokenizer.chat_template")
def template_whose_tag_ends_in_a_comment() -> GgufFile:
    return with_template("{{ a {# }} #}{{" + "(" * 10_000)


@attack("tokenizer.chat_template")
def template_with_words_behind_digits() -> GgufFile:
    return with_template("{{ 1" + "if 1else 1" * 20_000 + "}}")


@attack("tokenizer.chat_template")
def template_of_blocks_that_seem_to_be_assignments() -> GgufFile:
    return with_template("{% set f(a=1) %}" * 500)


@attack("tokenizer.chat_template.79")
def templates_without_end() -> GgufFile:
    """Each of them of an allowed size."""
    template = "{{ a }}" * 7_500
    return tiny_llama().with_keys(
        **{f"tokenizer__chat_template__{n}": (STRING, template) for n in range(200)}
    )


@attack("general.description")
def text_of_wide_characters() -> GgufFile:
    """A character beyond ASCII makes all of them wider in memory."""
    return tiny_llama().with_keys(general__description=(STRING, "\U0001f600" + "x" * (5 << 20)))


@attack("tokenizer.chat_template.tool_use")
def second_template_nested_deeply() -> GgufFile:
    deep = "{{ " + "[" * 500 + "]" * 500 + " }}"
    return tiny_llama().with_keys(tokenizer__chat_template__tool_use=(STRING, deep))


def write_corpus(directory: Path) -> None:
    """Write every attack, and the models they are made from, into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, hostile in ATTACKS.items():
        (directory / f"{name}.gguf").write_bytes(hostile.build())
    for make in (tiny_llama, tiny_moe, tiny_mamba2, tiny_bert, tiny_t5):
        make().write(directory / f"{make.__name__}.gguf")


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
