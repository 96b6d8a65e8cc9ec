"""What llama.cpp cannot compute with is refused when it is loaded, and the process lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llama_runner.errors import InvalidParameterError, UnsupportedModelError
from llama_runner.loaders import validate_model
from tests.fuzz.architectures import discover
from tests.gguf_files import ARRAY, F32, STRING, U32, Array, GgufFile, Tensor
from tests.unit.loaders.model_files import tiny_bert, tiny_gemma2, tiny_llama, tiny_mamba2

# A failed assertion that is not caught would end the test run: each file has a process of its own.
CHILD = """
import sys
from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError
from llama_runner.loaders import validate_model

validate_model(sys.argv[1])
for use in (
    lambda: validate_model(sys.argv[1], "graph"),
    lambda: LlamaRunner(sys.argv[1], n_ctx=256).close(),
):
    try:
        use()
        print("fine")
    except LlamaError as error:
        print(f"{type(error).__name__}: {error.native}")
"""


def outcomes(model: GgufFile, folder: Path) -> list[str]:
    """What checking the graphs says of a file whose header is fine, and what loading it says."""
    path = model.write(folder / "model.gguf")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_mamba2])
def test_a_sound_model_has_sound_graphs(make: type[GgufFile], tmp_path: Path) -> None:
    assert outcomes(make(), tmp_path) == ["fine", "fine"]


def test_a_tensor_that_only_the_graph_needs(tmp_path: Path) -> None:
    model = discover("phi3", tmp_path / "asked.gguf").model
    assert not any("attn_q" in str(tensor.name) for tensor in model.tensors)
    for said in outcomes(model, tmp_path):
        assert said.startswith("ModelLoadError")
        assert "operand != NULL" in said


def test_a_memory_that_the_graph_does_not_expect(tmp_path: Path) -> None:
    found = discover("afmoe", tmp_path / "asked.gguf").model
    model = found.with_keys(afmoe__attention__sliding_window=(U32, 0))
    for said in outcomes(model, tmp_path):
        assert said.startswith("ModelLoadError")
        assert "mctx_cur" in said


def test_no_experts_in_any_layer(tmp_path: Path) -> None:
    found = discover("minimax-m2", tmp_path / "asked.gguf").model
    used = (ARRAY, Array(U32, [2, 0]))
    said = outcomes(found.with_keys(**{"minimax-m2__expert_used_count": used}), tmp_path)
    assert [line.split(":")[0] for line in said] == ["ModelLoadError"] * 2


def test_the_graphs_of_an_open_file(tmp_path: Path) -> None:
    path = tiny_llama().write(tmp_path / "model.gguf")
    with path.open("rb") as file:
        path.unlink()
        assert validate_model(file, "graph").level == "graph"


def test_graphs_are_refused_for_a_model_that_a_runner_would_refuse(tmp_path: Path) -> None:
    path = tiny_bert().write(tmp_path / "bert.gguf")
    validate_model(path)
    with pytest.raises(UnsupportedModelError):
        validate_model(path, "graph")


def test_another_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="'header', 'full' or 'graph'"):
        validate_model(tmp_path / "model.gguf", "graphs")  # type: ignore[arg-type]


LORA_CHILD = """
import sys
from llama_runner import LlamaRunner
from llama_runner.errors import LlamaError

with LlamaRunner(sys.argv[1], n_ctx=256) as runner:
    try:
        runner.load_lora(sys.argv[2])
    except LlamaError as error:
        print(f"{type(error).__name__}: {error}")
    runner.generate_stateless("the", max_tokens=2, ignore_eos=True)
"""


def test_an_adapter_that_llama_cpp_cannot_compute_with(tmp_path: Path) -> None:
    # This architecture may look its tokens up in the output's matrix; the adapter fits that one.
    found = discover("codeshell", tmp_path / "asked.gguf").model
    tensors = [tensor for tensor in found.tensors if tensor.name != "token_embd.weight"]
    model = GgufFile(keys=found.keys, tensors=tensors)
    shape = next(tensor.shape for tensor in tensors if tensor.name == "output.weight")
    adapter = GgufFile(
        keys={
            "general.type": (STRING, "adapter"),
            "general.architecture": (STRING, "codeshell"),
            "adapter.type": (STRING, "lora"),
            "adapter.lora.alpha": (F32, 1.0),
        },
        tensors=[
            Tensor("output.weight.lora_a", (shape[0], 4)),
            Tensor("output.weight.lora_b", (4, shape[1])),
        ],
    )
    paths = [model.write(tmp_path / "model.gguf"), adapter.write(tmp_path / "adapter.gguf")]
    done = subprocess.run(
        [sys.executable, "-c", LORA_CHILD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith("ModelLoadError: llama.cpp cannot compute with the adapter")
