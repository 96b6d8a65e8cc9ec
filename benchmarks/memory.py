"""How much memory one generation takes at most, and what many of them leave behind.

Peak: the most bytes resident in a fresh process that loads the model into a context of 2,048
tokens, reads a prompt of 1,000 and generates 64; all else at each peer's defaults. Mapped weights
count as far as they were read.

Growth: resident bytes after 20 generations and after 300 more: calls, streams
dropped half-read and turns of a conversation, with prompts of different lengths.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from _peers import OURS, PROGRAMS, THEIRS, Setup, parse_arguments
from _report import draw_bars, write_results

N_CTX = 2048
RIVAL = "llama-cpp-python"
MIB = 2**20
GROWTH_LIMIT = 2 * MIB


def peaks(setup: Setup, rounds: int) -> dict[str, list[int]]:
    """Bytes by peer, a process each."""
    found: dict[str, list[int]] = {}
    for _ in range(rounds):
        for peer in PROGRAMS:
            if peer in setup.programs and peer != THEIRS:
                job: dict[str, Any] = {"measure": "peak", "n_prompt": 1000, "n_tokens": 64}
                found.setdefault(peer, []).append(setup.work(peer, N_CTX, **job)["peak"])
    return found


def growth(setup: Setup, generations: int) -> list[int]:
    """Resident bytes of this package after warm-up and after each tenth of the generations."""
    job = {"measure": "growth", "warm_up": 20, "generations": generations}
    return list(setup.work(OURS, N_CTX, **job)["sizes"])


def main() -> None:
    """Measure, print, and write JSON and picture."""
    setup, options = parse_arguments(__doc__, peers=(RIVAL, "xllamacpp"), rounds=3, generations=300)
    found = peaks(setup, options.rounds)
    print("most memory resident")
    for peer, sizes in found.items():
        print(f"  {peer:18}{median(sizes) / MIB:8.1f} MiB")
    if RIVAL in found:
        ratio = median(found[OURS]) / median(found[RIVAL])
        print(f"  ours / {RIVAL}: {ratio:.3f} (at most 1: {'ok' if ratio <= 1 else 'above'})")
    sizes = growth(setup, options.generations)
    grown = sizes[-1] - sizes[0]
    verdict = "ok" if grown <= GROWTH_LIMIT else "above"
    print(
        f"growth over {options.generations} generations: {grown / MIB:.2f} MiB "
        f"(at most {GROWTH_LIMIT / MIB:g}: {verdict})"
    )
    results = {"model": setup.model.name, "n_ctx": N_CTX, "peak": found, "growth": sizes}
    write_results(options.output / "memory.json", results)
    panels = {"most memory resident": {p: median(s) / MIB for p, s in found.items()}}
    draw_bars(options.output / "memory.png", panels, "MiB")


if __name__ == "__main__":
    main()
