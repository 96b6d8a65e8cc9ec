"""``llama-runner info``: show the metadata of a model file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from llama_runner.cli.output import byte_size, print_json, print_table
from llama_runner.errors import ModelValidationError

if TYPE_CHECKING:
    from llama_runner.loaders import GgufInfo

__all__ = ["info"]

LONGEST_VALUE = 100


@click.command()
@click.argument("model", metavar="PATH|NAME", required=False)
@click.option("--tensors", is_flag=True, help="List the tensors as well.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; NaN and infinity become strings."
)
@click.pass_context
def info(context: click.Context, model: str | None, tensors: bool, as_json: bool) -> None:
    """Show a model's metadata and check whether it is safe to load.

    The exit status is 1 if it is not safe. No weights are read. Without PATH or NAME, the default
    model is shown.
    """
    from llama_runner.loaders import default_model, find_model, read_gguf

    gguf = read_gguf(default_model()[0] if model is None else find_model(model))
    problem, notes = _checked(gguf)
    if as_json:
        print_json(_as_json(gguf, problem, notes, tensors))
    else:
        _print_all(gguf, problem, notes, tensors)
    if problem is not None:
        context.exit(1)


def _print_all(gguf: GgufInfo, problem: str | None, notes: tuple[str, ...], tensors: bool) -> None:
    print_table(_summary(gguf, problem, notes))
    click.echo()
    print_table([(key, _shortened(value)) for key, value in gguf.keys.items()])
    if tensors:
        click.echo()
        rows = [("TENSOR", "TYPE", "SHAPE", "SIZE")]
        for tensor in gguf.tensors:
            shape = " x ".join(map(str, tensor.shape))
            rows.append((tensor.name, tensor.type, shape, byte_size(tensor.nbytes)))
        print_table(rows, right=(3,))


def _checked(gguf: GgufInfo) -> tuple[str | None, tuple[str, ...]]:
    """Return why the file must not be loaded, or None, and notes on harmless oddities."""
    from llama_runner.loaders import validate_model

    try:
        return None, validate_model(gguf.path).notes
    except ModelValidationError as error:
        return str(error), ()


def _summary(gguf: GgufInfo, problem: str | None, notes: tuple[str, ...]) -> list[tuple[str, str]]:
    context = f"{gguf.context_length:,} tokens" if gguf.context_length else "?"
    vocabulary = f"{gguf.vocab_size:,} tokens" if gguf.vocab_size else "?"
    rows = [
        ("file", os.fspath(gguf.path)),
        ("size", byte_size(gguf.size)),
        ("name", gguf.name or "?"),
        ("architecture", gguf.architecture or "?"),
        ("parameters", f"{gguf.n_params:,}"),
        ("quantization", gguf.quantization or "?"),
        ("context length", context),
        ("vocabulary", vocabulary),
        ("chat template", "yes" if gguf.chat_template else "no"),
        ("tensors", f"{len(gguf.tensors):,}"),
        ("header", "sound" if problem is None else f"not valid: {problem}"),
    ]
    rows += [("note", note) for note in notes]
    if gguf.parts:
        rows.append(("split", f"{len(gguf.parts)} files, shown as one model"))
        rows += [("part", f"{part.path.name} ({byte_size(part.size)})") for part in gguf.parts]
    return rows


def _shortened(value: object) -> str:
    from llama_runner.loaders import GgufArray

    if isinstance(value, GgufArray):
        return f"{len(value):,} x {value.element_type}"
    text = str(value)
    return (
        text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ... ({len(text):,} long)"
    )


def _as_json(
    gguf: GgufInfo, problem: str | None, notes: tuple[str, ...], tensors: bool
) -> dict[str, Any]:
    from llama_runner.loaders import GgufArray

    found: dict[str, Any] = {
        "path": gguf.path,
        "size": gguf.size,
        "name": gguf.name,
        "architecture": gguf.architecture,
        "parameters": gguf.n_params,
        "quantization": gguf.quantization,
        "context_length": gguf.context_length,
        "vocab_size": gguf.vocab_size,
        "split_count": gguf.split_count,
        "parts": [{"path": part.path, "size": part.size} for part in gguf.parts],
        "problem": problem,
        "notes": notes,
        "keys": {
            key: {"type": value.element_type, "length": len(value)}
            if isinstance(value, GgufArray)
            else value
            for key, value in gguf.keys.items()
        },
    }
    if tensors:
        found["tensors"] = [tensor._asdict() for tensor in gguf.tensors]
    return found
