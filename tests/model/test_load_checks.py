"""Loading: what is refused before it does harm, and what the memory will be."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner._core import Context, Model
from llama_runner.errors import (
    ClosedError,
    InvalidParameterError,
    LlamaError,
    LlamaSystemError,
    ModelLoadError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from llama_runner.loaders import MemoryEstimate, estimate_memory, read_gguf, validate_model
from llama_runner.loaders.estimate import fitting_n_ctx
from llama_runner.loading.isolated import probe
from llama_runner.params import ContextParams, ModelParams, RunnerOptions
from tests.fuzz.attacks import ATTACKS
from tests.gguf_files import I32, TENSOR_Q4_0, U16, U32, GgufFile
from tests.model.tiny_models import KINDS, write_model
from tests.unit.loaders.model_files import (
    tiny_bert,
    tiny_llama,
    tiny_mamba2,
    tiny_moe,
    tiny_t5,
)

N_CTX_TRAIN = 4096
SPLIT = {"split.count": (U16, 3), "split.tensors.count": (I32, 21)}


def small_llama() -> GgufFile:
    return tiny_llama(2).with_keys(llama__context_length=(U32, N_CTX_TRAIN))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_llama().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


# ---- validation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asserting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A well-formed file with a value on which one of llama.cpp's assertions fails."""
    file = small_llama().with_keys(llama__expert_used_count=(U32, 5))
    return file.write(tmp_path_factory.mktemp("asserting") / "asserting.gguf")


def test_values_that_fail_an_assertion_are_refused_by_default(asserting: Path) -> None:
    validate_model(asserting, "header")
    with pytest.raises(ModelValidationError) as caught:
        LlamaRunner(asserting)
    assert caught.value.field == "llama.expert_used_count"


@pytest.mark.parametrize("validate", ["full", "header"])
def test_a_file_that_is_cut_off_is_refused(tiny: Path, tmp_path: Path, validate: Any) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(ModelValidationError):
        LlamaRunner(cut, validate=validate)


def test_without_validation_the_word_is_llama_cpps(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(ModelLoadError) as caught:
        LlamaRunner(cut, validate=False)
    assert "not within the file bounds" in str(caught.value)


@pytest.mark.parametrize("validate", [True, 0, "deep", None])
def test_other_levels_are_refused(tiny: Path, validate: Any) -> None:
    with pytest.raises(InvalidParameterError, match="must be 'full', 'header' or False"):
        LlamaRunner(tiny, validate=validate)


@pytest.mark.parametrize("validate", ["full", "header"])
def test_a_file_without_weights_needs_vocab_only(tmp_path: Path, validate: Any) -> None:
    path = replace(small_llama(), tensors=[]).write(tmp_path / "vocabulary.gguf")
    message = r"vocabulary\.gguf' holds no weights; only vocab_only=True can open it$"
    for load in (
        lambda: LlamaRunner(path, validate=validate),
        lambda: LlamaRunner(path, validate=validate, isolated=True),
        lambda: estimate_memory(path),
        lambda: validate_model(path, "graph"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            load()
    with LlamaRunner(path, validate=validate, vocab_only=True) as runner:
        assert len(runner.tokenizer.tokenize("w0")) > 0


@pytest.mark.parametrize("load_mode", ["auto", "none", "mmap"])
def test_the_very_file_that_was_checked_is_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_mode: Any
) -> None:
    path = tmp_path / "swapped.gguf"
    path.write_bytes(tiny.read_bytes())
    estimate = fitting_n_ctx

    def swap(*arguments: Any) -> int:
        (tmp_path / "other").write_bytes(b"GGUF, but of no use")
        (tmp_path / "other").replace(path)
        return estimate(*arguments)

    monkeypatch.setattr("llama_runner.loaders.estimate.fitting_n_ctx", swap)
    with LlamaRunner(path, load_mode=load_mode) as swapped, LlamaRunner(tiny) as untouched:
        answers = [
            runner.generate_stateless("w0 w1", 8, temperature=0.0, ignore_eos=True).tokens
            for runner in (swapped, untouched)
        ]
    assert answers[0] == answers[1]


def test_an_open_file_is_loaded_from_its_start_and_stays_open(tiny: Path) -> None:
    with tiny.open("rb") as file:
        file.seek(100)
        for _ in range(2):
            with Model("named so", file=file) as model:
                assert model.n_layer == 2
                assert model.path == "named so"
        assert not file.closed


# ---- in a child process ------------------------------------------------------------------------


def test_a_native_crash_is_an_error_that_names_the_signal(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file is known that still ends the process; so the child is made to, as it starts.
    crash = "import os; os.write(2, b'some assertion failed\\n'); os.abort()"
    (tmp_path / "sitecustomize.py").write_text(crash)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelLoadError) as caught:
        LlamaRunner(tiny, isolated=True)
    assert "was ended by SIGABRT" in str(caught.value)
    assert "some assertion failed" in (caught.value.native or "")


@pytest.mark.parametrize("isolated", [True, False])
def test_a_failed_assertion_is_an_error_that_names_it(asserting: Path, isolated: bool) -> None:
    with pytest.raises(ModelLoadError) as caught:
        LlamaRunner(asserting, validate=False, isolated=isolated)
    assert "n_expert_used" in (caught.value.native or "")


def test_a_good_model_is_loaded_after_its_trial(tiny: Path) -> None:
    with LlamaRunner(tiny, isolated=True, n_ctx=256) as runner:
        assert len(runner.generate_stateless("a", 1, ignore_eos=True).tokens) == 1


def test_a_vocabulary_alone_is_tried_too(tiny: Path) -> None:
    with LlamaRunner(tiny, isolated=True, vocab_only=True) as runner:
        assert len(runner.tokenize("a b")) > 1


def test_an_error_found_in_the_trial_process_keeps_its_type(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="cannot load") as caught:
        LlamaRunner(broken, validate=False, isolated=True)
    assert "child" not in caught.value.message


def test_a_model_that_computes_nothing_is_not_loaded(tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken.gguf", broken=True)
    with pytest.raises(ModelLoadError, match="weights are broken"):
        LlamaRunner(broken, isolated=True)


def test_a_trial_that_takes_too_long_is_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_runner.loading.isolated._TIME_LIMIT", 0.01)
    with pytest.raises(ModelLoadError, match="did not finish in 0 s"):
        LlamaRunner(tiny, isolated=True)


def test_a_trial_that_wants_more_memory_than_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits what a process may allocate")
    file = tiny_llama(2).with_keys(llama__context_length=(U32, 2**22))
    path = file.write(tmp_path / "long.gguf")
    monkeypatch.setattr("llama_runner.loading.isolated.free_memory", lambda: 300_000_000)
    with LlamaRunner(path, isolated=True, n_ctx=256):
        pass
    with pytest.raises(OutOfMemoryError, match=r"cannot create a context of 2097152 tokens"):
        LlamaRunner(path, isolated=True, n_ctx=2**21)


def test_a_trial_that_gets_no_memory_at_all(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, an import or llama.cpp finds none first; where that is small, ggml aborts."""
    if sys.platform != "linux":
        pytest.skip("only Linux limits what a process may allocate")
    monkeypatch.setattr("llama_runner.loading.isolated.free_memory", lambda: 0)
    with pytest.raises((OutOfMemoryError, ModelLoadError)):
        LlamaRunner(tiny, isolated=True, n_ctx=256)


def test_a_trial_needs_a_python(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (None, ""):
        monkeypatch.setattr(sys, "executable", missing)
        with pytest.raises(LlamaSystemError, match=r"sys\.executable"):
            LlamaRunner(tiny, isolated=True)


def test_the_time_for_a_trial_is_that_for_all_parts_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk reads 20 MB in a second, and a minute is always given."""
    parts = [tmp_path / f"large-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        with part.open("wb") as file:
            file.truncate(2_000_000_000)

    def never_ends(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("subprocess.run", never_ends)
    with pytest.raises(ModelLoadError, match="did not finish in 360 s"):
        probe(parts[0], None, ModelParams(), ContextParams())


# ---- the weights -------------------------------------------------------------------------------


def test_broken_weights_are_found_on_request(tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(small_llama().to_bytes()[:-4] + struct.pack("<f", float("nan")))
    LlamaRunner(path).close()
    with pytest.raises(ModelLoadError, match=r"fetch the file again.*'blk\.1\.ffn_down\.weight'"):
        LlamaRunner(path, check_tensors=True)


def test_sound_weights_pass_the_check(tiny: Path) -> None:
    LlamaRunner(tiny, check_tensors=True).close()


# ---- split models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("split")
    whole = small_llama()
    paths = []
    for number, tensors in enumerate((whole.tensors[:3], whole.tensors[3:9], whole.tensors[9:])):
        keys = {**SPLIT, "split.no": (U16, number), **(whole.keys if number == 0 else {})}
        path = folder / f"tiny-{number + 1:05}-of-00003.gguf"
        paths.append(GgufFile(keys=keys, tensors=tensors).write(path))
    return paths


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_split_model_loads_from_any_part(tiny: Path, parts: list[Path], number: int) -> None:
    with LlamaRunner(tiny) as whole, LlamaRunner(parts[number]) as split:
        answers = [
            runner.generate_stateless("w0 w1", 8, temperature=0.0, ignore_eos=True).text
            for runner in (whole, split)
        ]
    assert answers[0] == answers[1]
    assert estimate_memory(parts[number]) == estimate_memory(tiny)


def test_a_missing_part_is_named(parts: list[Path], tmp_path: Path) -> None:
    for part in parts[:2]:
        (tmp_path / part.name).write_bytes(part.read_bytes())
    with pytest.raises(ModelNotFoundError, match=parts[2].name):
        LlamaRunner(tmp_path / parts[0].name)


@pytest.mark.parametrize("progress", [3, "x", object()])
def test_a_callback_that_cannot_be_called_is_refused_before_loading(
    tiny: Path, progress: Any
) -> None:
    with pytest.raises(InvalidParameterError, match="progress="):
        LlamaRunner(tiny, progress=progress)


@pytest.mark.parametrize("model", [None, 3, b"x", "x" * 300, "", "a\0b", "~nouser/x.gguf"])
def test_a_runner_refuses_a_value_that_is_not_a_model(model: Any) -> None:
    with pytest.raises(LlamaError) as caught:
        LlamaRunner(model)
    assert "\n" not in str(caught.value)


# ---- memory ------------------------------------------------------------------------------------


def measured(path: Path, vocabulary: int, n_ctx: int, **options: Any) -> MemoryEstimate:
    """What a context says of itself when it is there; it says nothing of the vocabulary."""
    model_options = {"n_gpu_layers": options.pop("n_gpu_layers", -1)}
    with Model(path, **model_options) as model, Context(model, n_ctx=n_ctx, **options) as context:
        return MemoryEstimate(
            context.weights_bytes,
            context.kv_bytes,
            context.compute_bytes,
            vocabulary,
            context.host_bytes + vocabulary,
        )


@pytest.mark.parametrize("kind", [*KINDS, "mixture", "other state"])
@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 512, "n_seq_max": 1},
        {"n_ctx": 4096, "n_seq_max": 8, "kv_type": "f32"},
        {"n_ctx": 2048, "n_seq_max": 64, "kv_type": "bf16", "n_gpu_layers": 0},
    ],
)
def test_the_estimate_is_what_is_measured(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "tiny.gguf"
    if kind in KINDS:
        write_model(path, kind)
    else:
        {"mixture": tiny_moe, "other state": tiny_mamba2}[kind]().write(path)
    estimate = estimate_memory(path, **options)
    assert estimate == measured(path, estimate.vocabulary, **options)


@pytest.mark.parametrize("model", [tiny_bert, tiny_t5])
def test_there_is_no_estimate_of_what_cannot_run(
    tmp_path: Path, model: Callable[[], GgufFile]
) -> None:
    with pytest.raises(UnsupportedModelError):
        estimate_memory(model().write(tmp_path / "tiny.gguf"))


def test_the_estimate_of_real_weights(model_path: Path) -> None:
    estimate = estimate_memory(model_path, n_ctx=1024, n_seq_max=2, kv_type="q8_0")
    vocabulary = estimate.vocabulary
    assert estimate == measured(model_path, vocabulary, n_ctx=1024, n_seq_max=2, kv_type="q8_0")
    in_file = read_gguf(model_path).weight_bytes
    # In the layout of a CPU with matrix instructions (AMX), weights are larger than in the file.
    assert in_file * 0.99 < estimate.weights < in_file * 1.5
    as_in_file = estimate_memory(model_path, n_ctx=1024, repack=False).weights
    assert as_in_file == pytest.approx(in_file, rel=0.01)


GROWTH = """
import re, sys
import numpy, llama_runner.loaders.estimate
from llama_runner import LlamaRunner, validate_model

def resident():
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

validate_model(sys.argv[1])  # what it imports is Python's, not the model's
before = resident()
runner = LlamaRunner(sys.argv[1], n_ctx=int(sys.argv[2]), load_mode="none")
runner.generate_stateless("word " * 1000, 4, temperature=0)
print(resident() - before)
"""


@pytest.mark.parametrize("n_ctx", [2048, 8192])
def test_a_process_grows_by_what_was_estimated(model_path: Path, n_ctx: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", GROWTH, str(model_path), str(n_ctx)],
        capture_output=True,
        text=True,
        check=True,
    )
    estimate = estimate_memory(model_path, n_ctx=n_ctx, load_mode="none")
    assert int(child.stdout) == pytest.approx(estimate.total, rel=0.05)


@pytest.mark.parametrize("name", ATTACKS)
def test_there_is_no_estimate_of_what_would_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / "attack.gguf"
    path.write_bytes(ATTACKS[name].build())
    with pytest.raises(ModelValidationError):
        estimate_memory(path)


def test_the_estimate_has_the_defaults_of_the_runner(tmp_path: Path) -> None:
    short = tiny_llama(2).with_keys(llama__context_length=(U32, 512)).write(tmp_path / "short.gguf")
    assert estimate_memory(short) == estimate_memory(short, n_ctx=512)
    assert estimate_memory(short, n_ctx="auto") == estimate_memory(short, n_ctx=512)
    assert estimate_memory(short, n_ctx=2048).kv == 4 * estimate_memory(short).kv
    small = estimate_memory(short, n_ubatch=32, kv_layout="streams", flash_attention=False)
    assert small.compute < estimate_memory(short, flash_attention=False).compute
    with pytest.raises(InvalidParameterError, match="did you mean 'n_ctx'"):
        estimate_memory(short, n_ctxx=512)  # type: ignore[call-arg]


def test_an_estimate_of_a_described_model(tiny: Path, tmp_path: Path) -> None:
    description = tmp_path / "tiny.json"
    description.write_text(json.dumps({"name": "Tiny", "path": str(tiny), "architecture": "qwen2"}))
    with pytest.raises(ModelMetadataError, match="contradicts"):
        estimate_memory(description)


def test_weights_that_the_processor_rearranges_count_once(tmp_path: Path) -> None:
    file = small_llama()
    file.tensors = [
        replace(tensor, type_id=TENSOR_Q4_0, nbytes=tensor.size() // 4 // 32 * 18)
        if len(tensor.shape) == 2
        else tensor
        for tensor in file.tensors
    ]
    path = file.write(tmp_path / "q4.gguf")
    estimate = estimate_memory(path, n_ctx=256)
    assert estimate == measured(path, estimate.vocabulary, n_ctx=256, n_seq_max=4)
    weights = read_gguf(path).weight_bytes
    assert estimate.weights == pytest.approx(weights, rel=0.05)


def test_an_absurd_context_is_estimated_without_making_it(tiny: Path) -> None:
    one, two = (estimate_memory(tiny, n_ctx=n).kv for n in (1 << 29, 1 << 30))
    assert two == 2 * one == 1024 * estimate_memory(tiny, n_ctx=1 << 20).kv


def test_a_context_without_allocation_is_closed(tiny: Path) -> None:
    with Model(tiny, no_alloc=True) as model:
        context = Context(model, n_ctx=512)
        assert context.closed
        with pytest.raises(ClosedError):
            context.new_sequence()


def limit_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("llama_runner.loaders.estimate.room", lambda: limit)


def test_a_context_that_cannot_fit_is_refused_with_one_that_would(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = estimate_memory(tiny, n_ctx=2048).host
    limit_memory(monkeypatch, limit)
    LlamaRunner(tiny, n_ctx=2048).close()
    with pytest.raises(OutOfMemoryError) as caught:
        LlamaRunner(tiny, n_ctx=4096)
    assert caught.value.field == "n_ctx"
    advised = int(str(caught.value).partition(": n_ctx=")[2].split()[0])
    assert 256 <= advised < 2048
    assert estimate_memory(tiny, n_ctx=advised).host <= limit
    LlamaRunner(tiny, n_ctx=advised).close()


def test_a_context_must_fit_the_free_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = estimate_memory(tiny, n_ctx=2048).host
    monkeypatch.setattr("llama_runner.loaders.estimate.free_memory", lambda: int(needed * 1.1))
    LlamaRunner(tiny, n_ctx=2048).close()
    monkeypatch.setattr("llama_runner.loaders.estimate.free_memory", lambda: int(needed * 1.02))
    with pytest.raises(OutOfMemoryError, match="would fit"):  # nothing would be left
        LlamaRunner(tiny, n_ctx=2048)


def test_a_context_beyond_the_training_is_said_once(tiny: Path) -> None:
    twice: Any = {"n_ctx": 2 * N_CTX_TRAIN}
    with pytest.warns(UserWarning, match=r"n_ctx=8192: .* trained with at most 4,096") as caught:
        LlamaRunner(tiny, **twice).close()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlamaRunner(tiny, n_ctx=N_CTX_TRAIN).close()
        LlamaRunner(tiny, n_ctx=0).close()
        LlamaRunner(tiny, **twice, rope_freq_scale=0.5).close()
        LlamaRunner(tiny, **twice, kv_layout="streams", n_seq_max=2).close()
        with pytest.raises(UserWarning):
            LlamaRunner(tiny, **twice)  # and nothing is left open


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"])
@pytest.mark.parametrize("n_ctx", [512, "auto"])
def test_a_kv_type_for_which_heads_are_too_small_is_refused(
    tmp_path: Path, n_ctx: Any, kv_type: Any
) -> None:
    """Numbers are quantized 32 at a time, and these heads have 8."""
    path = write_model(tmp_path / "small_heads.gguf")
    for call in (LlamaRunner, estimate_memory):
        with pytest.raises(
            InvalidParameterError, match=rf"kv_type='{kv_type}': .* have 8"
        ) as caught:
            call(path, n_ctx=n_ctx, kv_type=kv_type)
        assert caught.value.field == "kv_type"


@pytest.mark.parametrize(("keys", "values", "named"), [(32, 16, "values"), (16, 32, "keys")])
def test_a_kv_type_is_for_values_as_well_as_for_keys(
    tmp_path: Path, keys: int, values: int, named: str
) -> None:
    model = tiny_llama().with_keys(
        llama__attention__key_length=(U32, keys),
        llama__attention__value_length=(U32, values),
        llama__rope__dimension_count=(U32, keys),
    )
    for name, shape in {
        "attn_q": (32, 2 * keys),
        "attn_k": (32, keys),
        "attn_v": (32, values),
        "attn_output": (2 * keys, 32),
    }.items():
        model = model.with_tensor(f"blk.0.{name}.weight", shape=shape)
    path = model.write(tmp_path / "uneven.gguf")
    problem = f"the {named} of this model's heads have 16"
    with Model(path) as loaded, pytest.raises(InvalidParameterError, match=problem):
        Context(loaded, n_ctx=256, kv_type="q8_0")


def test_an_absurd_context_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 8 << 30)
    with pytest.raises(OutOfMemoryError, match=rf"n_ctx={N_CTX_TRAIN} would fit"):
        LlamaRunner(tiny, n_ctx=2**31 - 1)


def test_intermediate_results_that_cannot_fit_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: RunnerOptions = {"n_ctx": 4096, "n_batch": 4096, "n_ubatch": 4096}
    limit_memory(monkeypatch, 20_000_000)
    for more in (options, options | {"n_ubatch": 512}):
        unfused: RunnerOptions = {**more, "flash_attention": False}
        assert estimate_memory(tiny, **unfused).host > 20_000_000
        with pytest.raises(OutOfMemoryError, match="would fit"):
            LlamaRunner(tiny, **unfused)


def test_the_least_context_that_fits_is_not_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing leaves a tenth of the memory free, but 256 tokens fit."""
    limit_memory(monkeypatch, estimate_memory(tiny, n_ctx=256).host)
    with LlamaRunner(tiny, n_ctx="auto") as runner:
        assert runner.get_context_info().n_ctx == 256
    with pytest.raises(OutOfMemoryError, match=r"n_ctx=4096 takes .*: n_ctx=256 would fit"):
        LlamaRunner(tiny, n_ctx=4096)


@pytest.mark.parametrize("n_ctx", [256, "auto"])
def test_weights_that_cannot_fit_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, n_ctx: Any
) -> None:
    limit_memory(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="no n_ctx would fit"):
        LlamaRunner(tiny, n_ctx=n_ctx)


def test_auto_is_the_trained_length_where_there_is_room(tiny: Path) -> None:
    with LlamaRunner(tiny, n_ctx="auto") as runner:
        assert runner.get_context_info().n_ctx == N_CTX_TRAIN


def test_auto_is_the_largest_that_fits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, estimate_memory(tiny, n_ctx=2048).host)
    with LlamaRunner(tiny, n_ctx="auto") as runner:
        chosen = runner.get_context_info().n_ctx
    room = 0.9 * estimate_memory(tiny, n_ctx=2048).host
    assert estimate_memory(tiny, n_ctx=chosen).host <= room
    assert estimate_memory(tiny, n_ctx=chosen + 256).host > room
