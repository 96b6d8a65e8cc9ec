"""A program that closes a runner while threads make every call that there is.

Arguments: model file, adapter file, KV layout, a seed, and the number of rounds. It prints nothing
and ends with status 0 where only errors came out that the calls document.
"""

from __future__ import annotations

import random
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llama_runner import LlamaRunner, Session, build_batch
from llama_runner._core import ChatTemplate
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextFullError,
    InvalidParameterError,
)

N_THREADS = 4
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = [{"role": "user", "content": "abc the a"}]
SHORT: dict[str, Any] = {"max_tokens": 3, "ignore_eos": True}
LONG_TEXT = "the abc " * 800

Call = Callable[[], object]


def calls_of(runner: LlamaRunner, session: Session, adapter: str, marks: list[Any]) -> list[Call]:
    """Every public call of a runner, its vocabulary and one of its conversations.

    Args:
        runner: May be closed at any time.
        session: One of its conversations; others have it, too.
        adapter: File of a LoRA adapter.
        marks: Marks and snapshots that were made, for those who go back to them.
    """
    vocab, tokenizer = runner.tokenizer.vocab, runner.tokenizer

    def read(stream: Any) -> None:
        for chunk in stream:
            assert isinstance(chunk.text, str)

    def drop(stream: Any) -> None:
        next(stream)

    def special_tokens() -> None:
        names = "bos eos eot nl pad sep mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep"
        for name in names.split():
            getattr(vocab, name)
        assert vocab.add_bos
        assert not vocab.add_eos

    def piecewise() -> None:
        detokenizer = tokenizer.detokenizer()
        for token in tokenizer.tokenize("abc 漢字 👩‍🚀"):
            detokenizer.feed(token)
        detokenizer.finish()

    def describe() -> None:
        model = runner.model
        assert model.metadata["general.architecture"] in model.description
        numbers = model.n_layer, model.n_embd, model.n_ctx_train, model.size, model.n_params
        assert all((*numbers, model.memory_kind, len(vocab)))
        assert all(map(repr, (model, vocab, runner, session)))
        assert runner.chat_template == TEMPLATE

    def load_adapter() -> None:
        name = runner.load_lora(adapter, f"{threading.get_ident()}-{random.random()}")
        runner.generate_stateless("abc", lora={name: 0.5}, **SHORT)

    def fork() -> None:
        child = session.fork()
        child.generate(" a", **SHORT)
        child.close()

    def mark() -> None:
        marks.append((session.mark(), session.snapshot()))

    def go_back() -> None:
        if marks:
            place, snapshot = random.choice(marks)
            session.rewind(place)
            session.restore(snapshot)

    def open_another() -> None:
        with runner.session("abc") as other:
            other.append("the a")
            other.generate(**SHORT)
            other.pause()

    def pin() -> None:
        session.append("abc")
        with suppress(InvalidParameterError):  # another thread has cleared the session
            session.pin()
            session.unpin()

    def batch() -> None:
        build_batch([tokenizer.tokenize("abc"), tokenizer.tokenize("the a")])

    return [
        lambda: runner.generate_stateless("abc", max_tokens=1, ignore_eos=True),
        lambda: runner.generate_stateless(QUESTION, temperature=0, stop="abc", **SHORT),
        lambda: read(runner.stream_stateless("abc", **SHORT)),
        lambda: drop(runner.stream_stateless("abc", **SHORT)),
        lambda: runner.generate_stateful(QUESTION, **SHORT),
        lambda: read(runner.stream_stateful("the a", **SHORT)),
        runner.get_context_info,
        lambda: runner.gc_context(0.1),
        runner.clear_context,
        lambda: runner.tokenize(LONG_TEXT),
        lambda: runner.tokenize_batch(["abc", "漢字", "<|"] * 20),
        lambda: runner.count_tokens("abc the a"),
        lambda: runner.detokenize(range(3, 200)),
        lambda: [vocab.token_to_piece(token) for token in range(40)],
        lambda: [vocab.is_eog(token) or vocab.is_control(token) for token in range(40)],
        lambda: vocab.inside_control("</s>abc"),
        lambda: ChatTemplate(runner.model, TEMPLATE).render(QUESTION),
        special_tokens,
        piecewise,
        describe,
        load_adapter,
        batch,
        lambda: session.generate("the a", **SHORT),
        lambda: session.generate(QUESTION, temperature=0, stop=["b", "the"], **SHORT),
        lambda: read(session.stream(QUESTION, **SHORT)),
        lambda: drop(session.stream("abc", **SHORT)),
        lambda: session.append(QUESTION),
        lambda: session.messages,
        session.info,
        session.cancel,
        lambda: session.gc(0.0),
        lambda: session.gc(0.2, exact=True),
        lambda: session.gc(0.0, dry_run=True),
        session.clear,
        pin,
        session.pause,
        fork,
        mark,
        go_back,
        open_another,
    ]


def work(calls: list[Call], seed: float, failures: list[str]) -> None:
    """Make calls in any order until the runner is closed."""
    order = random.Random(seed)
    while True:
        try:
            order.choice(calls)()
        except ClosedError:
            return
        except (ContextBusyError, ContextFullError):
            pass  # other threads' doing
        except BaseException:
            failures.append(traceback.format_exc())
            return


def main() -> None:
    model, adapter, layout, seed, n_rounds = sys.argv[1:]
    order = random.Random(int(seed))
    failures: list[str] = []
    for _ in range(int(n_rounds)):
        runner = LlamaRunner(
            model,
            n_ctx=1024,
            n_seq_max=3,
            n_threads=1,
            kv_layout=layout,
            chat_template=TEMPLATE,
            validate=False,
        )
        sessions, marks = [runner.session() for _ in range(2)], [[], []]
        threads = [
            threading.Thread(
                target=work,
                args=(
                    calls_of(runner, sessions[i % 2], adapter, marks[i % 2]),
                    order.random(),
                    failures,
                ),
            )
            for i in range(N_THREADS)
        ]
        for thread in threads:
            thread.start()
        threading.Event().wait(order.choice([0, 0.002, 0.01, 0.05, 0.2]))
        runner.close()
        for thread in threads:
            thread.join()
    for failure in failures:
        sys.stderr.write(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
