"""How fast prompts are read and tokens generated, against llama-bench and other bindings.

One interleaved run: in each round every peer does each test once, in a process of its own, so that
whatever slows the machine down for a while slows all of them; the order is turned round each time.
A figure of a process is the median of three repetitions after a warm-up, a ratio the median over
the rounds of ours to llama-bench's in that round.

Tests, all greedy, in tokens per second:

prefill  512 tokens into an empty memory, from the call to the first token. llama-bench's pp512 is
         one computation of 512 tokens; ours includes checking the prompt and sampling one token.
decode   128 tokens one by one from an empty memory. llama-bench's tg128 is 128 computations of one
         token, with random ones and nothing sampled; ours includes sampling, text and stop rules.
call     after a prompt of text, from the first of 128 tokens to the last, all in one call.
stream   the same, as a stream of text chunks read in Python.
"""

from __future__ import annotations

from statistics import median

import sampling
from _peers import OURS, RIVALS, THEIRS, Setup, parse_arguments, undisturbed
from _report import draw_bars, write_results

N_PREFILL, N_DECODE = 512, 128
REPETITIONS = 3
TARGET = 0.98
# Room for one token more than llama-bench's own contexts: it asks for no answer.
N_CTX = {"prefill": N_PREFILL + 1, "decode": N_DECODE + 1, "call": 256, "stream": 256}
CONTESTS = {
    "prefill": (THEIRS, OURS),
    "decode": (THEIRS, OURS),
    "call": (OURS, "llama-cpp-python"),
    "stream": (OURS, "llama-cpp-python", "xllamacpp"),
}

Rates = dict[str, dict[str, list[float]]]


def one_rate(setup: Setup, test: str, peer: str) -> float:
    """Tokens per second of one process: the median of its repetitions."""
    count = {"prefill": N_PREFILL, "decode": N_DECODE}.get(test)
    if peer == THEIRS:
        assert count is not None
        return median(setup.llama_bench(test, count, REPETITIONS))
    size = {} if count is None else {"n": count}
    done = setup.work(peer, N_CTX[test], measure="rate", test=test, repetitions=REPETITIONS, **size)
    return float(median(done["rates"]))


def one_round(setup: Setup, rates: Rates, step: int) -> None:
    """Every test once for every peer, in their order or (step -1) the other way round."""
    for test, peers in CONTESTS.items():
        present = [peer for peer in peers if peer in setup.programs][::step]
        found, others = undisturbed(
            lambda: {peer: one_rate(setup, test, peer) for peer in present}  # noqa: B023
        )
        for peer, rate in found.items():
            rates[test].setdefault(peer, []).append(rate)
        line = ", ".join(f"{peer} {rate:.1f}" for peer, rate in found.items())
        print(f"  {test:8}{line}   (others {others:.0%})", flush=True)


def summary(rates: Rates) -> dict[str, float]:
    """Ratios to llama-bench, of medians within rounds; a stream is compared with its decode."""
    base = {"prefill": "prefill", "decode": "decode", "call": "decode", "stream": "decode"}
    ratios = {}
    for test, peers in rates.items():
        theirs = rates[base[test]].get(THEIRS)
        for peer, found in peers.items():
            if theirs and peer != THEIRS:
                ratios[f"{peer} {test} / {THEIRS} {base[test]}"] = median(
                    a / b for a, b in zip(found, theirs, strict=True)
                )
    ours = rates["stream"][OURS], rates["call"][OURS]
    ratios[f"{OURS} stream / call"] = median(a / b for a, b in zip(*ours, strict=True))
    return ratios


def main() -> None:
    """Run everything, print it, and write JSON and picture."""
    setup, options = parse_arguments(__doc__, peers=RIVALS, rounds=5)
    rates: Rates = {test: {} for test in CONTESTS}
    for i in range(options.rounds):
        print(f"round {i + 1} of {options.rounds}, {setup.n_threads} threads, {setup.model.name}")
        one_round(setup, rates, step=-1 if i % 2 else 1)
    ratios = summary(rates)
    print("\nmedians, tokens per second")
    for test, peers in rates.items():
        for peer, found in peers.items():
            print(f"  {test:8}{peer:18}{median(found):8.1f}")
    print("\nratios")
    for what, ratio in ratios.items():
        wanted = what.startswith((f"{OURS} prefill", f"{OURS} decode"))
        verdict = "" if not wanted else "  ok" if ratio >= TARGET else f"  below {TARGET}"
        print(f"  {what:48}{ratio:6.3f}{verdict}")
    print()
    sampled = sampling.measure()
    write_results(
        options.output / "decode.json",
        {
            "model": setup.model.name,
            "threads": setup.n_threads,
            "tokens_per_second": rates,
            "ratios": ratios,
            "sampling_us": sampled,
        },
    )
    panels = {test: {p: median(r) for p, r in peers.items()} for test, peers in rates.items()}
    draw_bars(options.output / "decode.png", panels, "tokens per second")


if __name__ == "__main__":
    main()
