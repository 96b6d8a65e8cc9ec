"""No chat template of a model file kills, hangs or bloats the process that loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llama_runner._support.hardware import usable_cpus
from tests.fuzz.template_attacks import HARMLESS, REFUSED
from tests.gguf_files import STRING
from tests.unit.loaders.model_files import tiny_llama

# Loads each file in a process of its own, and then shows it a message. The parent tells how the
# process ended and the most memory that it had resident, in kilobytes.
CHILD = """
import json, os, signal, sys
from llama_runner import LlamaRunner
from llama_runner._core import ChatTemplate
from llama_runner.errors import ChatTemplateError

def load(path):
    with LlamaRunner(path, vocab_only=True) as runner:
        try:
            template = ChatTemplate(runner.model)
        except ChatTemplateError as error:
            return str(error)
        try:
            template.render([{"role": "user", "content": "hi"}])
        except ChatTemplateError as error:
            return str(error)
    return None

for path in sys.argv[1:]:
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.write(to_parent, json.dumps(load(path)).encode())
        os._exit(0)
    os.close(to_parent)
    _, status, usage = os.wait4(child, 0)
    said = os.read(from_child, 1 << 16)
    os.close(from_child)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss, said.decode()]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By the attack's name: exit code, peak memory in kilobytes, and the error or null as JSON."""
    folder = tmp_path_factory.mktemp("templates")
    templates = {name: template for name, (template, _) in REFUSED.items()} | HARMLESS

    def load(names: list[str]) -> dict[str, list[Any]]:
        paths = []
        for name in names:
            model = tiny_llama().with_keys(tokenizer__chat_template=(STRING, templates[name]))
            paths.append(str(model.write(folder / f"{len(paths)} of {names[0]}.gguf")))
        command = [sys.executable, "-c", CHILD, *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))

    names, n_children = list(templates), usable_cpus()
    with ThreadPoolExecutor(n_children) as pool:
        shares = pool.map(load, [names[i::n_children] for i in range(n_children)])
        return dict(item for share in shares for item in share.items())


@pytest.mark.parametrize("name", [*REFUSED, *HARMLESS])
def test_the_process_lives_and_keeps_small(outcomes: dict[str, list[Any]], name: str) -> None:
    code, peak, _ = outcomes[name]
    assert code == 0
    assert peak < 300_000


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_says_what_the_template_does(outcomes: dict[str, list[Any]], name: str) -> None:
    said = json.loads(outcomes[name][2])
    assert said is not None
    assert "\n" not in said
    assert any(reason in said for reason in REFUSED[name][1]), said
