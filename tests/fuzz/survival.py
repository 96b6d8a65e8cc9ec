"""Runs trials in child processes and tells which of them ended their process, or never ended.

A trial is a function of a number: it makes something odd from it, uses it, and says in a word what
became of it. It may raise the package's own errors. Where a child dies, the next one goes on after
the trial that killed it::

    python -m tests.fuzz.survival architectures 10000            # trials 0 to 9,999
    python -m tests.fuzz.survival architectures 10000 --from 20000
    python -m tests.fuzz.survival adapters 1000
    python -m tests.fuzz.survival snapshots 1000
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from llama_runner.errors import LlamaError

__all__ = ["JOBS", "Outcome", "in_rows", "run_trials"]

# By name: the module that has ``trial(number, folder) -> str``.
JOBS = {
    "architectures": "tests.fuzz.odd_architectures",
    "adapters": "tests.fuzz.odd_adapters",
    "snapshots": "tests.fuzz.odd_snapshots",
}
_SECONDS = 60  # of a trial, before it counts as hanging
_MEMORY = 8 << 30  # that a child may take
_TAIL = 400  # characters of a dead child's last words


@dataclass
class Outcome:
    """What became of the trials.

    Attributes:
        counts: How often each word was said.
        deaths: How trials ended their process: number, signal or exit code, last words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    deaths: list[tuple[int, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{sum(self.counts.values())} trials lived: {dict(self.counts.most_common())}"]
        lines += [f"trial {number}: {how}: {words}" for number, how, words in self.deaths]
        return "\n".join(lines)


def run_trials(
    job: str,
    batches: Iterable[Sequence[int]],
    *,
    children: int = 2,
    report: Callable[[str], None] | None = None,
) -> Outcome:
    """Run trials, each batch in a child process of its own.

    Args:
        job: A name of JOBS.
        batches: Numbers of trials; those of one batch may share what they prepare.
        children: How many run at a time.
        report: Called with a line for each death, as it is found.
    """
    outcome = Outcome()

    def work(batch: Sequence[int]) -> None:
        rest = list(batch)
        while rest:
            said, death = _run_child(job, rest)
            outcome.counts.update(said)
            rest = rest[len(said) :]
            if death is None:
                return
            outcome.deaths.append((rest[0], *death))
            if report:
                report(f"trial {rest[0]}: {death[0]}: {death[1]}")
            rest = rest[1:]

    with ThreadPoolExecutor(children) as pool:
        for done in pool.map(work, batches):
            assert done is None
    return outcome


def in_rows(numbers: Iterable[int], length: int) -> list[list[int]]:
    """Group numbers so that 0 to ``length`` - 1 are together, and so on."""
    rows: dict[int, list[int]] = {}
    for number in numbers:
        rows.setdefault(number // length, []).append(number)
    return list(rows.values())


def _run_child(job: str, numbers: Sequence[int]) -> tuple[list[str], tuple[str, str] | None]:
    """The words for the trials that ended, and how the child died, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.survival", job, "--child", folder],
            input=" ".join(map(str, numbers)),
            capture_output=True,
            text=True,
            errors="replace",
            cwd=Path(__file__).parents[2],
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            check=False,
        )
    said = done.stdout.splitlines()
    if done.returncode == 0 and len(said) == len(numbers):
        return said, None
    code = done.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if how == "SIGALRM":
        how = f"no end in {_SECONDS} s"
    return said[: len(numbers) - 1], (how, done.stderr.strip()[-_TAIL:])


def _be_child(job: str, folder: Path) -> None:
    """Run the trials whose numbers standard input has; one line for each that ended."""
    trial = importlib.import_module(JOBS[job]).trial
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    for number in map(int, sys.stdin.read().split()):
        signal.alarm(_SECONDS)
        try:
            word = trial(number, folder)
        except LlamaError as error:
            word = type(error).__name__
            if not str(error) or "\n" in str(error):
                raise AssertionError(f"not one line: {error!r}") from error
        signal.alarm(0)
        print(word, flush=True)


def main() -> int:
    """Run trials, and print what became of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.survival", description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--from", type=int, default=0, dest="start")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _be_child(options.job, options.child)
        return 0
    numbers = range(options.start, options.start + options.count)
    batches = importlib.import_module(JOBS[options.job]).batches(numbers)
    outcome = run_trials(
        options.job,
        batches,
        children=options.children,
        report=lambda line: print(line, flush=True),
    )
    print(outcome)
    return 1 if outcome.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
