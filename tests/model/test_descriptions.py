"""A runner made from a model's description does what the description says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_runner import (
    ChatTemplateError,
    GenerationParams,
    LlamaRunner,
    ModelMetadataError,
)
from tests.model.tiny_models import write_model

GREETING = [{"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("described")
    write_model(folder / "tiny.gguf")
    return folder


def described(folder: Path, **fields: Any) -> Path:
    path = folder / "tiny.json"
    values = {"name": "Tiny", "path": "tiny.gguf", "architecture": "llama", **fields}
    path.write_text(json.dumps(values))
    return path


def runner_of(path: Path | str, **options: Any) -> LlamaRunner:
    return LlamaRunner(path, n_ctx=256, n_threads=1, **options)


def test_sampling_values_hold_where_a_call_says_nothing(folder: Path) -> None:
    path = described(folder, sampling={"temperature": 0.0, "top_k": 3})
    with runner_of(path) as runner, runner_of(folder / "tiny.gguf") as plain:
        assert runner.generation_params == GenerationParams(temperature=0.0, top_k=3)
        greedy = plain.generate_stateless("abc", 12, temperature=0.0).tokens
        assert runner.generate_stateless("abc", 12).tokens == greedy
        assert runner.generate_stateful("abc", 12).tokens == greedy
        assert runner.session().generate("abc", 12).tokens == greedy
        assert runner.session().fork().generate("abc", 12).tokens == greedy


def test_arguments_of_a_call_win_over_defaults(folder: Path) -> None:
    path = described(folder, sampling={"temperature": 0.0})
    with runner_of(path) as runner, runner_of(folder / "tiny.gguf") as plain:
        drawn = plain.generate_stateless("abc", 12, temperature=2.0, seed=5).tokens
        assert runner.generate_stateless("abc", 12, temperature=2.0, seed=5).tokens == drawn
        params = GenerationParams(temperature=2.0, seed=5)
        assert runner.generate_stateless("abc", 12, params).tokens == drawn
        assert runner.generate_stateful("abc", 12, params).tokens == drawn


def test_params_say_only_what_they_set(folder: Path) -> None:
    path = described(folder, sampling={"temperature": 0.0})
    five = GenerationParams(max_tokens=5, ignore_eos=True)
    with runner_of(path) as runner:
        session = runner.session()
        greedy = runner.generate_stateless("abc", 5, ignore_eos=True).tokens
        assert len(greedy) == 5
        assert runner.generate_stateless("abc", params=five).tokens == greedy
        assert runner.generate_stateful("abc", params=five).tokens == greedy
        assert session.generate("abc", params=five).tokens == greedy
        for stream in (
            runner.stream_stateless("abc", params=five),
            runner.stream_stateful("abc", params=five),
            session.stream("abc", params=five),
        ):
            assert sum(len(chunk.tokens) for chunk in stream) == 5


def test_the_chat_template_is_used(folder: Path) -> None:
    path = described(folder, chat_template="<{{ messages[0].content }}>")
    with runner_of(path) as runner:
        prompt = runner.generate_stateless(GREETING, 1).usage.prompt_tokens
        assert prompt == len(runner.tokenize("<abc>"))
    with runner_of(path, chat_template="{{ messages[0].content }}") as runner:
        prompt = runner.generate_stateless(GREETING, 1).usage.prompt_tokens
        assert prompt == len(runner.tokenize("abc"))


def test_a_chat_template_that_would_exhaust_the_stack_is_refused(folder: Path) -> None:
    deep = "{{ " + "(" * 100_000
    for path, options in (
        (described(folder, chat_template=deep), {}),
        (folder / "tiny.gguf", {"chat_template": deep}),
    ):
        with pytest.raises(ChatTemplateError, match="too deeply"):
            runner_of(path, **options)


def test_the_layers_on_the_accelerator(folder: Path) -> None:
    path = described(folder, n_gpu_layers=0)
    with runner_of(path) as runner:
        assert runner.model_params.n_gpu_layers == 0
    with runner_of(path, n_gpu_layers=1) as runner:
        assert runner.model_params.n_gpu_layers == 1
    with runner_of(folder / "tiny.gguf") as runner:
        assert runner.model_params.n_gpu_layers == -1


def test_a_description_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", str(tmp_path))
    described(tmp_path, path=str(folder / "tiny.gguf"), sampling={"top_k": 7})
    with runner_of("tiny") as runner:
        assert runner.generation_params.top_k == 7


def test_a_description_that_contradicts_the_file_is_refused(folder: Path) -> None:
    path = described(folder, architecture="qwen2", context_length=1 << 20)
    with pytest.raises(ModelMetadataError, match=r"architecture is 'qwen2'.*context_length is"):
        runner_of(path)
    with runner_of(path, validate=False) as runner:
        assert runner.generate_stateless("abc", 1).tokens
