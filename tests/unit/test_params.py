"""Parameters refuse what cannot work, in one line that says what would."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner.errors import InvalidParameterError
from llama_runner.params import (
    ContextParams,
    GenerationParams,
    ModelParams,
    Parameters,
    generation_params,
)

ALL = (GenerationParams, ModelParams, ContextParams)
STOP = "a non-empty string, or a list or tuple of at most 16 of them"


def refusal(kind: type[Parameters], **values: Any) -> InvalidParameterError:
    with pytest.raises(InvalidParameterError) as caught:
        kind(**values)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_valid_and_immutable(kind: type[Parameters]) -> None:
    params = kind()
    name = next(iter(kind.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(params, name, getattr(params, name))
    assert params == kind()
    assert hash(params) == hash(kind())
    assert pickle.loads(pickle.dumps(params)) == params


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": math.nan}, "temperature=nan: must be a number between 0 and 100"),
        ({"temperature": math.inf}, "temperature=inf: must be a number between 0 and 100"),
        ({"temperature": -0.1}, "temperature=-0.1: must be a number between 0 and 100"),
        ({"temperature": "hot"}, "temperature='hot': must be a number between 0 and 100"),
        ({"max_tokens": 0}, "max_tokens=0: must be an integer between 1 and 2147483647 or -1"),
        ({"max_tokens": 2.0}, "max_tokens=2.0: must be an integer between 1 and 2147483647 or -1"),
        ({"top_k": True}, "top_k=True: must be an integer between 0 and 2147483647"),
        ({"top_p": 0}, "top_p=0: must be a number above 0 and at most 1"),
        ({"seed": -1}, "seed=-1: must be an integer between 0 and 4294967294 or None"),
        ({"ignore_eos": 1}, "ignore_eos=1: must be True or False"),
        ({"stop": ("ok", "")}, f"stop=('ok', ''): must be {STOP}"),
        ({"stop": b"no"}, f"stop=b'no': must be {STOP}"),
        ({"stop": {"a"}}, f"stop={{'a'}}: must be {STOP}"),
        ({"temprature": 1}, "unknown parameter 'temprature' (did you mean 'temperature'?)"),
        ({"top_p": 2, "min_p": 3}, "top_p=2: must be a number above 0 and at most 1; "
         "min_p=3: must be a number between 0 and 1"),
    ],
)  # fmt: skip
def test_refusal_names_field_value_and_range(values: dict[str, Any], message: str) -> None:
    error = refusal(GenerationParams, **values)
    assert str(error) == message
    assert error.field == next(iter(values))


def test_the_seed_that_llama_cpp_takes_for_random_is_refused() -> None:
    assert refusal(GenerationParams, seed=0xFFFFFFFF).field == "seed"


def test_unknown_name_without_a_lookalike_lists_the_known_ones() -> None:
    assert "known are max_tokens, temperature" in str(refusal(GenerationParams, zzz=1))


def test_long_and_multiline_values_stay_one_short_line() -> None:
    assert len(str(refusal(GenerationParams, temperature="x\n" * 10_000))) < 120
    assert "must be a number" in str(refusal(GenerationParams, temperature=np.zeros((3, 3))))


@pytest.mark.parametrize("kind", ALL)
def test_every_field_can_say_what_it_accepts(kind: type[Parameters]) -> None:
    for name in kind.model_fields:
        assert f"{name}=" in str(refusal(kind, **{name: object()}))


def test_numpy_scalars_are_the_numbers_they_stand_for() -> None:
    scalars = {"max_tokens": np.int64(7), "temperature": np.float64(0.5), "ignore_eos": np.True_}
    params = GenerationParams(**scalars)  # type: ignore[arg-type]
    assert (params.max_tokens, params.temperature, params.ignore_eos) == (7, 0.5, True)
    assert [type(params.max_tokens), type(params.temperature)] == [int, float]
    assert refusal(GenerationParams, max_tokens=np.bool_(True)).field == "max_tokens"
    assert refusal(GenerationParams, max_tokens=np.float32(2)).field == "max_tokens"


def test_stop_takes_one_string_or_several() -> None:
    assert GenerationParams(stop="a").stop == ("a",)  # type: ignore[arg-type]
    assert GenerationParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_copies_are_checked_too() -> None:
    params = GenerationParams(top_k=5)
    assert params.merged() is params
    assert params.merged(top_p=0.5) == GenerationParams(top_k=5, top_p=0.5)
    assert params.model_copy(update={"top_k": 6}).top_k == 6
    assert copy.deepcopy(params) == params
    for change in (params.merged, lambda **update: params.model_copy(update=update)):
        with pytest.raises(InvalidParameterError, match="top_k=-1"):
            change(top_k=-1)


@given(
    st.dictionaries(
        st.sampled_from([*GenerationParams.model_fields, "nonsense"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
        | st.lists(st.text(max_size=2), max_size=3),
        max_size=4,
    )
)  # fmt: skip
def test_anything_is_either_taken_or_refused_in_one_line(values: dict[str, Any]) -> None:
    try:
        params = GenerationParams(**values)
    except InvalidParameterError as error:
        refused = error
    else:
        assert 0 <= params.temperature <= 100
        assert 0 < params.top_p <= 1
        assert params.max_tokens >= 1
        assert "" not in params.stop
        return
    assert refused.field in values
    assert "\n" not in str(refused)


def test_a_call_lies_over_its_params_and_these_over_the_defaults() -> None:
    defaults = GenerationParams(temperature=0.2, top_k=3)
    params = GenerationParams(max_tokens=5, temperature=0.8)

    def chosen(max_tokens: int | None, params: GenerationParams | None, **given: Any) -> Any:
        return generation_params(max_tokens, params, given, defaults)  # type: ignore[arg-type]

    assert chosen(None, None) == defaults
    assert chosen(7, None) == defaults.merged(max_tokens=7)
    # That 0.8 is what holds where nobody says anything does not make it nothing.
    assert chosen(None, params) == GenerationParams(max_tokens=5, temperature=0.8, top_k=3)
    assert chosen(7, params).max_tokens == 7
    assert chosen(None, params, top_k=9, temperature=0.0) == GenerationParams(
        max_tokens=5, temperature=0.0, top_k=9
    )
    with pytest.raises(InvalidParameterError, match="max_tokens=0"):
        chosen(0, params)


def test_ubatch_follows_a_smaller_batch_unless_it_is_given() -> None:
    assert ContextParams(n_batch=256).n_ubatch == 256
    assert ContextParams(n_batch=1024).n_ubatch == 512
    assert ContextParams().merged(n_batch=64).n_ubatch == 64
    assert str(refusal(ContextParams, n_batch=256, n_ubatch=512)) == (
        "n_ubatch=512: must not exceed n_batch (256)"
    )
    assert refusal(ContextParams, n_batch=0).field == "n_batch"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"n_ctx": 3}, "n_ctx"),
        ({"n_batch": 8, "n_seq_max": 9}, "n_batch"),
        ({"n_seq_max": 257}, "n_seq_max"),
        ({"n_seq_max": 0}, "n_seq_max"),
        ({"kv_type": "q8_0", "flash_attention": False}, "kv_type"),
        ({"gc_threshold": 0}, "gc_threshold"),
        ({"rope_freq_base": math.inf}, "rope_freq_base"),
        ({"n_threads": 0}, "n_threads"),
    ],
)
def test_what_llama_cpp_would_abort_on_is_refused(values: dict[str, Any], field: str) -> None:
    assert refusal(ContextParams, **values).field == field


def test_adapters_are_a_mapping() -> None:
    params = GenerationParams(lora={"b": 1, "a": 0.5})
    assert params.lora == (("a", 0.5), ("b", 1.0))
    assert params.merged(seed=1).lora == params.lora
    assert hash(params) == hash(GenerationParams(lora={"a": 0.5, "b": 1.0}))


def test_context_is_a_number_or_auto() -> None:
    assert ContextParams(n_ctx="auto").n_ctx == "auto"
    assert str(refusal(ContextParams, n_ctx="most")) == (
        "n_ctx='most': must be an integer between 0 and 2147483647 or 'auto'"
    )


def test_the_length_of_the_context_depends_on_what_was_given() -> None:
    assert ContextParams(n_ctx=8192).tokens(2048) == 8192
    assert ContextParams(n_ctx=0).tokens(2048) == 2048
    assert ContextParams().tokens(2048) == 2048
    assert ContextParams().tokens(8192) == 4096
    assert ContextParams(n_ctx="auto").tokens(2048) is None


def test_the_parking_directory_is_a_path_of_either_kind(tmp_path: Path) -> None:
    params = ContextParams(parking_dir=tmp_path)  # type: ignore[arg-type]
    assert params == ContextParams(parking_dir=str(tmp_path))
    assert refusal(ContextParams, parking_dir=tmp_path / "missing").field == "parking_dir"
    # Linux makes no files there, whoever asks.
    refused = refusal(ContextParams, parking_dir="/proc", parking_disk=2**20)
    assert str(refused).startswith("parking_dir='/proc': cannot create a file there")
    assert str(refusal(ContextParams, parking_dir=3)) == "parking_dir=3: must be a path or None"


def test_zero_context_means_the_models_own_length() -> None:
    assert ContextParams(n_ctx=0, n_seq_max=256).n_ctx == 0
