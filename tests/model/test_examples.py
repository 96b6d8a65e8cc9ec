"""The programs in examples/ run with the weights that the tests have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str | Path, model: Path, questions: str = "") -> str:
    """Return what a program prints; it may not fail."""
    command = [sys.executable, EXAMPLES / f"{name}.py", "--model", model, *arguments]
    done = subprocess.run(command, input=questions, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat_answers_answers_again_and_goes_back(model_path: Path) -> None:
    questions = "What is the capital of Japan?\n/again\n/undo\nAnd of Italy?\n/quit\n"
    printed = run("chat", "--max-tokens", "4", model=model_path, questions=questions)
    assert printed.count("> ") == 5
    assert "error" not in printed


def test_agents_reuse_what_they_share(model_path: Path) -> None:
    printed = run("agents", "--rounds", "1", "--max-tokens", "8", model=model_path)
    speakers = [line.split(":")[0] for line in printed.splitlines() if "tokens reused" in line]
    assert len(speakers) == printed.count("tokens reused") == 3
    assert "[0 tokens reused]" not in printed


def test_best_of_chooses_one(model_path: Path) -> None:
    printed = run("best_of", "-n", "2", "--max-tokens", "8", model=model_path)
    assert printed.splitlines()[-1] in ("best: 0", "best: 1")


def test_summaries_take_the_place_of_old_turns(model_path: Path) -> None:
    printed = run("summarise", "--n-ctx", "256", "--max-tokens", "40", model=model_path)
    assert "summary" in printed


def test_a_saved_conversation_goes_on(model_path: Path, tmp_path: Path) -> None:
    place = ("--file", tmp_path / "talk.session", "--max-tokens", "4")
    first = run("save_and_load", "What is the capital of Japan?", *place, model=model_path)
    assert "[0 tokens reused" in first
    second = run("save_and_load", "And of Italy?", *place, model=model_path)
    assert "[0 tokens reused" not in second


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_is_tested(path: Path) -> None:
    assert f'run("{path.stem}"' in Path(__file__).read_text(encoding="utf-8")
