"""What tests with real weights share, in every folder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llama_runner.errors import ModelNotFoundError

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite that a shell started in the background has Ctrl-C ignored, and so would the programs
    # that it starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The weights: LLAMA_RUNNER_MODEL, else the default model as ``make test`` pulls it."""
    from llama_runner.loaders import default_model

    try:
        return default_model()[0]
    except ModelNotFoundError as error:
        pytest.skip(f"no weights to test with: {error}")
