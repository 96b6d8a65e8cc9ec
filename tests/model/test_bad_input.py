"""Bad input gets an error of the right type, in one line, and a runner that still works."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import GenerationParams, LlamaRunner, generate_once
from llama_runner.errors import (
    ChatTemplateError,
    ClosedError,
    InvalidParameterError,
    LlamaError,
    ModelNotFoundError,
    ModelValidationError,
    PromptTooLongError,
    TokenizationError,
    UnsupportedModelError,
)

N_CTX = 256


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=N_CTX, n_threads=1) as runner:
        yield runner


@contextmanager
def refused(kind: type[LlamaError], *parts: str) -> Iterator[None]:
    """An error of this type, in one line that has these words."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def generators(runner: LlamaRunner) -> list[Callable[..., Any]]:
    return [
        runner.generate_stateless,
        runner.stream_stateless,
        runner.generate_stateful,
        runner.stream_stateful,
    ]


@pytest.fixture
def calls(runner: LlamaRunner) -> Iterator[list[Callable[..., Any]]]:
    """The four ways to generate; all of them still answer after the test."""
    yield generators(runner)
    assert runner.generate_stateless("1, 2, 3,", 3, temperature=0).text == " 4,"
    assert runner.generate_stateful("1, 2, 3,", 3, temperature=0).text == " 4,"
    assert "".join(map(str, runner.stream_stateless("1, 2, 3,", 3, temperature=0))) == " 4,"


# ---- files -------------------------------------------------------------------------------------


def test_a_path_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing.gguf"
    with refused(ModelNotFoundError, str(path)):
        LlamaRunner(path)
    with refused(ModelNotFoundError, "no-such-name"):
        LlamaRunner("no-such-name")
    with pytest.raises(FileNotFoundError):
        LlamaRunner(path)


def test_a_directory(tmp_path: Path) -> None:
    with refused(ModelValidationError, str(tmp_path), "directory"):
        LlamaRunner(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"G", b"GGU", b"GGUF", b"not a model at all\n" * 100, b"PK\x03\x04" + bytes(1000)],
)
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with refused(ModelValidationError, str(path)):
        LlamaRunner(path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999999])
def test_a_truncated_file(tmp_path: Path, model_path: Path, share: float) -> None:
    size = int(model_path.stat().st_size * share)
    path = tmp_path / "truncated.gguf"
    with model_path.open("rb") as whole:
        path.write_bytes(whole.read(size))
    with refused(ModelValidationError, str(path), "truncated"):
        LlamaRunner(path)


def test_a_model_without_weights_can_only_tokenize(model_path: Path) -> None:
    with LlamaRunner(model_path, vocab_only=True) as runner:
        assert runner.detokenize(runner.tokenize("Hello")) == "Hello"
        for call in generators(runner):
            with refused(UnsupportedModelError, "vocab_only"):
                call("Hello")


# ---- prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_too_many", [0, 1, 1000])
def test_a_prompt_longer_than_the_context(calls: list[Callable[..., Any]], n_too_many: int) -> None:
    n = N_CTX + n_too_many
    for call in calls:
        # How long it is, and how much fits.
        with refused(PromptTooLongError, f"{n:,} tokens", f"{N_CTX:,}"):
            call([504] * n)


def test_the_longest_prompt_that_fits(runner: LlamaRunner) -> None:
    for generate in (runner.generate_stateless, runner.generate_stateful):
        completion = generate([504] * (N_CTX - 1), 10, temperature=0)
        assert completion.finish_reason == "length"
        assert completion.usage.completion_tokens == 1


@pytest.mark.parametrize("prompt", ["", [], (), np.array([], np.int32), iter([])])
def test_an_empty_prompt(calls: list[Callable[..., Any]], prompt: Any) -> None:
    for call in calls:
        with refused(InvalidParameterError, "prompt", "empty"):
            call(prompt)


@pytest.mark.parametrize("token", [-1, -(2**31), "the first", 2**31, 2**63, 10**30])
def test_a_token_id_out_of_range(
    calls: list[Callable[..., Any]], runner: LlamaRunner, token: Any
) -> None:
    n_vocab = len(runner.model.vocab)
    token = n_vocab if token == "the first" else token
    for call in calls:
        with refused(TokenizationError, "index 1", f"0 to {n_vocab - 1}"):
            call([5, token])
    with refused(TokenizationError, f"0 to {n_vocab - 1}"):
        runner.detokenize([5, token])


class Question:
    role = "user"
    content = "a"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (None, "NoneType"),
        (5, "int"),
        (5.0, "float"),
        (b"text", "bytes"),
        (bytearray(b"text"), "bytearray"),
        (np.array(5), "ndarray"),
        (["text"], "list of str"),
        ([[5, 6]], "list of list"),
        ((Question(),), "tuple of Question"),
    ],
)
def test_a_value_that_is_not_a_prompt_is_refused(
    calls: list[Callable[..., Any]], runner: LlamaRunner, prompt: Any, kind: str
) -> None:
    allowed = f"prompt: must be text, token ids or a list of messages (got {kind})"
    for call in (*calls, runner.session().append):
        with refused(TokenizationError, allowed):
            call(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        [5, True],
        [5, 6.0],
        [5, None],
        [5, "6"],
        ["text"],
        [[5, 6]],
        np.array([[5, 6]]),
        np.array([[5, 6]], np.int32),
        np.array(5),
        np.array([5.0, 6.0]),
        np.array([True, False]),
        [list(range(10_000))],
        [np.zeros((100, 100))],
        b"text",
        bytearray(b"text"),
        None,
        5,
        5.0,
        object(),
    ],
)
def test_a_value_that_is_not_a_token_id_is_refused(
    calls: list[Callable[..., Any]], runner: LlamaRunner, prompt: Any
) -> None:
    for call in calls:
        with refused(TokenizationError):
            call(prompt)
    with refused(TokenizationError, "integers"):
        runner.detokenize(prompt)


@pytest.mark.parametrize(
    ("prompt", "kind", "part"),
    [
        ({"role": "user", "content": "a"}, InvalidParameterError, "list"),
        ([{"content": "a"}], InvalidParameterError, "role"),
        ([{"role": 5, "content": "a"}], InvalidParameterError, "role"),
        ([{"role": "user"}], InvalidParameterError, "content"),
        ([{"role": "user", "content": "a"}, "b"], InvalidParameterError, "prompt[1]"),
        ([{"role": "user", "content": []}], InvalidParameterError, "has no 'content'"),
        ([{"role": "user", "content": ()}], InvalidParameterError, "has no 'content'"),
        ([{"role": "user", "content": 5}], InvalidParameterError, "must be text (got int)"),
        ([{"role": "user", "content": b"a"}], InvalidParameterError, "must be text (got bytes)"),
        ([{"role": "user", "content": ["a"]}], InvalidParameterError, "part"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], InvalidParameterError, "part"),
        ([{"role": "user", "content": [{"type": "text"}]}], InvalidParameterError, "part"),
        ([{"role": "user", "content": "a", "name": object()}], InvalidParameterError, "JSON"),
        ([{"role": "user", "content": "\ud800"}], ChatTemplateError, "surrogate"),
        ("a\ud800", TokenizationError, "surrogate"),
    ],
)
def test_values_that_are_not_messages_or_texts_are_refused(
    calls: list[Callable[..., Any]], prompt: Any, kind: type[LlamaError], part: str
) -> None:
    for call in calls:
        with refused(kind, part):
            call(prompt)


def test_a_value_that_is_not_a_system_message_is_refused(runner: LlamaRunner) -> None:
    with refused(InvalidParameterError, "must be text (got int)"):
        runner.session(system=5)  # type: ignore[arg-type]


def test_content_in_parts_is_that_text(runner: LlamaRunner) -> None:
    whole = runner.generate_stateless([{"role": "user", "content": "Hello."}], 1)
    parts = [{"type": "text", "text": "Hello."}]
    in_parts = runner.generate_stateless([{"role": "user", "content": parts}], 1)
    assert in_parts.usage.prompt_tokens == whole.usage.prompt_tokens


# ---- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_tokens": 0}, "max_tokens=0: must be an integer between 1 and"),
        ({"max_tokens": -2}, "max_tokens=-2"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"max_tokens": 1.5}, "max_tokens=1.5"),
        ({"temperature": float("nan")}, "temperature=nan: must be a number between 0 and 100"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": -1}, "seed=-1"),
        ({"params": {"temperature": 1}}, "GenerationParams"),
    ],
)
def test_a_parameter_out_of_range(
    calls: list[Callable[..., Any]], options: dict[str, Any], part: str
) -> None:
    for call in calls:
        with refused(InvalidParameterError, part):
            call("Hello", **options)


def test_one_answer_takes_what_a_generation_takes(model_path: Path) -> None:
    with refused(InvalidParameterError, "temperature=-1"):
        generate_once(model_path, "Hello", temperature=-1)
    with refused(InvalidParameterError, "unknown parameter 'n_ctx'"):
        generate_once(model_path, "Hello", n_ctx=256)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"n_ctx": -1}, "n_ctx=-1"),
        ({"n_cxt": 512}, "did you mean 'n_ctx'"),
        ({"n_gpu_layer": 1}, "did you mean 'n_gpu_layers'"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"n_threads": 512}, "n_threads=512"),
        ({"n_ubatch": 512, "n_batch": 128}, "n_ubatch=512"),
        ({"kv_type": "f12"}, "kv_type='f12'"),
        ({"chat_template": ""}, "chat_template='': must not be empty"),
        ({"chat_template": 5}, "chat_template=5"),
        ({"isolated": 5}, "isolated=5: must be True or False"),
    ],
)
def test_an_option_out_of_range(model_path: Path, options: dict[str, Any], part: str) -> None:
    with refused(InvalidParameterError, part):
        LlamaRunner(model_path, **options)


def test_errors_name_the_field(runner: LlamaRunner) -> None:
    for call, field in [
        (lambda: GenerationParams(temperature=-1), "temperature"),
        (lambda: runner.generate_stateless("a", 0), "max_tokens"),
        (lambda: runner.generate_stateless(""), "prompt"),
    ]:
        with pytest.raises(InvalidParameterError) as caught:
            call()
        assert caught.value.field == field
        assert isinstance(caught.value, ValueError)


# ---- a runner that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_runner_is_not_for_other_processes(
    runner: LlamaRunner, take: Callable[[Any], object]
) -> None:
    with pytest.raises(TypeError, match="create one in each process"):
        take(runner)


def test_use_after_close(model_path: Path) -> None:
    runner = LlamaRunner(model_path, n_ctx=N_CTX, n_threads=1)
    open_stream = runner.stream_stateful("1, 2, 3,", 5)
    next(open_stream)
    runner.close()
    for call in generators(runner):
        with refused(ClosedError, "closed"):
            call("Hello")
    for use in (
        runner.get_context_info,
        runner.gc_context,
        runner.clear_context,
        runner.session,
        lambda: runner.tokenize("Hello"),
        lambda: runner.detokenize([5]),
        lambda: next(open_stream),
    ):
        with refused(ClosedError, "closed"):
            use()
    runner.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_use_after_fork(model_path: Path) -> None:
    program = """
import os, sys
from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError

def answer():
    return runner.generate_stateless("1, 2, 3,", 3, temperature=0).text

runner = LlamaRunner(sys.argv[1], n_ctx=256, n_threads=1)
print(answer())
sys.stdout.flush()
child = os.fork()
if child == 0:
    for use in (answer, runner.get_context_info, lambda: runner.stream_stateful("Hello")):
        try:
            use()
        except LlamaError as error:
            print(type(error).__name__, str(error).count("\\n"))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(answer())
runner.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(model_path)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.split("\n") == [" 4,", *["ForkedProcessError 0"] * 3, " 4,", ""]
