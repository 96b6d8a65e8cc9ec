"""The recipe for answers that are the same to the bit, whatever was computed before or beside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_runner import LlamaRunner, Session
from llama_runner.params import RunnerOptions
from tests import inside

# As in the README.
EXACT: RunnerOptions = {"n_ubatch": 1, "kv_layout": "streams"}
QUESTIONS = ("the a abc", " ab<é", " c 漢字 the", " b")


def logits(session: Session) -> NDArray[np.float32]:
    return np.array(inside.sequence(session).next_logits())


def talk(session: Session, n: int = 6) -> None:
    for question in QUESTIONS:
        session.generate(question, n, temperature=0, ignore_eos=True)


def afresh(path: Path, session: Session, **options: Any) -> NDArray[np.float32]:
    """What a runner of its own computes for the same tokens, all of them new to it."""
    with LlamaRunner(path, n_ctx=1024, n_seq_max=2, **(EXACT | options)) as other:
        return logits_of(other, inside.ledger(session))


def logits_of(runner: LlamaRunner, tokens: Any) -> NDArray[np.float32]:
    with runner.session() as session:
        session.append(tokens)
        return logits(session)


@pytest.mark.parametrize("kind", ["plain", "swa", "recurrent", "hybrid", "mrope"])
@pytest.mark.parametrize("options", [{}, {"flash_attention": False}])
def test_a_conversation_has_the_logits_of_a_fresh_one(
    tiny_paths: dict[str, Path], kind: str, options: Any
) -> None:
    path = tiny_paths[kind]
    with LlamaRunner(path, n_ctx=1024, n_seq_max=2, **(EXACT | options)) as runner:
        one, two, three = (runner.session() for _ in range(3))  # one has no room and is parked
        for session in (one, two, three):
            talk(session)
            session.generate(" abc", 3, temperature=0, ignore_eos=True)
        for session in (one, two, three):
            wanted = afresh(path, session, **options)
            assert (logits(session) == wanted).all()
        mark = one.mark()
        one.generate(" the", 5, temperature=0)
        one.rewind(mark)
        assert (logits(one) == afresh(path, one, **options)).all()


def test_requests_of_many_threads_have_the_answers_that_they_have_alone(
    tiny_paths: dict[str, Path],
) -> None:
    with LlamaRunner(tiny_paths["plain"], n_ctx=2048, **EXACT) as runner:

        def answer(question: str) -> tuple[int, ...]:
            return runner.generate_stateless(question, 30, temperature=0, ignore_eos=True).tokens

        alone = [answer(question) for question in QUESTIONS]
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            assert list(pool.map(answer, QUESTIONS)) == alone


def test_it_holds_with_real_quantized_weights(model_path: Path) -> None:
    options: RunnerOptions = {"n_ctx": 1024, "n_seq_max": 2, **EXACT}
    with LlamaRunner(model_path, **options) as runner, runner.session() as session:
        for question in ("A, B, C,", " One, two, three,"):
            session.generate(question, 4, temperature=0)
        assert session.info().used > 12
        assert (logits(session) == afresh(model_path, session)).all()


def test_it_holds_after_turns_were_dropped_and_the_rest_computed_again(
    tiny_paths: dict[str, Path],
) -> None:
    path = tiny_paths["plain"]
    with LlamaRunner(path, n_ctx=1024, n_seq_max=2, **EXACT) as runner, runner.session() as session:
        talk(session)
        session.gc(0.01, exact=True)
        assert session.info().used < 60
        assert (logits(session) == afresh(path, session)).all()
