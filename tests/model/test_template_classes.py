"""Each class of chat template on each kind of memory: conversations go on and stay true to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.prompts.chat_format import BREAK
from tests import inside
from tests.model.talk import assistant, greedy, question, user

N_CTX = 512
OPEN = "{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {
    "plain": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}" + OPEN,
    "the last answer is shown otherwise": (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    ),
    "the system's text is in the first question": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content + '\n\n' %}{% else %}<{{ m.role }}>{{ ns.system }}"
        "{% set ns.system = '' %}{{ m.content }}</s>{% endif %}{% endfor %}" + OPEN
    ),
    "the system's text is in the last question": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% for m in rest %}<{{ m.role }}>"
        "{% if m.role == 'user' and loop.index0 >= rest|length - 1"
        " and rest|length < messages|length %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}</s>{% endfor %}" + OPEN
    ),
    "an answer is closed by the next question": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '</s>' if not loop.first and messages[loop.index0 - 1].role"
        " == 'assistant' }}[Q]{{ m.content }}[/Q]{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "something follows the last message": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% else %}<end>{% endif %}"
    ),
    "users and assistants alternate": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% if rest|length < messages|length %}<system>{{ messages[0].content }}</s>{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('no turn') }}{% endif %}<{{ m.role }}>{{ m.content | trim }}</s>"
        "{% endfor %}" + OPEN
    ),
}
MEMORIES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"kv_layout": "streams"}),
    ("swa", {"swa_full": False}),
    ("swa", {}),
    ("recurrent", {}),
    ("hybrid", {"kv_layout": "streams"}),
    ("mrope", {}),
]


def compared(text: bytes) -> bytes:
    """Leave out what the vocabulary puts before a text: spaces, and a BOS."""
    return text.replace(b" ", b"").removeprefix(b"<s>")


def check(runner: LlamaRunner, session: Session) -> None:
    """The memory is what the template makes of the messages, and the cells are of these tokens."""
    *asked, answer = session.messages
    ledger = inside.ledger(session)
    expected = inside.chat(runner).render(asked).data.replace(BREAK, b"")
    assert compared(inside.chat(runner).vocab.detokenize(ledger)).startswith(compared(expected))
    assert answer["role"] == "assistant"
    assert sum(span.tokens for span in session.info().spans) == len(ledger)


@pytest.mark.parametrize("streamed", [False, True], ids=["call", "stream"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
@pytest.mark.parametrize(
    ("kind", "options"), MEMORIES, ids=[f"{kind}-{len(options)}" for kind, options in MEMORIES]
)
def test_a_conversation_goes_on(
    tiny_paths: dict[str, Path],
    kind: str,
    options: dict[str, Any],
    template: str,
    streamed: bool,
) -> None:
    n_seq_max = 2
    n_ctx = N_CTX * (n_seq_max if options.get("kv_layout") == "streams" else 1)
    has_system = not template.startswith("{{ bos_token }}")
    with (
        LlamaRunner(
            tiny_paths[kind],
            n_ctx=n_ctx,
            n_seq_max=n_seq_max,
            n_threads=1,
            kv_type="f32",
            flash_attention=False,
            chat_template=template,
            **options,
        ) as runner,
        runner.session("Be wise." if has_system else None) as session,
    ):
        n_collections, n_before = 0, 0
        for i in range(14):
            asked = question(f"Question {i}: what is {i} plus {i}?")
            if streamed:
                with session.stream(asked, 6, **greedy(ignore_eos=True)) as stream:
                    for _ in stream:
                        pass
            else:
                session.generate(asked, 6, **greedy(ignore_eos=True))
            check(runner, session)
            assert session.messages[-2] == asked[0]
            assert not has_system or b"Bewise." in inside.chat(runner).vocab.detokenize(
                inside.ledger(session)
            ).replace(b" ", b"")
            n_collections += len(session.messages) < n_before + 2
            n_before = len(session.messages)
        assert n_collections
        # Computed afresh, the model would say the same next.
        session.gc(0.0, exact=True)
        check(runner, session)
        logits = inside.sequence(session).next_logits()
        fresh = inside.context(runner).new_sequence()
        fresh.append(inside.ledger(session))
        expected = fresh.next_logits()
        fresh.close()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * np.ptp(expected))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_a_history_loses_its_oldest_turns(tiny_paths: dict[str, Path], template: str) -> None:
    given = [m for i in range(30) for m in (user(f"What is {i}?"), assistant(f"It is {i}."))]
    with (
        LlamaRunner(
            tiny_paths["plain"], n_ctx=N_CTX, n_threads=1, chat_template=template
        ) as runner,
        runner.session() as session,
    ):
        session.generate([*given, *question("And?")], 2, **greedy(ignore_eos=True))
        left = session.messages
        assert left[:-2] == given[-(len(left) - 2) :]
        assert 5 < len(left) < len(given)
        check(runner, session)
        # The whole history again: what was evicted is left out, what is there is not computed.
        again = [*given, *left[-2:], *question("And now?")]
        completion = session.generate(again, 2, **greedy(ignore_eos=True))
        spans = session.info().spans
        newest = sum(span.tokens for span in spans if span.turn >= spans[-1].turn - 1)
        assert completion.receipt.recomputed <= newest
        check(runner, session)
