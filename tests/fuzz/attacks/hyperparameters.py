"""Attacks with the numbers that describe the layers: divisors of zero, tables too small."""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.attacks.registry import attack
from tests.gguf_files import ARRAY, F32, I32, STRING, U32, Array, GgufFile
from tests.unit.loaders.model_files import tiny_llama, tiny_mamba2, tiny_moe, tiny_t5


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
