"""How long choosing one token from the logits takes, in microseconds.

The logits are made up: a normal distribution of deviation 3 with eight tokens raised above it.
The best of them then has a probability of about 0.4, and the 40th best lies 6 to 7 below it, as
seen with SmolLM2 in the middle of a story. Eight such vectors are taken in turn, so
that no sampler learns one by heart. The time is this thread's processor time. ``fused`` is this
package's own pass over the raw logits, ``chain`` llama.cpp's samplers on a copy of them, which the
same recipe gives with use_chain.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

VOCABULARIES = {49_152: 60.0, 262_144: 150.0}
"""Size, and the most microseconds that greedy and the default recipe may take."""
RECIPES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "default": {},
    "default, penalties": {
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
    },
    "top_k=1000": {"top_k": 1000},
    "top_k=0": {"top_k": 0},
    "top_k=0, min_p=0.05 alone": {"top_k": 0, "top_p": 1.0},
    "top_k=0, nothing else": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
N_CALLS, N_BATCHES = 40, 15


def measure() -> dict[str, dict[str, float]]:
    """Microseconds a token by vocabulary size and recipe; printed as they are found."""
    results: dict[str, dict[str, float]] = {}
    for n_vocab, limit in VOCABULARIES.items():
        print(f"sampling, us a token, vocabulary of {n_vocab:,} (at most {limit:g})")
        results[str(n_vocab)] = found = {}
        for name, recipe in RECIPES.items():
            for path in ("fused", "chain"):
                us = microseconds(n_vocab, recipe, use_chain=path == "chain")
                found[f"{name}: {path}"] = us
            verdict = "" if found[f"{name}: fused"] <= limit else f"  above {limit:g}"
            print(
                f"  {name:28}{found[f'{name}: fused']:9.1f}"
                f"   chain {found[f'{name}: chain']:9.1f}{verdict}"
            )
    return results


def microseconds(n_vocab: int, recipe: dict[str, Any], *, use_chain: bool) -> float:
    """Median over batches of the mean of one."""
    import numpy as np

    from llama_runner import GenerationParams
    from llama_runner._core import Sampler

    random = np.random.default_rng(1)
    vectors = [logits_like_a_model(random, n_vocab) for _ in range(8)]
    history = random.integers(0, n_vocab, 1000).astype(np.int32)
    sample = Sampler(GenerationParams(seed=1, **recipe), use_chain=use_chain).sample
    means = []
    for _ in range(N_BATCHES + 1):
        start = time.thread_time()
        for i in range(N_CALLS):
            sample(vectors[i % 8], history)
        means.append((time.thread_time() - start) / N_CALLS * 1e6)
    return median(means[1:])


def logits_like_a_model(random: Any, n_vocab: int) -> Any:
    """float32, shape (n_vocab,)."""
    logits = random.normal(0.0, 3.0, n_vocab).astype("float32")
    logits[random.integers(0, n_vocab, 8)] += 15 + random.normal(0.0, 2.0, 8).astype("float32")
    return logits


if __name__ == "__main__":
    measure()
