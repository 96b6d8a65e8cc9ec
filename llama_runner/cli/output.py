"""Printing of results, notes and progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import click

__all__ = ["bar", "byte_size", "note", "print_json", "print_table", "printable"]

Update = Callable[[float, float, str], None]
"""Called with the amount done, the total amount and the name of the stage."""


def note(text: str) -> None:
    """Print something that is not the command's result, on standard error."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """Print a result as JSON. Numbers that JSON does not have become strings: "nan", "inf"."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def print_table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print a table; the columns whose indices are in ``right`` are aligned to the right."""
    lines = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Return the text as one line without control codes, which a model file could contain."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def byte_size(count: int) -> str:
    """Format a number of bytes for reading."""
    from rich.filesize import decimal

    return decimal(count)


@contextmanager
def bar(name: str, *, count_bytes: bool) -> Iterator[Update]:
    """Show a progress bar on a terminal; elsewhere print one line for each stage."""
    if not sys.stderr.isatty():
        yield _plain_progress(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    amounts = (DownloadColumn(), TransferSpeedColumn()) if count_bytes else ()
    percent = TextColumn("{task.percentage:>3.0f} %")
    label = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    with Progress(label, BarColumn(), percent, *amounts, console=console, transient=True) as shown:
        task = shown.add_task(printable(name), total=None)

        def update(done: float, total: float, doing: str) -> None:
            description = printable(f"{doing} {name}")
            shown.update(task, completed=done, total=total or None, description=description)

        yield update


def _plain_progress(name: str) -> Update:
    announced = set()

    def update(done: float, total: float, doing: str) -> None:
        if doing not in announced:
            announced.add(doing)
            note(f"{doing} {name}")

    return update
