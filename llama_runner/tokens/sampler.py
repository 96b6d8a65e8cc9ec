"""A sampler for logits that do not come from a runner."""

from __future__ import annotations

import secrets
from typing import Unpack

from llama_runner._core import Sampler
from llama_runner.params import SEED_MAX, GenerationOptions, GenerationParams, generation_params

__all__ = ["create_sampler"]


def create_sampler(
    params: GenerationParams | None = None, **overrides: Unpack[GenerationOptions]
) -> Sampler:
    """Make a sampler for your own logits, the same as generating uses.

    Args:
        params: Sampling parameters; if they have no seed, one is chosen at random.
        **overrides: Changes to ``params``.

    Raises:
        InvalidParameterError: A parameter is unknown or out of range.
    """
    chosen = generation_params(1, params, overrides, GenerationParams())
    if chosen.seed is None:
        chosen = chosen.merged(seed=secrets.randbelow(SEED_MAX + 1))
    return Sampler(chosen)
