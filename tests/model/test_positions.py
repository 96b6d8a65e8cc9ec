"""Models that have learned a vector for each position: a context goes no further than those."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_runner import LlamaRunner, estimate_memory
from llama_runner.errors import InvalidParameterError, PromptTooLongError
from tests.gguf_files import U32
from tests.unit.loaders.model_files import tiny_gpt2

POSITIONS = 100


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("positions")
    return tiny_gpt2(POSITIONS).write(folder / "gpt2.gguf")


@pytest.mark.parametrize("options", [{}, {"n_ctx": "auto"}, {"n_ctx": 0}, {"n_ctx": POSITIONS}])
def test_a_sequence_ends_at_the_last_position(path: Path, options: dict[str, object]) -> None:
    with LlamaRunner(path, **options) as runner:
        done = runner.generate_stateless("the", max_tokens=500, ignore_eos=True)
        assert done.usage.total == POSITIONS
        assert done.finish_reason == "length"
        with pytest.raises(PromptTooLongError):
            runner.generate_stateless([3] * (POSITIONS + 1), max_tokens=1)


def test_a_longer_context_is_refused(path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=f"learned {POSITIONS} positions") as caught:
        LlamaRunner(path, n_ctx=POSITIONS + 1)
    assert caught.value.field == "n_ctx"
    with pytest.raises(InvalidParameterError, match="n_ctx=100"):
        estimate_memory(path, n_ctx=4096)


def test_streams_have_the_positions_each(path: Path) -> None:
    options = {"n_seq_max": 4, "kv_layout": "streams"}
    with LlamaRunner(path, n_ctx=4 * POSITIONS, **options) as runner:
        done = runner.generate_stateless("the", max_tokens=500, ignore_eos=True)
        assert done.usage.total == POSITIONS
    with pytest.raises(InvalidParameterError, match=f"at most n_ctx={4 * POSITIONS}"):
        LlamaRunner(path, n_ctx=4 * POSITIONS + 4, **options)


def test_fewer_rows_than_the_context_length_are_refused(tmp_path: Path) -> None:
    from llama_runner.errors import ModelLoadError

    model = tiny_gpt2(POSITIONS).with_keys(gpt2__context_length=(U32, 2 * POSITIONS))
    with pytest.raises(ModelLoadError) as caught:
        LlamaRunner(model.write(tmp_path / "gpt2.gguf"))
    assert "position_embd.weight" in (caught.value.native or "")
