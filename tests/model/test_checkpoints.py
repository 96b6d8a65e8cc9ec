"""Copies of states that cannot be rewound: going back computes again from the nearest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_runner import Completion, LlamaRunner, Session

ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
SHORTENING = """
{%- for m in messages %}<{{ m.role }}>
{%- if m.role == "assistant" and not loop.last %}(said)
{%- else %}{{ m.content }}{% endif %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}
"""


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_state_from_before_an_answer_serves_where_that_changes(
    tiny_paths: dict[str, Path], kind: str, streamed: bool
) -> None:
    """As with templates that leave out what was thought, or where an answer is asked for again."""
    options: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "chat_template": SHORTENING}

    def answer(session: Session, prompt: list[dict[str, Any]]) -> Completion:
        if not streamed:
            return session.generate(prompt, 8, **ENDLESS)
        with session.stream(prompt, 8, **ENDLESS) as stream:
            list(stream)
        assert stream.completion is not None
        return stream.completion

    with LlamaRunner(tiny_paths[kind], **options) as runner, runner.session() as session:
        opening = [{"role": "system", "content": "abc"}, {"role": "user", "content": "the a " * 40}]
        answer(session, opening)
        for _ in range(3):
            n_before = session.info().used
            receipt = answer(session, [{"role": "user", "content": "x"}]).receipt
            assert receipt.reused > n_before - 20
        given = session.messages[:-1]
        again = answer(session, given)
        assert again.receipt.recomputed < 30
        assert again.tokens == answer(runner.session(), given).tokens
