"""Checked by mypy, not run: what a type checker infers for a program that uses the public API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack, assert_type

import numpy as np
from numpy.typing import NDArray

from llama_runner import (
    Chunk,
    Completion,
    ContextInfo,
    ContextParams,
    GcReport,
    GenerationOptions,
    GenerationParams,
    GgufInfo,
    LlamaRunner,
    MemoryEstimate,
    Message,
    ModelMetadata,
    ModelParams,
    Prompt,
    Receipt,
    RunnerOptions,
    Sampler,
    SamplingDefaults,
    Session,
    SessionMark,
    Span,
    Stream,
    Timings,
    Usage,
    ValidationReport,
    build_batch,
    create_sampler,
    estimate_memory,
    find_model,
    generate_once,
    list_models,
    pull,
    read_gguf,
    validate_model,
)


def constructing(runner: LlamaRunner) -> None:
    LlamaRunner(
        "model.gguf",
        n_ctx=2048,
        n_threads=None,
        kv_type="q8_0",
        flash_attention=True,
        progress=lambda fraction: fraction < 1,
    )
    LlamaRunner("model.gguf", n_context=2048)  # type: ignore[call-arg]
    LlamaRunner("model.gguf", n_ctx="2048")  # type: ignore[arg-type]
    LlamaRunner("model.gguf", kv_type="q9")  # type: ignore[arg-type]
    assert_type(runner.model_params, ModelParams)
    assert_type(runner.context_params, ContextParams)
    with runner as entered:
        assert_type(entered, LlamaRunner)
    assert_type(runner.closed, bool)


def values() -> None:
    stopping = GenerationParams(stop="x", max_tokens=5, lora={"pirate": 1.0})
    GenerationParams(stop=["x", "y"])
    GenerationParams(stop=None, lora=None, max_tokens=-1, add_special=False)
    assert_type(stopping.stop, tuple[str, ...])
    assert_type(stopping.merged(seed=1), GenerationParams)
    GenerationParams(stop=3)  # type: ignore[arg-type]
    GenerationParams(temprature=0.0)  # type: ignore[call-arg]
    assert_type(ContextParams(parking_dir=Path("parked"), n_ctx="auto").parking_dir, str | None)
    ContextParams(vocab_only=True)  # type: ignore[call-arg]
    assert_type(ModelParams(vocab_only=True).vocab_only, bool)
    model = ModelMetadata(
        name="Mine", architecture="llama", path="a.gguf", tags=["a"], sha256=["0" * 64]
    )
    assert_type(model.path, Path | None)
    assert_type(model.tags, tuple[str, ...])
    ModelMetadata(name="Mine", architecture="llama", sampling=SamplingDefaults(top_k=1))
    ModelMetadata(name="Mine")  # type: ignore[call-arg]


def prompts(runner: LlamaRunner, ids: NDArray[np.int32]) -> None:
    runner.generate_stateless("text")
    runner.generate_stateless([1, 2])
    runner.generate_stateless(ids)
    runner.generate_stateless([{"role": "user", "content": "text"}])
    runner.generate_stateless({"role": "user", "content": text} for text in ("a", "b"))
    runner.generate_stateless(1)  # type: ignore[arg-type]


def generating(runner: LlamaRunner, params: GenerationParams) -> None:
    assert_type(runner.generate_stateless("a", 10, params, temperature=0.0), Completion)
    assert_type(runner.generate_stateful("a", max_tokens=10, stop=["\n"], seed=None), Completion)
    runner.generate_stateless("a", temprature=0.0)  # type: ignore[call-arg]
    runner.generate_stateful("a", top_k="all")  # type: ignore[arg-type]
    runner.stream_stateless("a", nothing=1)  # type: ignore[call-arg]
    assert_type(generate_once("model.gguf", "a", temperature=0.0, stop="\n"), str)
    generate_once("model.gguf", "a", n_ctx=256)  # type: ignore[call-arg]


def streaming(runner: LlamaRunner) -> None:
    assert_type(runner.stream_stateless("a", seed=1), Stream)
    with runner.stream_stateful("a", ignore_eos=True) as stream:
        for chunk in stream:
            assert_type(chunk, Chunk)
            assert_type(chunk.text, str)
            assert_type(chunk.tokens, tuple[int, ...])
        assert_type(stream.completion, Completion | None)


def results(completion: Completion) -> None:
    assert_type(completion.text, str)
    assert_type(completion.finish_reason, Literal["stop", "length", "cancelled"])
    assert_type(completion.stop_string, str | None)
    assert_type(completion.usage.total, int)
    assert_type(completion.timings.tokens_per_second, float)
    assert_type(completion.receipt.reused, int)
    completion.text = ""  # type: ignore[misc]


def memory_and_text(runner: LlamaRunner) -> None:
    assert_type(runner.get_context_info(), ContextInfo)
    assert_type(runner.gc_context(), GcReport)
    assert_type(runner.tokenize("a", add_special=False), NDArray[np.int32])
    assert_type(runner.detokenize(runner.tokenize("a")), str)
    assert_type(runner.tokenize_batch(["a", b"b"]), list[NDArray[np.int32]])
    assert_type(runner.count_tokens(b"a"), int)
    assert_type(runner.tokenizer.detokenizer().feed(runner.tokenize("a")[0]), str)
    assert_type(build_batch([[1], runner.tokenize("a")]).tokens, NDArray[np.int32])
    assert_type(create_sampler(temperature=0).sample(np.zeros(3, np.float32)), int)
    assert_type(runner.chat_template, str | None)


def newest(spans: Sequence[Span]) -> list[list[int]]:
    return [[len(spans) - 1]]


def programs_of_their_own(session: Session, prompt: Prompt, history: list[Message]) -> None:
    def load(**options: Unpack[RunnerOptions]) -> LlamaRunner:
        return LlamaRunner("model.gguf", **options)

    def ask(asked: Prompt | None, **options: Unpack[GenerationOptions]) -> Completion:
        return session.generate(asked or history, 10, **options)

    load(parking_dir=Path("parked"))
    completion = ask(prompt, seed=1)
    assert_type(completion.usage, Usage)
    assert_type(completion.timings, Timings)
    assert_type(completion.receipt, Receipt)
    assert_type(session.info().spans, tuple[Span, ...])
    assert_type(session.mark(), SessionMark)
    assert_type(session.gc(policy=newest), GcReport)
    assert_type(create_sampler(seed=1), Sampler)


def model_files() -> None:
    assert_type(read_gguf("model.gguf"), GgufInfo)
    assert_type(validate_model("model.gguf"), ValidationReport)
    assert_type(estimate_memory("model.gguf", n_ctx="auto"), MemoryEstimate)
    assert_type(find_model("name"), Path)
    assert_type(pull("name"), Path)
    assert_type([entry.path for entry in list_models()], list[Path])


def core(runner: LlamaRunner) -> None:
    assert_type(runner.model.n_ctx_train, int)
    assert_type(runner.model.metadata, dict[str, str])
    assert_type(runner.model.vocab.eos, int | None)
