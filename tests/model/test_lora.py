"""LoRA adapters: they compute what merged weights would, for the requests that ask for them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llama_runner import GenerationParams, LlamaRunner
from llama_runner._core import Context, Model
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextFullError,
    InvalidParameterError,
    LlamaError,
    ModelNotFoundError,
    ModelValidationError,
    SnapshotError,
    UnsupportedModelError,
)
from llama_runner.loaders import validate_lora
from tests import inside
from tests.gguf_files import ARRAY, U32, Array, GgufFile, Tensor, typed
from tests.model.tiny_models import ARCHITECTURES, N_EMBD, write_model

CHANGED = ("blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight")
RANK, ALPHA = 4, 8.0
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
PROMPT = "the a abc"

Halves = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return write_model(folder / "base.gguf")


@pytest.fixture(scope="module")
def halves(base: Path) -> Halves:
    """Random matrices A and B for each weight that is changed."""
    random = np.random.default_rng(4)
    found = {}
    for tensor in gguf.GGUFReader(base).tensors:
        if tensor.name in CHANGED:
            n_in, n_out = (int(n) for n in tensor.shape)
            down = random.standard_normal((RANK, n_in)).astype(np.float32) / 4
            up = random.standard_normal((n_out, RANK)).astype(np.float32) / 4
            found[tensor.name] = (down, up)
    return found


def write_adapter(path: Path, halves: Halves, architecture: str = "llama", **keys: Any) -> Path:
    values = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(ALPHA),
    }
    arrays = {key: (ARRAY, Array(U32, list(value))) for key, value in keys.items()}
    tensors = [
        Tensor.of(f"{name}.{suffix}", half)
        for name, pair in halves.items()
        for suffix, half in zip(("lora_a", "lora_b"), pair, strict=True)
    ]
    return GgufFile(keys=typed(values), tensors=tensors).with_keys(**arrays).write(path)


@pytest.fixture(scope="module")
def runner_of_base(base: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(base, n_ctx=256) as runner:
        yield runner


@pytest.fixture(scope="module")
def adapter(folder: Path, halves: Halves) -> Path:
    return write_adapter(folder / "pirate.gguf", halves)


@pytest.fixture
def tuned(base: Path, adapter: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(base, n_ctx=1024, n_threads=1) as runner:
        assert runner.load_lora(adapter) == "pirate"
        yield runner


def merged(base: Path, target: Path, halves: Halves, scale: float) -> Path:
    """The base with the adapter worked into its weights."""
    shutil.copy(base, target)
    with target.open("r+b") as file:
        for tensor in gguf.GGUFReader(base).tensors:
            if tensor.name in halves:
                down, up = halves[tensor.name]
                weights = tensor.data + np.float32(scale * ALPHA / RANK) * (up @ down)
                file.seek(tensor.data_offset)
                file.write(weights.astype(np.float32).tobytes())
    return target


def answer(runner: LlamaRunner, **options: Any) -> tuple[int, ...]:
    return runner.generate_stateless(PROMPT, 24, **GREEDY, **options).tokens


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_it_computes_what_merged_weights_do(
    tuned: LlamaRunner, base: Path, tmp_path: Path, halves: Halves, scale: float
) -> None:
    with LlamaRunner(merged(base, tmp_path / "merged.gguf", halves, scale), n_threads=1) as other:
        wanted = answer(other)
    assert answer(tuned, lora={"pirate": scale}) == wanted
    assert answer(tuned) != wanted


def test_a_scale_of_zero_is_no_adapter(tuned: LlamaRunner) -> None:
    assert answer(tuned, lora={"pirate": 0}) == answer(tuned)


def test_requests_of_many_threads_each_get_their_own(tuned: LlamaRunner) -> None:
    wishes: list[dict[str, float]] = [{}, {"pirate": 1}, {"pirate": -0.5}] * 4
    alone = [answer(tuned, lora=wish) for wish in wishes]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(len(wishes)) as pool:
        together = list(pool.map(lambda wish: answer(tuned, lora=wish), wishes))
    assert together == alone


def test_a_stream_at_rest_does_not_hold_up_others(tuned: LlamaRunner) -> None:
    wanted = answer(tuned, lora={"pirate": 1})
    plain = answer(tuned)
    with tuned.stream_stateless(PROMPT, 24, lora={"pirate": 1}, **GREEDY) as stream:
        begun = next(stream).tokens
        assert answer(tuned) == plain
        assert (*begun, *(token for chunk in stream for token in chunk.tokens)) == wanted


def test_a_conversation_is_computed_again_with_other_adapters(tuned: LlamaRunner) -> None:
    tuned.generate_stateful("a", 4, **GREEDY)
    same = tuned.generate_stateful("b", 4, **GREEDY)
    other = tuned.generate_stateful("c", 4, lora={"pirate": 1}, **GREEDY)
    still = tuned.generate_stateful("a", 4, lora={"pirate": 1}, **GREEDY)
    assert same.receipt.reused > 0
    assert other.receipt.reused == 0
    assert still.receipt.reused > 0


def test_cells_are_not_taken_from_who_computes_with_others(tuned: LlamaRunner) -> None:
    prompt = "the a abc " * 30
    with_adapter: dict[str, Any] = {"lora": {"pirate": 1}, **GREEDY}
    wanted = tuned.generate_stateless(prompt, 8, **with_adapter)
    tuned.generate_stateful(prompt, 1, **GREEDY)
    assert tuned.generate_stateless(prompt, 8, **GREEDY).receipt.shared > 0
    found = tuned.generate_stateless(prompt, 8, **with_adapter)
    assert found.receipt.shared == 0
    assert found.tokens == wanted.tokens


def test_a_fork_goes_on_with_the_adapters_of_what_it_was(tuned: LlamaRunner) -> None:
    params = GenerationParams(lora={"pirate": 1}, **GREEDY)
    session = tuned.session()
    session.generate(PROMPT, 8, params)
    child = session.fork()
    forked = child.generate("a", 8, params)
    assert forked.receipt.recomputed < 4
    assert forked.tokens == session.generate("a", 8, params).tokens


def test_a_snapshot_knows_its_adapters(
    tuned: LlamaRunner, base: Path, halves: Halves, tmp_path: Path
) -> None:
    params = GenerationParams(lora={"pirate": 0.5}, **GREEDY)
    session, copy = tuned.session(), tuned.session()
    session.generate(PROMPT, 8, params)
    data = session.snapshot()
    copy.restore(data)
    found, expected = copy.generate("a", 8, params), session.generate("a", 8, params)
    assert found.tokens == expected.tokens
    assert found.receipt.recomputed == expected.receipt.recomputed
    with LlamaRunner(base, n_threads=1) as other:
        foreign = other.session()
        with pytest.raises(SnapshotError, match=r"needs the LoRA adapter 'pirate'"):
            foreign.restore(data)
        others = {name: (down, 2 * up) for name, (down, up) in halves.items()}
        other.load_lora(write_adapter(tmp_path / "pirate.gguf", others))
        with pytest.raises(SnapshotError, match="another LoRA adapter"):
            foreign.restore(data)


def test_the_program_may_change_its_current_directory(
    folder: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with LlamaRunner(base.name, n_ctx=256, n_threads=1) as runner:
        name = runner.load_lora(adapter.name)
        session = runner.session()
        session.generate(PROMPT, 4, lora={name: 1}, **GREEDY)
        monkeypatch.chdir("/")
        session.restore(session.snapshot())
        assert session.generate("a", 4, lora={name: 1}, **GREEDY).receipt.reused > 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "blk.0.attn_v.weight"),
        ("recurrent", "blk.0.ssm_in.weight"),
        ("hybrid", "blk.0.ssm_in.weight"),
    ],
)
def test_going_back_minds_what_the_cells_were_computed_with(
    tmp_path: Path, kind: str, name: str
) -> None:
    """A state that was computed with one adapter is not gone on from with another."""
    model = write_model(tmp_path / "base.gguf", kind)
    shapes = {t.name: t.shape for t in gguf.GGUFReader(model).tensors}
    n_out = int(shapes[name][1])
    random = np.random.default_rng(4)
    down = random.standard_normal((RANK, N_EMBD)).astype(np.float32)
    up = random.standard_normal((n_out, RANK)).astype(np.float32)
    path = write_adapter(
        tmp_path / "pirate.gguf", {name: (down, up)}, architecture=ARCHITECTURES[kind]
    )
    with LlamaRunner(model, n_ctx=512, n_threads=1, validate=False) as runner:
        runner.load_lora(path)
        session = runner.session()
        with_adapter = GenerationParams(lora={"pirate": 1.0}, **GREEDY)
        session.generate(PROMPT, 4, with_adapter)
        mark = session.mark()
        session.generate("b", 4, **GREEDY)
        session.rewind(mark)
        found = session.generate("c", 6, **GREEDY)
        fresh = runner.generate_stateless(
            inside.ledger(session)[: found.usage.prompt_tokens], 6, **GREEDY
        )
        assert found.tokens == fresh.tokens


def test_what_is_not_loaded_is_named_and_changes_nothing(tuned: LlamaRunner) -> None:
    tuned.generate_stateful("a", 4, **GREEDY)
    before = tuned.get_context_info()
    with pytest.raises(InvalidParameterError, match=r"no adapter 'cook' is loaded.*'pirate'"):
        tuned.generate_stateful("b", 4, lora={"cook": 1})
    assert tuned.get_context_info() == before


def test_a_call_that_raises_leaves_no_adapter_behind(tuned: LlamaRunner, base: Path) -> None:
    session = tuned.session()
    session.generate("a", 4, **GREEDY)
    session.pin(0)
    with pytest.raises(ContextFullError):
        session.generate("the a abc " * 50, 2000, lora={"pirate": 1}, **GREEDY)
    assert inside.sequence(session).adapters == ()
    with LlamaRunner(base, n_ctx=1024, n_threads=1) as other:  # which has no adapter
        copy = other.session()
        copy.restore(session.snapshot())
        assert copy.generate("b", 4, **GREEDY).tokens == session.generate("b", 4, **GREEDY).tokens


def test_what_is_not_loaded_is_named_before_room_is_made(base: Path) -> None:
    with LlamaRunner(base, n_ctx=256, n_threads=1) as runner:
        session = runner.session()
        for _ in range(4):
            session.generate("the a abc " * 4, 8, **GREEDY)
        before = session.info()
        with pytest.raises(InvalidParameterError, match="no adapter 'cook' is loaded"):
            session.generate("the a abc " * 8, 8, lora={"cook": 1}, **GREEDY)
        assert session.info() == before


def test_a_name_is_given_once(tuned: LlamaRunner, adapter: Path) -> None:
    with pytest.raises(InvalidParameterError, match="'pirate' already"):
        tuned.load_lora(adapter)
    assert tuned.load_lora(adapter, "second") == "second"


def test_files_that_do_not_fit_are_refused(
    tuned: LlamaRunner, base: Path, tmp_path: Path, halves: Halves
) -> None:
    with pytest.raises(ModelNotFoundError):
        tuned.load_lora(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFoundError, match=r"^no adapter file at 'none'$"):
        tuned.load_lora("none")
    with pytest.raises(ModelValidationError, match=r"general\.type"):
        tuned.load_lora(base)
    with pytest.raises(ModelValidationError, match="'mamba' models"):
        tuned.load_lora(write_adapter(tmp_path / "mamba.gguf", halves, "mamba"))
    keys = {"adapter__alora__invocation_tokens": [1, 2]}
    with pytest.raises(UnsupportedModelError, match="activated"):
        tuned.load_lora(write_adapter(tmp_path / "activated.gguf", halves, **keys))


@pytest.mark.parametrize("lora", [{"a": float("nan")}, {"a": 1000}, {1: 1.0}, "pirate"])
def test_a_lora_argument_of_another_form_is_refused(tuned: LlamaRunner, lora: Any) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        answer(tuned, lora=lora)
    assert caught.value.field == "lora"
    assert "a mapping of at most 16 names to numbers between -100 and 100" in str(caught.value)


def test_a_closed_runner_loads_no_adapter(base: Path, adapter: Path) -> None:
    runner = LlamaRunner(base)
    runner.close()
    with pytest.raises(ClosedError):
        runner.load_lora(adapter)


# ---- what is given -----------------------------------------------------------------------------


def test_a_context_keeps_the_weights_that_adapters_are_for(base: Path, adapter: Path) -> None:
    model = Model(base)
    with Context(model, n_ctx=256) as context, adapter.open("rb") as file:
        model.close()
        context.load_adapter("pirate", adapter, file)
        assert list(context.adapter_fingerprints) == ["pirate"]


def test_the_model_file_may_be_gone_by_then(tmp_path: Path, base: Path, adapter: Path) -> None:
    moved = Path(shutil.copy(base, tmp_path / "base.gguf"))
    with LlamaRunner(moved, n_ctx=256) as runner:
        moved.rename(tmp_path / "elsewhere.gguf")
        name = runner.load_lora(adapter)
        assert runner.generate_stateless(PROMPT, 4, lora={name: 1.0}, **GREEDY).text


def test_the_file_that_was_checked_is_the_one_that_is_loaded(
    tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copy(adapter, tmp_path / "adapter.gguf"))

    def swapped(file: Any, header: Any) -> Any:
        checked = validate_lora(file, header)
        place.unlink()
        place.write_bytes(b"another")
        return checked

    monkeypatch.setattr("llama_runner.loaders.validate_lora", swapped, raising=False)
    with LlamaRunner(base, n_ctx=256) as runner:
        assert runner.load_lora(place) == "adapter"


def test_without_checks_of_the_model_adapters_are_still_checked(base: Path, adapter: Path) -> None:
    with LlamaRunner(base, n_ctx=256, validate=False) as runner:
        assert runner.load_lora(adapter) == "pirate"
        with pytest.raises(ModelValidationError, match=r"is not a LoRA adapter: general\.type is"):
            runner.load_lora(base)


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b", "x" * 300, "/dev/null"])
def test_a_value_that_is_not_a_path_is_refused(runner_of_base: LlamaRunner, path: Any) -> None:
    with pytest.raises(LlamaError) as caught:
        runner_of_base.load_lora(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [3, "", b"x"])
def test_a_value_that_is_not_a_name_is_refused(
    runner_of_base: LlamaRunner, adapter: Path, name: Any
) -> None:
    with pytest.raises(InvalidParameterError, match="must be a non-empty string"):
        runner_of_base.load_lora(adapter, name)


# ---- unloading ---------------------------------------------------------------------------------


def test_a_name_may_be_given_again_after_unloading(
    tuned: LlamaRunner, tmp_path: Path, halves: Halves
) -> None:
    plain, first = answer(tuned), answer(tuned, lora={"pirate": 1})
    tuned.unload_lora("pirate")
    with pytest.raises(
        InvalidParameterError, match="no adapter 'pirate' is loaded; loaded are non"
    ):
        answer(tuned, lora={"pirate": 1})
    assert answer(tuned) == plain
    twice = {name: (down, 2 * up) for name, (down, up) in halves.items()}
    tuned.load_lora(write_adapter(tmp_path / "pirate.gguf", twice))
    assert answer(tuned, lora={"pirate": 0.5}) == first != answer(tuned, lora={"pirate": 1})


@pytest.mark.parametrize("name", ["parrot", "", "Pirate"])
def test_what_is_not_loaded_cannot_be_unloaded(tuned: LlamaRunner, name: str) -> None:
    with pytest.raises(
        InvalidParameterError, match=rf"name: no adapter '{name}' is loaded"
    ) as caught:
        tuned.unload_lora(name)
    assert caught.value.field == "name"


def test_a_stream_keeps_its_adapter_loaded(tuned: LlamaRunner) -> None:
    wanted = answer(tuned, lora={"pirate": 1})
    with tuned.stream_stateless(PROMPT, 24, lora={"pirate": 1}, **GREEDY) as stream:
        next(stream)
        with pytest.raises(ContextBusyError):
            tuned.unload_lora("pirate")
        for _ in stream:
            pass
        assert stream.completion.tokens == wanted
    tuned.unload_lora("pirate")


@pytest.mark.parametrize("kind", ["plain", "recurrent"])
def test_a_conversation_is_computed_again_without_an_unloaded_adapter(
    tmp_path: Path, halves: Halves, kind: str
) -> None:
    base = write_model(tmp_path / "base.gguf", kind)
    some = halves if kind == "plain" else None
    if some is None:
        random = np.random.default_rng(4)
        shapes = {t.name: t.shape for t in gguf.GGUFReader(base).tensors if "ssm_out" in t.name}
        some = {
            name: (
                random.standard_normal((RANK, int(shape[0]))).astype(np.float32) / 4,
                random.standard_normal((int(shape[1]), RANK)).astype(np.float32) / 4,
            )
            for name, shape in shapes.items()
        }
    architecture = ARCHITECTURES[kind]
    other = {name: (down, -up) for name, (down, up) in some.items()}
    files = [
        write_adapter(tmp_path / f"{i}.gguf", adapted, architecture)
        for i, adapted in enumerate((some, other))
    ]
    with LlamaRunner(base, n_ctx=512, n_threads=1) as runner:

        def talk(name: str | None = None) -> list[tuple[int, ...]]:
            lora = {name: 1.0} if name else None
            answers = [
                runner.generate_stateful(text, 8, lora=lora, **GREEDY) for text in ("ab", "c")
            ]
            return [answer.tokens for answer in answers]

        runner.load_lora(files[1], "wanted")
        wanted = talk("wanted")
        runner.clear_context()
        runner.load_lora(files[0], "it")
        session = runner.session()
        session.generate("ab", 8, lora={"it": 1.0}, **GREEDY)
        runner.unload_lora("it")
        assert len(inside.sequence(session)) > 8  # what was said is still there
        go_on = session.generate("c", 8, **GREEDY)
        assert go_on.receipt.reused == 0
        runner.load_lora(files[1], "it")
        assert talk("it") == wanted


def test_unloading_waits_for_no_conversation_and_loses_none(tuned: LlamaRunner) -> None:
    """One that was moved out of the memory was computed with it, too."""
    sessions = [tuned.session() for _ in range(6)]  # two more than have room
    for session in sessions:
        session.generate(PROMPT, 40, lora={"pirate": 1}, **GREEDY)
    tuned.unload_lora("pirate")
    assert [inside.sequence(session).adapters for session in sessions] == [()] * 6
    for session in sessions:
        assert session.generate(" abc", 4, **GREEDY).receipt.reused == 0
        session.close()


def test_unloading_gives_the_memory_back(tmp_path: Path, python_rss: str, base: Path) -> None:
    random = np.random.default_rng(1)
    wide = {
        tensor.name: (
            random.standard_normal((2048, int(tensor.shape[0]))).astype(np.float32),
            random.standard_normal((int(tensor.shape[1]), 2048)).astype(np.float32),
        )
        for tensor in gguf.GGUFReader(base).tensors
        if tensor.name in CHANGED
    }
    path = write_adapter(tmp_path / "wide.gguf", wide)
    assert path.stat().st_size > 1_500_000
    grown = subprocess.run(
        [sys.executable, "-c", python_rss, str(base), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(grown.stdout) < 20_000_000  # of 300 MB that were loaded


@pytest.fixture
def python_rss() -> str:
    return """
import re, sys
from llama_runner import LlamaRunner

def resident():
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

with LlamaRunner(sys.argv[1], n_ctx=256, n_threads=1) as runner:
    for i in range(220):
        if i == 20:
            before = resident()
        runner.load_lora(sys.argv[2], "wide")
        runner.generate_stateless("ab", 1, lora={"wide": 1})
        runner.unload_lora("wide")
    print(resident() - before)
"""


def test_unloading_while_others_ask_for_it(tuned: LlamaRunner, adapter: Path) -> None:
    """They get their answer, or hear that it is not loaded."""
    wanted = answer(tuned, lora={"pirate": 1})
    done = threading.Event()
    found: set[str] = set()

    def ask() -> None:
        while not done.is_set():
            try:
                assert answer(tuned, lora={"pirate": 1}) == wanted
            except InvalidParameterError as error:
                found.add(str(error).partition(";")[0])

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        n_unloaded = 0
        while n_unloaded < 20:
            try:
                tuned.unload_lora("pirate")
            except ContextBusyError:
                continue
            n_unloaded += 1
            tuned.load_lora(adapter)
        done.set()
        for future in asking:
            future.result()
    assert found <= {"lora: no adapter 'pirate' is loaded"}
