"""``llama-runner models``, ``pull``, ``verify`` and ``rm``: what can be called by name."""

from __future__ import annotations

import os

import click

from llama_runner.cli.output import bar, byte_size, note, print_json, print_table

__all__ = ["models", "pull", "rm", "verify"]

STAGES = {"download": "downloading", "unpack": "unpacking", "verify": "verifying"}


@click.command()
@click.argument("name", metavar="NAME|hf:OWNER/REPO:FILE")
def pull(name: str) -> None:
    """Fetch a model.

    It is verified, and the path of its file is printed.
    """
    from llama_runner.loaders import pull

    with bar(name, count_bytes=True) as update:
        path = pull(name, lambda done, total, stage: update(done, total, STAGES.get(stage, stage)))
    note(f"{name} is ready")
    click.echo(os.fspath(path))


@click.command()
@click.argument("name", metavar="NAME")
def verify(name: str) -> None:
    """Look whether a model's file is what it should be.

    Its length, its SHA-256 and its header are compared with its description, and its header with
    what llama.cpp can take.
    """
    from llama_runner.loaders import find_model, validate_model, verify

    with bar(name, count_bytes=True) as update:
        verify(name, lambda done, total, stage: update(done, total, STAGES.get(stage, stage)))
    validate_model(find_model(name))
    note(f"{name} is whole")


@click.command()
@click.argument("name", metavar="NAME")
def rm(name: str) -> None:
    """Delete a pulled model's files. It keeps its name and can be pulled again."""
    from llama_runner.loaders import remove

    note(f"{name} is gone: {byte_size(remove(name))} freed")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def models(as_json: bool) -> None:
    """List the models that have a name.

    * is the default model, + is on this machine.
    """
    from llama_runner.loaders import list_models
    from llama_runner.loaders.catalogue import DEFAULT_MODEL

    entries = list_models()
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "installed": entry.installed,
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
                "*" * (entry.name == DEFAULT_MODEL) + "+" * entry.installed,
                entry.name,
                byte_size(about.size) if about.size else "?",
                about.architecture,
                about.quantization or "?",
                f"{about.context_length:,}" if about.context_length else "?",
            )
        )
    print_table(rows, right=(2, 5))
