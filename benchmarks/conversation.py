"""A conversation of many turns in a small context, and what sessions cost beside generating.

Each peer asks the same short questions, one turn after another, and keeps the conversation as it
is meant to: this package in a session, others by giving all messages each time. Two curves: the
time to the first text of each turn, and resident memory. A peer that fails has its last turn in
the figures and its error in the results.

Then, on this package alone: looking at a context, marks, forks, saving and loading, against
computing the same tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from _peers import OURS, Setup, parse_arguments, undisturbed
from _report import draw_curves, write_results

if TYPE_CHECKING:
    from llama_runner import LlamaRunner
    from llama_runner.conversation.intake import Reuse
    from llama_runner.params import KvLayout

N_CTX = 2048
N_TOKENS = 2000
PLAIN = "flash_attention=False"
TARGETS = {
    "turn 1,000 / turn 10": 1.5,
    f"the same, {PLAIN}": 1.5,
    "growth from turn 100 on, MiB": 4.0,
    "info, us": 50.0,
    "fork of 2,000 tokens, unified, us": 200.0,
    "fork of 2,000 tokens, streams, us": 30_000.0,
    "mark, us": 100.0,
    "rewind, us": 100.0,
    "save + load / computing": 0.2,
    "system message changed, chunks / prefix": 0.2,
}


def around(values: list[float], turn: int) -> float:
    """The median over the nine turns around one."""
    return median(values[max(0, turn - 5) : turn + 4])


def growth(first_ms: list[float]) -> float:
    """How much longer the last turn takes than the tenth."""
    return around(first_ms, len(first_ms)) / around(first_ms, 10)


def microseconds(call: Callable[[], Any], n: int = 200) -> float:
    """Median of n calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return median(times)


def sessions(model: Path, n_threads: int, kv_layout: KvLayout) -> dict[str, float]:
    """What sessions cost beside generating."""
    from llama_runner import LlamaRunner

    found: dict[str, float] = {}
    ids = [1] + [(7919 * i) % 48_000 + 50 for i in range(1, N_TOKENS)]
    n_seq_max = 2
    n_ctx = N_CTX if kv_layout == "unified" else N_CTX * n_seq_max
    with LlamaRunner(
        model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=n_threads, kv_layout=kv_layout
    ) as runner:
        session = runner.session()
        start = time.perf_counter()
        session.generate(ids, 1, temperature=0)
        computing = time.perf_counter() - start
        forks = []
        for _ in range(5):
            start = time.perf_counter()
            fork = session.fork()
            forks.append((time.perf_counter() - start) * 1e6)
            fork.close()
        found[f"fork of 2,000 tokens, {kv_layout}, us"] = median(forks)
        if kv_layout == "streams":
            return found
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "session"
            start = time.perf_counter()
            session.save(path)
            saving = time.perf_counter() - start
            session.clear()
            start = time.perf_counter()
            session.load(path)
            receipt = session.generate([5], 1, temperature=0).receipt
            loading = time.perf_counter() - start
        assert receipt.reused >= N_TOKENS - 1
        found["save + load / computing"] = (saving + loading) / computing
        session.clear()
        for i in range(25):
            question = [{"role": "user", "content": f"Tell me something about {i}."}]
            session.generate(question, 16, temperature=0, ignore_eos=True)
        found["info, us"] = microseconds(session.info)
        found["mark, us"] = microseconds(session.mark)
        mark = session.mark()
        found["rewind, us"] = microseconds(lambda: session.rewind(mark))
        session.close()
        ratio = changed(runner, "chunks") / changed(runner, "prefix")
        found["system message changed, chunks / prefix"] = ratio
        return found


def changed(runner: LlamaRunner, reuse: Reuse) -> float:
    """Milliseconds to the first token where the first of 51 messages is another than before."""
    with runner.session("It is 10:15.", reuse=reuse) as session:
        for i in range(25):
            question = [{"role": "user", "content": f"Tell me something about {i}."}]
            session.generate(question, 16, temperature=0, ignore_eos=True)
        times = []
        for minute in range(16, 21):
            system = {"role": "system", "content": f"It is 10:{minute}."}
            given = [system, *session.messages[1:], {"role": "user", "content": "Go on."}]
            times.append(session.generate(given, 1, temperature=0).timings.first_token_ms)
        return median(times)


def conversation(setup: Setup, peer: str, turns: int, **options: Any) -> dict[str, Any]:
    """The curves of one peer, in a process of its own."""
    job = {"measure": "conversation", "turns": turns, "options": options}
    result, _ = undisturbed(lambda: setup.work(peer, N_CTX, **job))
    return result


def describe(peer: str, curve: dict[str, Any]) -> str:
    """One line of what became of a peer."""
    first, n = curve["first_ms"], len(curve["first_ms"])
    line = f"{peer}: {n} turns"
    if n:
        line += f", first text of turn 10 after {around(first, min(10, n)):.1f} ms, of turn {n} "
        line += f"after {around(first, n):.1f} ms, {curve['sizes'][-1] / 2**20:.0f} MiB"
    return line + (f"; then {curve['error']}" if curve["error"] else "")


def main() -> None:
    """Run everything, print it, and write JSON and picture."""
    setup, options = parse_arguments(__doc__, peers=("llama-cpp-python", "xllamacpp"), turns=1000)
    curves = {}
    for peer in setup.programs:
        curves[peer] = conversation(setup, peer, options.turns)
        print(describe(peer, curves[peer]), flush=True)
    # Short prompts on a long context: with flash attention only a patch of ggml keeps them fast.
    curves[PLAIN] = conversation(setup, OURS, options.turns, flash_attention=False)
    print(describe(PLAIN, curves[PLAIN]), flush=True)
    ours = curves[OURS]
    found = {
        "turn 1,000 / turn 10": growth(ours["first_ms"]),
        f"the same, {PLAIN}": growth(curves[PLAIN]["first_ms"]),
        "growth from turn 100 on, MiB": (ours["sizes"][-1] - ours["sizes"][100]) / 2**20,
    }
    found |= sessions(setup.model, setup.n_threads, "unified")
    found |= sessions(setup.model, setup.n_threads, "streams")
    for what, value in found.items():
        verdict = "ok" if value <= TARGETS[what] else f"above {TARGETS[what]:g}"
        print(f"  {what:40}{value:10.2f}  {verdict}")
    write_results(options.output / "conversation.json", {"curves": curves, "figures": found})
    draw_curves(
        options.output / "conversation.png",
        {
            "first text, ms": {peer: curve["first_ms"] for peer, curve in curves.items()},
            "resident, MiB": {
                peer: [size / 2**20 for size in curve["sizes"]] for peer, curve in curves.items()
            },
        },
        "turn",
    )


if __name__ == "__main__":
    main()
