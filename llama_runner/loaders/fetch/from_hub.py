"""Fetching a model from Hugging Face with huggingface_hub, which resumes broken connections.

After an interrupted pull, the next one continues where it stopped.
"""

from __future__ import annotations

import errno
import re
import shutil
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from llama_runner.errors import DownloadError, MissingDependencyError, ModelError, of_the_call
from llama_runner.loaders.catalogue.catalogue import (
    SIDECAR,
    CatalogueEntry,
    Progress,
    sha256_of,
    verify_files,
)
from llama_runner.loaders.catalogue.description import ModelMetadata
from llama_runner.loaders.catalogue.sources import HubSource
from llama_runner.loaders.gguf.read import part_names

__all__ = ["fetch_from_hub"]


def fetch_from_hub(source: HubSource, entry: CatalogueEntry, progress: Progress) -> None:
    """Download all parts of a model, compare them with its description and put them in place.

    Raises:
        DownloadError: It could not be fetched, or is not the model that was described.
        MissingDependencyError: huggingface_hub is not installed.
    """
    assert entry.folder is not None
    incoming = entry.folder / ".incoming"
    incoming.mkdir(exist_ok=True)
    names = part_names(source.file)
    fetched = [_download(source.repository, name, incoming, progress) for name in names]
    parts = [
        partial.replace(incoming / PurePosixPath(name).name)
        for partial, name in zip(fetched, names, strict=True)
    ]
    try:
        described = _describe(parts, entry, progress)
    except ModelError as error:
        shutil.rmtree(incoming)
        raise DownloadError(f"the download of {entry.name!r} is unusable: {error}") from error
    described.save(entry.folder / SIDECAR)
    # The first part last, so that a model whose first part is there is complete.
    for part in reversed(parts):
        part.replace(entry.path.with_name(part.name))
    shutil.rmtree(incoming)


def _download(repository: str, file: str, folder: Path, progress: Progress) -> Path:
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub is needed to fetch hf: models; run: pip install 'llama-runner[hf]'"
        ) from None
    try:
        # huggingface_hub and the HTTP library below it raise many kinds of errors.
        return _fetch(hub, repository, file, folder, progress)
    except of_the_call(Exception) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"{file} of {repository} could not be fetched from Hugging Face: {reason[0]}; "
            "check the name and the network connection"
        ) from error


def _fetch(hub: Any, repository: str, file: str, folder: Path, progress: Progress) -> Path:
    """Fetch the missing rest of a file.

    Not with ``hf_hub_download``, which loses what it has when it is interrupted.
    """
    client = import_module("huggingface_hub.file_download")
    url = hub.hf_hub_url(repository, file)
    found = hub.get_hf_file_metadata(url)
    headers = dict(hub.utils.build_hf_headers())
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        # Redirected to another host: do not send it the token.
        headers.pop("authorization", None)
    tag = re.sub(r"\W", "", found.etag or "")
    # The tag changes with the content, so a file is never continued with the end of another one.
    # Without a tag, start again: nothing says which content a partial file belongs to.
    target = folder / f"{PurePosixPath(file).name}.{tag}.partial"
    with target.open("ab" if tag else "wb") as partial:
        client.http_get(
            found.location,
            partial,
            resume_size=partial.tell(),
            headers=headers,
            expected_size=found.size,
            tqdm_class=_reporting_to(progress),
        )
    # The tag of a file in Git LFS (all large files are) is its SHA-256.
    if re.fullmatch("[0-9a-f]{64}", tag) and sha256_of(target, progress) != tag:
        target.unlink()
        raise ValueError("the downloaded file does not have the sha256 that the hub gives")
    return target


def _describe(parts: list[Path], entry: CatalogueEntry, progress: Progress) -> ModelMetadata:
    """Describe the fetched model, so that it can be listed and verified."""
    source = entry.metadata.source
    if entry.name != source:  # a user's description; one left by an earlier pull does not count
        verify_files(parts, entry.metadata, progress, "pull it again, or correct the description")
        entry.metadata.check(parts[0])
    found = ModelMetadata.from_gguf(parts[0])
    hashes = tuple(sha256_of(part, progress) for part in parts)
    return found.changed(
        path=entry.path, source=source, sha256=hashes if len(parts) > 1 else hashes[0]
    )


def _reporting_to(progress: Progress) -> type[Any]:
    """Make a progress bar class for huggingface_hub that draws nothing and calls ``progress``."""
    tqdm: Any = import_module("tqdm").tqdm

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            progress(int(self.n), int(self.total or 0), "download")
            return drawn

    return Reporter


class _Nowhere:
    def write(self, text: str) -> None:
        """Drop what the progress bar draws."""

    def flush(self) -> None:
        """Do nothing: nothing is kept."""
