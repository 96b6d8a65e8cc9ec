"""Models of every kind of memory load, say truly what they are, and generate or say why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_runner import LlamaRunner, ModelMetadata, UnsupportedModelError, read_gguf
from tests.gguf_files import GgufFile
from tests.model.tiny_models import ARCHITECTURES, KINDS, write_model
from tests.unit.loaders.model_files import (
    tiny_bert,
    tiny_gemma2,
    tiny_llama,
    tiny_mamba2,
    tiny_moe,
    tiny_t5,
)


def check_runs(path: Path, architecture: str, memory_kind: str) -> None:
    info = read_gguf(path)
    with LlamaRunner(path, n_ctx=256, n_threads=1) as runner:
        model = runner.model
        assert model.memory_kind == memory_kind
        assert model.n_params == info.n_params
        assert model.n_layer == info.number("block_count")
        assert model.n_ctx_train == info.context_length
        assert model.n_embd == info.number("embedding_length")
        assert model.vocab.n_tokens == info.vocab_size
        assert ModelMetadata.from_gguf(path).architecture == info.architecture == architecture
        stateless = runner.generate_stateless("the a", 5, temperature=0.0, ignore_eos=True)
        stateful = runner.generate_stateful("the a", 5, temperature=0.0, ignore_eos=True)
        assert len(stateless.tokens) == 5
        assert stateless.tokens == stateful.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_kind_runs(tmp_path: Path, kind: str) -> None:
    check_runs(write_model(tmp_path / "tiny.gguf", kind), ARCHITECTURES[kind], kind)


@pytest.mark.parametrize(
    ("make", "architecture", "memory_kind"),
    [
        (tiny_llama, "llama", "plain"),
        (tiny_moe, "llama", "plain"),
        (tiny_gemma2, "gemma2", "swa"),
        (tiny_mamba2, "mamba2", "recurrent"),
    ],
)
def test_a_model_of_another_architecture_runs(
    tmp_path: Path, make: Callable[[], GgufFile], architecture: str, memory_kind: str
) -> None:
    check_runs(make().write(tmp_path / "tiny.gguf"), architecture, memory_kind)


@pytest.mark.parametrize("make", [tiny_bert, tiny_t5])
def test_encoders_are_refused_with_a_reason(tmp_path: Path, make: Callable[[], GgufFile]) -> None:
    path = make().write(tmp_path / "tiny.gguf")
    with pytest.raises(UnsupportedModelError, match="encoder") as caught:
        LlamaRunner(path, n_ctx=256)
    assert "\n" not in str(caught.value)
    with LlamaRunner(path, vocab_only=True) as runner:
        assert len(runner.tokenize("abc")) > 0
