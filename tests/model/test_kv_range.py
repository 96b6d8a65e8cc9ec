"""A request whose keys, values or state are too large fails alone and leaves nothing behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner.errors import DecodeError
from tests import inside
from tests.model.tiny_models import OVERFLOWING, write_model

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
# As many as there are slots, so that each is given the cells of one that failed.
GOOD = [[40, 41, 42, 43 + i] * 4 for i in range(3)]
BAD = [5, 6, 7] * 5 + [OVERFLOWING] + [8, 9]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (kind, what, {"flash_attention": flash_attention})
    for kind in ("plain", "swa", "hybrid", "mrope")
    for what in ("key", "value")
    for flash_attention in (True, False)
]
CASES += [
    ("plain", "key", {"kv_type": "q8_0", "flash_attention": True}),
    ("plain", "value", {"kv_type": "q8_0", "flash_attention": True}),
    ("plain", "key", {"kv_type": "f32", "flash_attention": True}),  # computed with as half floats
    ("recurrent", "state", {}),
    ("hybrid", "state", {}),
]


def open_model(
    folder: Path, kind: str, what: str, options: dict[str, Any], **others: Any
) -> LlamaRunner:
    path = write_model(
        folder / "model.gguf",
        kind,
        overflow=what,
        suppressed=[OVERFLOWING],
        one_head=options.get("kv_type") == "q8_0",
    )
    settings = {"n_ctx": 1024, "n_seq_max": 4, "n_threads": 1, "validate": False}
    return LlamaRunner(path, **{**settings, **options, **others})


def answer(runner: LlamaRunner, prompt: list[int]) -> tuple[int, ...] | str:
    try:
        return runner.generate_stateless(prompt, 4, **GREEDY).tokens
    except DecodeError as error:
        return str(error)


@pytest.mark.parametrize("layout", ["unified", "streams"])
@pytest.mark.parametrize(("kind", "what", "options"), CASES)
def test_what_overflows_fails_alone(
    tmp_path: Path, kind: str, what: str, options: dict[str, Any], layout: str
) -> None:
    with open_model(tmp_path, kind, what, options, kv_layout=layout) as runner:
        expected = [answer(runner, prompt) for prompt in GOOD]
        assert not any(isinstance(tokens, str) for tokens in expected)
        for _ in range(4):  # with nobody else: each slot has had it once
            assert isinstance(answer(runner, BAD), str)
        assert [answer(runner, prompt) for prompt in GOOD] == expected
        with ThreadPoolExecutor(4) as pool:
            *others, failed = pool.map(answer, [runner] * 4, [*GOOD, BAD])
        assert others == expected
        assert isinstance(failed, str)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(answer, [runner] * 3, GOOD)) == expected


def test_a_conversation_goes_on_after_it(tmp_path: Path) -> None:
    with open_model(tmp_path, "plain", "key", {}) as runner, runner.session() as session:
        session.generate(GOOD[0], 4, **GREEDY)
        before = session.info().spans
        with pytest.raises(DecodeError, match=r"too large for kv_type='f16'.* kv_type='bf16'"):
            session.generate(BAD, 4, **GREEDY)
        assert session.info().spans == before
        after = session.generate([44, 45], 6, **GREEDY)
        ledger = inside.ledger(session)[:-6]
    with open_model(tmp_path, "plain", "key", {}) as runner:
        assert runner.generate_stateless(ledger, 6, **GREEDY).tokens == after.tokens


@pytest.mark.parametrize("options", [{"kv_type": "bf16"},
                                     {"kv_type": "f32", "flash_attention": False}])  # fmt: skip
def test_a_wider_type_holds_it(tmp_path: Path, options: dict[str, Any]) -> None:
    """As the error says."""
    with open_model(tmp_path, "plain", "key", options) as runner:
        assert len(runner.generate_stateless(BAD, 8, **GREEDY).tokens) == 8


def test_a_prompt_of_several_batches(tmp_path: Path) -> None:
    """What overflows is found in the batch that it is in, though no token is sampled there."""
    with open_model(tmp_path, "plain", "value", {}, n_batch=32, n_ubatch=32) as runner:
        expected = [answer(runner, prompt) for prompt in GOOD]
        with ThreadPoolExecutor(2) as pool:
            failed = pool.submit(answer, runner, BAD + [8, 9] * 200)
            assert [answer(runner, prompt) for prompt in GOOD] == expected
            assert isinstance(failed.result(), str)
        assert [answer(runner, prompt) for prompt in GOOD] == expected
