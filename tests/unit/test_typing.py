"""What a type checker tells a program that uses the public API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_public_api_has_the_types_that_it_says() -> None:
    # --strict also reports a `type: ignore` that is not needed, so a mistake must be caught.
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/typing/public_api.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_type_checkers_find_the_package_from_elsewhere(tmp_path: Path) -> None:
    """Also an editable install, which must be a path and not an import hook."""
    program = tmp_path / "program.py"
    program.write_text(
        "from llama_runner import LlamaRunner\n"
        'reveal_type(LlamaRunner("a").generate_stateless("b"))\n'
    )
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", program.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert 'is "llama_runner.results.Completion"' in answer.stdout, answer.stdout + answer.stderr
