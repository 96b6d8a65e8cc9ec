"""A process ends in silence and with 0, whatever it leaves open; an abandoned context is named."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest

from llama_runner import LlamaRunner

FLAGS = {"plain": (), "dev mode": ("-X", "dev"), "warnings are errors": ("-W", "error")}


@pytest.fixture(params=FLAGS.values(), ids=FLAGS)
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Options of the interpreter under which an exit must be silent too."""
    return request.param


@pytest.mark.parametrize("kind", ["stateless", "stateful"])
def test_exit_with_a_live_runner_and_a_half_read_stream(python, flags, kind: str) -> None:
    answer = python(
        f"""
        runner = new_runner()
        stream = runner.stream_{kind}("The sky is", 50, **ENDLESS)
        print(type(next(stream)).__name__)
        """,
        *flags,
    )
    assert answer == "Chunk\n"


def test_exit_with_everything_in_a_reference_cycle(python, flags) -> None:
    python(
        """
        class Holder: pass
        holder = Holder()
        holder.itself = holder
        holder.runner = new_runner()
        holder.stream = holder.runner.stream_stateless("The sky is", 50, **ENDLESS)
        next(holder.stream)
        """,
        *flags,
    )


def test_exit_while_daemon_threads_generate(python, flags) -> None:
    python(
        """
        runner = new_runner(n_ctx=4096)
        streams = [runner.stream_stateless("The sky is", 1500, **ENDLESS) for _ in range(2)]
        started = [threading.Event() for _ in streams]

        def consume(stream, event):
            for _ in stream:
                event.set()

        for pair in zip(streams, started):
            threading.Thread(target=consume, args=pair, daemon=True).start()
        for event in started:
            event.wait()
        """,
        *flags,
    )


def test_exit_while_a_daemon_thread_reads_its_prompt(python, flags) -> None:
    python(
        """
        runner = new_runner(n_ctx=4096, n_ubatch=2048)
        generate = lambda: runner.generate_stateless("The sky is blue. " * 500, 1)
        threading.Thread(target=generate, daemon=True).start()
        wait_for_computing()
        """,
        *flags,
    )


@pytest.mark.parametrize("level", ["None", "'debug'"])
def test_exit_while_daemon_threads_load(python, flags, level: str) -> None:
    """They may ask for Python at any moment of it: to report progress, or to log a line."""
    python(
        f"""
        from llama_runner import set_log_level
        from llama_runner._core import Model

        set_log_level({level})
        begun = threading.Event()

        def report(fraction):
            begun.set()
            time.sleep(0.0002)

        def load():
            while True:
                Model(sys.argv[1], repack=False, progress=report).close()

        class SlowToGo:
            def __del__(self):
                end = time.monotonic() + 0.1
                while time.monotonic() < end:
                    pass

        sys.modules["slow"] = SlowToGo()
        for _ in range(2):
            threading.Thread(target=load, daemon=True).start()
        begun.wait()
        """,
        *flags,
    )


def test_exit_of_a_child_of_a_process_that_loads(python) -> None:
    """What a thread of the parent does in Python is nothing that a child waits for."""
    answer = python(
        """
        inside, go_on = threading.Event(), threading.Event()

        def report(fraction):
            inside.set()
            go_on.wait()

        thread = threading.Thread(target=lambda: new_runner(progress=report).close())
        thread.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        print(os.waitpid(child, 0)[1])
        go_on.set()
        thread.join()
        """
    )
    assert answer == "0\n"


def test_exit_while_a_callback_waits_for_ever(python) -> None:
    python(
        """
        inside = threading.Event()

        def report(fraction):
            inside.set()
            threading.Event().wait()

        load = lambda: new_runner(progress=report)
        threading.Thread(target=load, daemon=True).start()
        inside.wait()
        """
    )


def collected_warnings(abandon) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        abandon()
        gc.collect()
    return [f"{w.category.__name__}: {w.message}" for w in caught]


def test_abandoned_context_is_a_resource_warning(model_path: Path) -> None:
    def abandon() -> None:
        LlamaRunner(model_path, n_ctx=512, n_threads=1)

    (message,) = collected_warnings(abandon)
    assert message.startswith("ResourceWarning: <Context n_ctx=512 ")
    assert message.endswith("was never closed: use close() or 'with'")


def test_what_was_closed_or_has_no_context_is_no_warning(model_path: Path) -> None:
    def use_well() -> None:
        LlamaRunner(model_path, vocab_only=True)
        with LlamaRunner(model_path, n_ctx=512, n_threads=1) as runner:
            stream = runner.stream_stateless("The sky is", 5)
            next(stream)
        LlamaRunner(model_path, n_ctx=512, n_threads=1).close()

    assert collected_warnings(use_well) == []


def test_a_state_saved_at_exit_is_whole(python) -> None:
    """Cells that a collection has moved are moved before they are saved, however late that is."""
    answer = python(
        """
        import atexit

        def save():
            print(sequence.save_state()[0] == expected)

        from llama_runner._core import Context, Model, _stop_all_loops

        atexit.unregister(_stop_all_loops)
        atexit.register(save)
        atexit.register(_stop_all_loops)  # as if the core had been imported later: it comes first

        model = Model(sys.argv[1])

        def collected():
            sequence = Context(model, n_ctx=512).new_sequence()
            sequence.append(list(range(100, 400)))
            sequence.next_logits()
            assert sequence.remove(5, 15) == "shift"
            return sequence

        expected = collected().save_state()[0]
        sequence = collected()
        """,
        "-W",
        "ignore::ResourceWarning",
    )
    assert answer == "True\n"
