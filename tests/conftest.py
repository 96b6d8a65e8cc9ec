"""What tests with real weights share, in every folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_runner.errors import ModelNotFoundError


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The weights: LLAMA_RUNNER_MODEL, else the default model as ``make test`` pulls it."""
    from llama_runner.loaders import default_model

    try:
        return default_model()[0]
    except ModelNotFoundError as error:
        pytest.skip(f"no weights to test with: {error}")
