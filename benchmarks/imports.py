"""How long importing takes: fresh processes, less what a bare interpreter takes.

The imports take turns, and each figure is the median of all of its turns. ``numpy`` is there to
compare with.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from _peers import parse_arguments, undisturbed
from _report import write_results

STATEMENTS = {
    "import llama_runner": 60.0,
    "from llama_runner import LlamaRunner": 350.0,
    "import numpy": None,
    "import llama_runner._core": None,
    "import pydantic": None,
}
"""What is imported, and the most milliseconds it may take."""


def milliseconds(statement: str) -> float:
    """Wall time of a fresh interpreter that does this alone."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return (time.perf_counter() - start) * 1e3


def one_round() -> dict[str, float]:
    """Each statement once, less the bare interpreter's time."""
    bare = milliseconds("pass")
    return {statement: milliseconds(statement) - bare for statement in STATEMENTS}


def main() -> None:
    """Measure, print, and write JSON."""
    _, options = parse_arguments(__doc__, peers=(), rounds=10)
    one_round()  # files into the page cache
    rounds = [undisturbed(one_round)[0] for _ in range(options.rounds)]
    medians = {statement: median(r[statement] for r in rounds) for statement in STATEMENTS}
    for statement, ms in medians.items():
        limit = STATEMENTS[statement]
        verdict = "" if limit is None else f"at most {limit:g}: {'ok' if ms <= limit else 'above'}"
        print(f"  {statement:38}{ms:7.1f} ms   {verdict}")
    write_results(options.output / "imports.json", {"milliseconds": medians, "rounds": rounds})


if __name__ == "__main__":
    main()
