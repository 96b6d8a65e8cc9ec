"""No model, adapter or snapshot ends the process or hangs it: they work, or are refused.

The usual run tries a sample, ``-m slow`` 10,000 models; ``tests/fuzz/survival.py`` runs any number.
"""

from __future__ import annotations

import importlib
import os

import pytest

from tests.fuzz.architectures import RUNNABLE
from tests.fuzz.odd_architectures import architecture_of
from tests.fuzz.survival import JOBS, run_trials

SAMPLES = {"architectures": 300, "adapters": 100, "snapshots": 100}
MANY = {"architectures": 10_000, "adapters": 2_000, "snapshots": 2_000}


@pytest.mark.parametrize("job", JOBS)
def test_no_trial_of_a_sample_ends_the_process(job: str) -> None:
    run(job, SAMPLES[job])


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_no_trial_of_many_ends_the_process(job: str) -> None:
    run(job, MANY[job])


def run(job: str, wanted: int) -> None:
    batches = importlib.import_module(JOBS[job]).batches(range(wanted))
    outcome = run_trials(job, batches, children=os.cpu_count() or 1)
    assert not outcome.deaths, str(outcome)
    assert outcome.counts.total() == wanted
    working = sum(n for word, n in outcome.counts.items() if word in ("ran", "used"))
    assert working > wanted // 50, f"the trials hardly get anywhere: {outcome}"


def test_the_trials_are_of_all_architectures() -> None:
    assert {architecture_of(number) for number in range(MANY["architectures"])} == set(RUNNABLE)
    assert len({architecture_of(number) for number in range(SAMPLES["architectures"])}) > 20
