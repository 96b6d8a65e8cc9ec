"""What tests with real weights share: a runner on them, the oracle, and the tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner._core import Model
from tests import inside
from tests.model.oracle import Oracle, compile_oracle
from tests.model.tiny_models import ARCHITECTURES, write_model


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    """A runner for the tests of one module; one thread, so that a busy machine slows it little."""
    with LlamaRunner(model_path, n_ctx=1024, n_threads=1) as runner:
        yield runner


@pytest.fixture
def session(runner: LlamaRunner) -> Iterator[Session]:
    """A conversation that was told how to be."""
    with runner.session("You are a helpful assistant.") as session:
        yield session


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that uses the shared runner finds its memory empty and leaves it so."""
    yield
    if "runner" in request.fixturenames:
        runner: LlamaRunner = request.getfixturevalue("runner")
        runner.clear_context()
        assert inside.n_resident(runner) == 0


@pytest.fixture(scope="session")
def oracle(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Plain greedy decoding."""
    try:
        program = compile_oracle(tmp_path_factory.mktemp("oracle"))
    except FileNotFoundError as error:
        pytest.skip(f"no static libraries to link the oracle with (make build): {error.filename}")
    return Oracle(program, model_path)


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of random models, by the kind of memory."""
    folder = tmp_path_factory.mktemp("tiny_models")
    return {kind: write_model(folder / f"{kind}.gguf", kind) for kind in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_models(tiny_paths: dict[str, Path]) -> Iterator[dict[str, Model]]:
    """Loaded random models, by the kind of memory."""
    models = {kind: Model(path) for kind, path in tiny_paths.items()}
    yield models
    for model in models.values():
        model.close()
