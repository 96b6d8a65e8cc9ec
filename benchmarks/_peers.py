"""Who is measured, and how one measurement of it is made: each in a fresh process.

A fresh process each time, because where a process happens to get its memory changes its speed by
more than the differences that are looked for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
RESULTS = ROOT / "build" / "benchmarks"
WORKER = Path(__file__).with_name("_worker.py")

OURS, THEIRS = "llama_runner", "llama-bench"
PROGRAMS = {
    OURS: Path(sys.executable),
    THEIRS: BUILD / "bin" / "llama-bench",
    "llama-cpp-python": BUILD / "llama-cpp-python" / "bin" / "python",
    "xllamacpp": BUILD / "xllamacpp" / "bin" / "python",
    "tokenizers": BUILD / "tokenizers" / "bin" / "python",
}
"""Each peer's program: a Python of its own environment, or llama-bench itself."""
RIVALS = (THEIRS, "llama-cpp-python", "xllamacpp")

# When others use more of the machine than this, a measurement waits, or is made again.
BUSY = 0.03
ATTEMPTS = 4
PATIENCE_S = 120

Result = TypeVar("Result")


@dataclass(frozen=True)
class Setup:
    """What all measurements of a run have in common."""

    model: Path
    n_threads: int
    programs: dict[str, Path]

    def work(self, peer: str, n_ctx: int, **job: Any) -> dict[str, Any]:
        """Have a peer's Python do one job of ``_worker.py``."""
        job |= {"peer": peer, "model": str(self.model), "n_ctx": n_ctx, "n_threads": self.n_threads}
        output = run([self.programs[peer], WORKER, json.dumps(job)])
        return dict(json.loads(output.splitlines()[-1]))

    def llama_bench(self, test: str, n: int, repetitions: int) -> list[float]:
        """Tokens per second of llama-bench's ``-p n`` or ``-n n``."""
        counts = {"prefill": ["-p", n, "-n", 0], "decode": ["-p", 0, "-n", n]}[test]
        command = [self.programs[THEIRS], "-m", self.model, "-t", self.n_threads, "-o", "json"]
        (report,) = json.loads(run([*command, *counts, "-r", repetitions]))
        return list(report["samples_ts"])


def run(command: list[Any]) -> str:
    """What a command prints."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def undisturbed(measure: Callable[[], Result]) -> tuple[Result, float]:
    """Measure when the machine is idle, and again where it did not stay so.

    Returns:
        The result, and the share of the machine that other processes used meanwhile, 0 to 1.
    """
    for _ in range(ATTEMPTS):
        waited = time.perf_counter()
        while others_share(lambda: time.sleep(0.5))[1] > BUSY:
            if time.perf_counter() - waited > PATIENCE_S:
                break
        result, share = others_share(measure)
        if share < BUSY:
            break
    return result, share


def others_share(measure: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the share of the machine that other processes used meanwhile."""
    before, start = _busy_seconds(), time.perf_counter()
    result = measure()
    available = (time.perf_counter() - start) * (os.cpu_count() or 1)
    return result, (_busy_seconds() - before) / available


def _busy_seconds() -> float:
    """CPU seconds that this machine has spent so far on anything but our children."""
    times = psutil.cpu_times()._asdict()
    waiting = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in user's as well
    busy = sum(seconds for name, seconds in times.items() if name not in waiting)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(busy - children.ru_utime - children.ru_stime)


def parse_arguments(
    description: str | None, *, peers: tuple[str, ...], **counts: int
) -> tuple[Setup, argparse.Namespace]:
    """The options of all benchmarks, one for each peer's program and one for each count."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file [default: the default model]")
    parser.add_argument("--threads", type=int, default=2, help="of every peer [default: 2]")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    for peer in peers:
        what = f"[default: {PROGRAMS[peer].relative_to(ROOT)}]"
        parser.add_argument(f"--{peer}", type=Path, default=PROGRAMS[peer], help=what)
    for name, value in counts.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"[default: {value}]")
    options = parser.parse_args()
    programs = {OURS: PROGRAMS[OURS]}
    for peer in peers:
        # Not resolved: an environment's Python is a link, and works only by its own name.
        program = Path.cwd() / getattr(options, peer.replace("-", "_"))
        if program.is_file():
            programs[peer] = program
        else:
            print(f"{peer}: skipped, no {program} (benchmarks/README.md says how to get it)")
    return Setup(options.model or default_model(), options.threads, programs), options


def default_model() -> Path:
    """The model that ``llama-runner generate`` would use."""
    from llama_runner.loaders import default_model

    return default_model()[0]
