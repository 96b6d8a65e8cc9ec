"""Closing a runner while threads use it: each call gives its result or a typed error."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.model.tiny_models import ARCHITECTURES, D_INNER, N_EMBD, N_FF

PROGRAM = Path(__file__).with_name("close_everything.py")
KINDS = ["plain", "swa", "recurrent", "hybrid", "mrope"]

# What crashed: the vocabulary was read while the model could be closed.
WALKING_THE_VOCABULARY = """
import sys, threading
from llama_runner import LlamaRunner
from llama_runner.errors import ClosedError

def work(runner):
    try:
        while True:
            runner.generate_stateless("abc", max_tokens=1, ignore_eos=True)
    except ClosedError:
        pass

for _ in range(60):
    runner = LlamaRunner(sys.argv[1], n_ctx=256, n_threads=1, validate=False)
    threads = [threading.Thread(target=work, args=(runner,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    runner.close()
    for thread in threads:
        thread.join()
"""

# Integers that are made while the native code waits for them, and close the model meanwhile.
CLOSED_INSIDE = """
import sys
from llama_runner import LlamaRunner
from llama_runner.errors import ClosedError
from tests import inside

class Closer:
    def __init__(self, runner):
        self.runner = runner
    def __index__(self):
        self.runner.close()
        return 5

def tries(runner):
    vocab, sequence = runner.tokenizer.vocab, inside.sequence(runner)
    sequence.append([5, 6])
    closer = Closer(runner)
    return {
        "is_eog": lambda: vocab.is_eog(closer),
        "is_control": lambda: vocab.is_control(closer),
        "token_to_piece": lambda: vocab.token_to_piece(closer),
        "detokenize": lambda: vocab.detokenize([closer]),
        "append": lambda: sequence.append([closer]),
        "common_prefix": lambda: sequence.common_prefix([5, closer]),
    }

names = list(tries(LlamaRunner(sys.argv[1], n_ctx=256, validate=False)))
for name in names:
    runner = LlamaRunner(sys.argv[1], n_ctx=256, n_threads=1, validate=False)
    try:
        tries(runner)[name]()
    except ClosedError:
        pass
    assert runner.closed, name
"""


def run(program: list[str], *arguments: object) -> None:
    """Run a program; a signal that ended it is the failure's text."""
    answer = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore::ResourceWarning", *program,
         *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    ended = answer.returncode
    how = signal.Signals(-ended).name if ended < 0 else f"status {ended}"
    assert ended == 0, f"{how}\n{answer.stderr}"
    assert answer.stderr == ""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA adapter for each kind of model."""
    folder = tmp_path_factory.mktemp("closing")
    found = {}
    for kind in KINDS:
        recurrent = kind == "recurrent"
        name, n_out = ("ssm_in", 2 * D_INNER) if recurrent else ("ffn_gate", N_FF)
        found[kind] = path = folder / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURES[kind])
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 1.0)
        writer.add_tensor(f"blk.0.{name}.weight.lora_a", np.ones((2, N_EMBD), np.float32))
        writer.add_tensor(f"blk.0.{name}.weight.lora_b", np.ones((n_out, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return found


def test_the_vocabulary_is_walked_while_another_thread_closes(
    tiny_paths: dict[str, Path],
) -> None:
    run(["-c", WALKING_THE_VOCABULARY], tiny_paths["plain"])


def test_what_an_argument_closes_is_not_used_any_more(tiny_paths: dict[str, Path]) -> None:
    run(["-c", CLOSED_INSIDE], tiny_paths["plain"])


@pytest.mark.parametrize("layout", ["unified", "streams"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_while_another_thread_closes(
    kind: str, layout: str, tiny_paths: dict[str, Path], adapters: dict[str, Path]
) -> None:
    seed = KINDS.index(kind) + len(KINDS) * (layout == "streams")
    run([str(PROGRAM)], tiny_paths[kind], adapters[kind], layout, seed, 20)
