"""Fetching a model from Hugging Face with huggingface_hub, which repairs broken connections."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import DownloadError, MissingDependencyError, ModelError
from .catalogue import SIDECAR, CatalogueEntry, Progress, sha256_of, verify_file
from .metadata import ModelMetadata
from .reading import part_names
from .sources import HubSource

__all__ = ["fetch_from_hub"]


def fetch_from_hub(source: HubSource, entry: CatalogueEntry, progress: Progress) -> None:
    """Download the model, all parts of it, compare it with its description, and put it in place.

    Raises:
        DownloadError: It could not be fetched, or is not what was promised.
        MissingDependencyError: huggingface_hub is not installed.
    """
    assert entry.folder is not None
    incoming = entry.folder / ".incoming"
    parts = [
        _download(source.repository, name, incoming, progress) for name in part_names(source.file)
    ]
    try:
        described = _describe(parts[0], entry, progress)
    except ModelError as error:
        shutil.rmtree(incoming)
        raise DownloadError(f"what came for {entry.name!r} is of no use: {error}") from error
    described.save(entry.folder / SIDECAR)
    # The first part goes last: its presence is what makes the model count as installed.
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
        return Path(
            hub.hf_hub_download(
                repository, file, local_dir=folder, tqdm_class=_reporting_to(progress)
            )
        )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"{file} of {repository} could not be fetched from Hugging Face: {reason[0]}; "
            "check the name and the network connection"
        ) from error


def _describe(first_part: Path, entry: CatalogueEntry, progress: Progress) -> ModelMetadata:
    """The sidecar that makes the model listable and verifiable."""
    if entry.metadata.sha256 is not None or entry.metadata.size is not None:
        verify_file(first_part, entry.metadata, progress)
        entry.metadata.check(first_part)
    found = ModelMetadata.from_gguf(first_part)
    return found.changed(
        path=entry.path, source=entry.metadata.source, sha256=sha256_of(first_part, progress)
    )


def _reporting_to(progress: Progress) -> type[Any]:
    """A progress bar class, as huggingface_hub wants it, that draws nothing and tells us."""
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
        """Nothing is kept."""
