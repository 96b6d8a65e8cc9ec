"""The examples in the README and in docs/ run and print what they say.

Each Python block of a page runs after those above it, in the same namespace. ``# -> text`` is what
a block prints, with ``...`` for anything. A block is left out only if a comment in front of it says
why: ``<!-- not run: reason -->``.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llama_runner import LlamaRunner
from llama_runner.cli.program import commands
from llama_runner.loaders import read_gguf
from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL, find_entry
from llama_runner.params import ContextParams, GenerationParams, ModelParams

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>\S.*) -->\n)?^```(?P<language>\S*)\n(?P<source>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PRINTED = re.compile(r"# -> (.*)")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# What may be written in a document. Python stands under one name, so that no block is overlooked.
LANGUAGES = {"python", "sh", "json", "text", "jinja"}


@dataclass(frozen=True)
class Block:
    """A fenced block, padded so that its line numbers are the page's."""

    language: str
    source: str
    reason: str | None
    """Why it is not run."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        padding = "\n" * text[: match.start("source")].count("\n")
        yield Block(match["language"], padding + match["source"], match["reason"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runs_python(page: Path) -> bool:
    return any(block.language == "python" and not block.reason for block in blocks(page))


@pytest.fixture
def default_model_in_place(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights under the name that the pages call them by, and an adapter for them."""
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path))
    monkeypatch.delenv("LLAMA_RUNNER_MODEL", raising=False)
    entry = find_entry(DEFAULT_MODEL)
    if model_path.stat().st_size != entry.metadata.size:
        pytest.skip(f"the answers on the pages are those of {DEFAULT_MODEL}, not of {model_path}")
    entry.path.parent.mkdir(parents=True)
    entry.path.symlink_to(model_path)
    monkeypatch.chdir(tmp_path)  # examples write files
    write_adapter(tmp_path / "adapters" / "pirate.gguf", model_path)


def write_adapter(path: Path, base: Path) -> None:
    """Write a LoRA adapter that changes one tensor of a model a little."""
    info = read_gguf(base)
    changed = next(t for t in info.tensors if t.name.endswith("attn_q.weight"))
    n_in, n_out = changed.shape
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, info.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor(f"{changed.name}.lora_a", np.full((1, n_in), 1e-3, np.float32))
    writer.add_tensor(f"{changed.name}.lora_b", np.full((n_out, 1), 1e-3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.usefixtures("default_model_in_place")
@pytest.mark.parametrize("page", [page for page in PAGES if runs_python(page)], ids=name_of)
def test_the_python_examples_print_what_they_say(page: Path) -> None:
    names: dict[str, Any] = {}
    try:
        for block in blocks(page):
            if block.language != "python" or block.reason:
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.source, str(page), "exec"), names)
            expected = "".join(f"{line}\n" for line in PRINTED.findall(block.source))
            if expected:
                matches = doctest.OutputChecker().check_output(expected, out.getvalue(), OPTIONS)
                assert matches, (
                    f"printed\n{out.getvalue()}instead of\n{expected}in\n{block.source.lstrip()}"
                )
    finally:
        for value in names.values():
            if isinstance(value, LlamaRunner):
                value.close()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_in_known_languages(page: Path) -> None:
    directives = {"toctree", "eval-rst", "include", "image", "figure", "note", "warning"}
    known = LANGUAGES | {f"{{{name}}}" for name in directives}
    assert {block.language for block in blocks(page)} <= known


def command_lines() -> list[str]:
    shell = (b.source for page in PAGES for b in blocks(page) if b.language == "sh")
    lines = [line.partition(" #")[0].strip() for source in shell for line in source.splitlines()]
    return sorted({line for line in lines if line.startswith("llama-runner ")})


@pytest.mark.parametrize("line", command_lines())
def test_the_commands_and_options_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    commands.commands[name].make_context(name, arguments)


PARAMETERS = ROOT / "docs" / "reference" / "parameters.md"


def test_the_parameter_tables_name_all_parameters_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PARAMETERS.read_text("utf-8"), re.MULTILINE)
    fields = GenerationParams.model_fields | ModelParams.model_fields | ContextParams.model_fields
    stated = dict(rows)
    assert fields.keys() == stated.keys() & fields.keys()
    for name, field in fields.items():
        if field.default_factory is None:
            assert stated[name] == f"`{field.default!r}`", name
