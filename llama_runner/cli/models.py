"""``llama-runner models``, ``pull``, ``verify`` and ``rm``: manage the models with a name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from llama_runner.cli.output import bar, byte_size, note, print_json, print_table, printable

if TYPE_CHECKING:
    from llama_runner.loaders import CatalogueEntry

__all__ = ["models", "pull", "rm", "verify"]

STAGES = {"download": "downloading", "unpack": "unpacking", "verify": "verifying"}


@click.command()
@click.argument("name", metavar="NAME|hf:OWNER/REPO:FILE")
def pull(name: str) -> None:
    """Fetch a model, unless it is already there.

    The fetched file is verified. The path of the model's file is printed.
    """
    from llama_runner.loaders import pull

    with _clean_end(), bar(name, count_bytes=True) as update:
        path = pull(name, lambda done, total, stage: update(done, total, STAGES.get(stage, stage)))
    note(f"{name} is ready")
    click.echo(os.fspath(path))


@contextmanager
def _clean_end() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a running pip is ended together with us."""

    def end(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("name", metavar="NAME")
def verify(name: str) -> None:
    """Verify a model file against its description.

    The file's length, SHA-256 and header are compared with the description, and the header is
    checked for what llama.cpp can take.
    """
    from llama_runner.loaders import find_model, validate_model, verify
    from llama_runner.loaders.catalogue.catalogue import find_entry

    with bar(name, count_bytes=True) as update:
        verify(name, lambda done, total, stage: update(done, total, STAGES.get(stage, stage)))
    validate_model(find_model(name))
    metadata = find_entry(name).metadata
    if metadata.hashes:
        note(f"{name} is intact")
    else:
        note(f"{name} has a sound header; its description has no sha256 to check the rest")


@click.command()
@click.argument("name", metavar="NAME")
def rm(name: str) -> None:
    """Delete a pulled model's files. The model keeps its name and can be pulled again."""
    from llama_runner.loaders import remove

    note(f"removed {name}: {byte_size(remove(name))} freed")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the models that have a name.

    * marks the default model and + a model on this machine. ~ marks one that an interrupted pull
    left incomplete: pull completes it, rm deletes it. ! marks an invalid description.
    """
    from llama_runner.loaders import list_models
    from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL

    entries = list_models()
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "installed": entry.whole,
                    "interrupted": _interrupted(entry),
                    "problem": entry.problem,
                    "default": entry.name == DEFAULT_MODEL,
                    "path": entry.path,
                    **entry.metadata.model_dump(
                        mode="json", exclude={"name", "path"}, exclude_defaults=True
                    ),
                }
                for entry in entries
            ]
        )
        return
    rows = [("", "NAME", "SIZE", "ARCHITECTURE", "QUANTIZATION", "CONTEXT")]
    for entry in entries:
        about = entry.metadata
        rows.append(
            (
                _marks(entry),
                entry.name,
                byte_size(about.size) if about.size else "?",
                about.architecture,
                about.quantization or "?",
                f"{about.context_length:,}" if about.context_length else "?",
            )
        )
    print_table(rows, right=(2, 5))
    for entry in entries:
        if entry.problem is not None:
            note(printable(f"broken: {entry.name}: {entry.problem}"))


def _marks(entry: CatalogueEntry) -> str:
    from llama_runner.loaders.catalogue.catalogue import DEFAULT_MODEL

    return (
        "*" * (entry.name == DEFAULT_MODEL)
        + "+" * entry.whole
        + "~" * _interrupted(entry)
        + "!" * (entry.problem is not None)
    )


def _interrupted(entry: CatalogueEntry) -> bool:
    return entry.problem is None and not entry.whole and entry.bytes_in_cache > 0
