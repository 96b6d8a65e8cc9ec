"""A single call for a single answer, for scripts and short-lived workers."""

from __future__ import annotations

import os
from typing import Unpack

from llama_runner.params import GenerationOptions
from llama_runner.runner import LlamaRunner

__all__ = ["generate_once"]


def generate_once(
    model_path: str | os.PathLike[str],
    prompt: str,
    max_tokens: int = 200,
    **overrides: Unpack[GenerationOptions],
) -> str:
    """Load a model, answer one raw text prompt and free everything.

    To set options of the runner, such as ``n_ctx``, use :class:`LlamaRunner`.

    Args:
        model_path: A GGUF file, or the name of a pulled model.
        prompt: Raw text.
        max_tokens: Maximum number of tokens to generate.
        **overrides: Fields of :class:`GenerationParams`, such as ``temperature``.

    Returns:
        The generated text.

    Raises:
        LlamaError: As :class:`LlamaRunner` and :meth:`LlamaRunner.generate_stateless`.
    """
    with LlamaRunner(model_path, n_seq_max=1) as runner:
        return runner.generate_stateless(prompt, max_tokens, **overrides).text
