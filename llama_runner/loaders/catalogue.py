"""The models that can be called by name, and where their files are kept.

Names come from JSON descriptions: a few that the package carries, and the user's own, in
``catalogue_directory()``. The name is the JSON file's stem. Files live in ``cache_directory()``,
where only whole, verified files ever get their final name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

from ..errors import (
    InvalidParameterError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
)
from .header import ModelPath, quoted
from .metadata import ModelMetadata, read_metadata
from .reading import part_names
from .sources import HubSource, parse_source

__all__ = [
    "DEFAULT_MODEL",
    "CatalogueEntry",
    "cache_directory",
    "catalogue_directory",
    "default_model",
    "default_name",
    "find_entry",
    "find_model",
    "list_models",
    "remove",
    "resolve_model",
    "verify",
]

DEFAULT_MODEL: Final = "smollm2-135m"
SIDECAR: Final = "model.json"
_EMBEDDED: Final = Path(__file__).with_name("catalogue")
_HASH_BLOCK: Final = 1 << 20

Progress = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in all, and the stage: ``download``, ``unpack``,
``verify``."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that can be called by name.

    Attributes:
        name: What to call it: a name of the catalogue, or ``hf:OWNER/REPO:FILE.gguf``.
        metadata: Its description.
        path: Where its file is, or will be once it is pulled.
        folder: The model's own folder in the cache; None for a file of the user's.
    """

    name: str
    metadata: ModelMetadata
    path: Path
    folder: Path | None

    @property
    def installed(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()


def cache_directory() -> Path:
    """Where pulled models are kept: ``LLAMA_RUNNER_CACHE``, or the user's cache directory."""
    import platformdirs

    chosen = os.environ.get("LLAMA_RUNNER_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("llama_runner"))


def catalogue_directory() -> Path:
    """Where the user's own model descriptions are.

    That is ``LLAMA_RUNNER_CATALOGUE``, or ``models`` in the user's configuration directory.
    """
    import platformdirs

    chosen = os.environ.get("LLAMA_RUNNER_CATALOGUE")
    return Path(chosen) if chosen else Path(platformdirs.user_config_dir("llama_runner"), "models")


def list_models() -> list[CatalogueEntry]:
    """Every model that can be called by name, sorted by name.

    They come from the package, from the user's own descriptions, and from Hugging Face.

    Raises:
        ModelMetadataError: One of the user's descriptions is not valid.
    """
    entries = {name: _entry(name, path) for name, path in _descriptions().items()}
    named = {entry.path for entry in entries.values()}
    for sidecar in (cache_directory() / "hf").glob(f"*/*/*/{SIDECAR}"):
        source = read_metadata(sidecar).source
        if source is not None and (entry := entry_from_hub(source)).path not in named:
            entries[source] = entry
    return [entries[name] for name in sorted(entries)]


def find_entry(name: str) -> CatalogueEntry:
    """The catalogue's entry of this name.

    Raises:
        ModelNotFoundError: No such name; the message lists the known ones.
        ModelMetadataError: Its description is not valid.
        InvalidParameterError: It starts with ``hf:`` but does not go on as it should.
    """
    if name.startswith("hf:"):
        return entry_from_hub(name)
    descriptions = _descriptions()
    if name not in descriptions:
        raise ModelNotFoundError(
            f"no model file or catalogue name {quoted(name, 200)}; "
            f"the catalogue has {', '.join(sorted(descriptions))}",
            field="model",
        )
    return _entry(name, descriptions[name])


def find_model(name_or_path: ModelPath) -> Path:
    """The file of a model given by path or by name.

    Raises:
        As :func:`resolve_model`.
    """
    return resolve_model(name_or_path)[0]


def resolve_model(name_or_path: ModelPath) -> tuple[Path, ModelMetadata | None]:
    """The file of a model given by path or by name, and its description where it has one.

    A file that exists wins over a name.

    A path to a ``.json`` description gives the model file that it describes. A folder that is no
    name of the catalogue is given back too: the validator says best what is wrong with it.

    Raises:
        ModelNotFoundError: Neither a file nor a known name, or not pulled yet; the message says
            what to do.
        ModelMetadataError: The description is not valid.
    """
    given = os.fspath(name_or_path)
    path = Path(given).expanduser()
    if path.suffix == ".json" and path.is_file():
        metadata = read_metadata(path)
        return _described_file(path, metadata), metadata
    if path.is_file() or (path.is_dir() and given not in ("", *_descriptions())):
        return path, None
    if _looks_like_path(given):
        raise ModelNotFoundError(f"no model file at {quoted(given, 200)}", field="model")
    entry = find_entry(given)
    if not entry.installed:
        raise ModelNotFoundError(
            f"the model {given!r} is not on this machine yet; run: llama-runner pull {given}",
            field="model",
        )
    return entry.path, entry.metadata


def default_name() -> str:
    """What to call the model to use when none is given: a name or a path."""
    return os.environ.get("LLAMA_RUNNER_MODEL") or DEFAULT_MODEL


def default_model() -> tuple[Path, str]:
    """The model to use when none is given, and the words to tell the user which it is.

    Raises:
        ModelNotFoundError: ``LLAMA_RUNNER_MODEL`` names no model, or the default model was not
            pulled yet.
    """
    name = default_name()
    why = "LLAMA_RUNNER_MODEL" if os.environ.get("LLAMA_RUNNER_MODEL") else "the default model"
    return find_model(name), f"{name} ({why})"


def remove(name: str) -> int:
    """Delete a pulled model's files; returns the bytes freed. Its description stays.

    Raises:
        ModelNotFoundError: No such name, or nothing to delete.
    """
    entry = find_entry(name)
    if entry.folder is None:
        raise ModelNotFoundError(
            f"the file of {name!r} is your own, at {os.fspath(entry.path)!r}; delete it there",
            field="model",
        )
    if not entry.installed:
        raise ModelNotFoundError(f"the model {name!r} is not on this machine", field="model")
    freed = sum(file.stat().st_size for file in entry.folder.rglob("*") if file.is_file())
    shutil.rmtree(entry.folder)
    return freed


def verify(name: str, progress: Progress | None = None) -> None:
    """Compare a model's file with its description: length, hash and header.

    Raises:
        ModelNotFoundError: No such name, or not on this machine.
        ModelValidationError: The file is damaged.
        ModelMetadataError: The description contradicts the file.
    """
    entry = find_entry(name)
    if not entry.installed:
        raise ModelNotFoundError(f"the model {name!r} is not on this machine", field="model")
    verify_file(entry.path, entry.metadata, progress)
    entry.metadata.check(entry.path)


def verify_file(path: Path, metadata: ModelMetadata, progress: Progress | None = None) -> None:
    """Compare a file's length and hash with a description.

    Raises:
        ModelValidationError: They differ.
    """
    size = path.stat().st_size
    if metadata.size is not None and size != metadata.size:
        raise ModelValidationError(
            f"{os.fspath(path)!r} has {size} bytes instead of {metadata.size}; pull it again",
            field="size",
        )
    if metadata.sha256 is not None and sha256_of(path, progress) != metadata.sha256:
        raise ModelValidationError(
            f"{os.fspath(path)!r} does not have the expected sha256; pull it again",
            field="sha256",
        )


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    total = path.stat().st_size
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_HASH_BLOCK), b""):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total, "verify")
    return digest.hexdigest()


def _descriptions() -> dict[str, Path]:
    """Names to JSON files; the user's own come last and so replace the package's."""
    return {
        path.stem: path
        for folder in (_EMBEDDED, catalogue_directory())
        for path in _json_files(folder)
    }


def _json_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.json"))


def _entry(name: str, description: Path) -> CatalogueEntry:
    metadata = read_metadata(description)
    if metadata.path is not None:
        return CatalogueEntry(name, metadata, metadata.path, folder=None)
    assert metadata.source is not None  # read_metadata() insists on one of the two
    source = parse_source(metadata.source)
    if isinstance(source, HubSource):
        return CatalogueEntry(name, metadata, *_hub_place(source))
    folder = cache_directory() / "models" / name
    return CatalogueEntry(name, metadata, folder / PurePosixPath(source.member).name, folder)


def entry_from_hub(spec: str) -> CatalogueEntry:
    """An entry for ``hf:OWNER/REPO:FILE.gguf``, pulled or not.

    Raises:
        InvalidParameterError: It is not of this form.
    """
    source = parse_source(spec)
    if not isinstance(source, HubSource):
        raise InvalidParameterError(f"{quoted(spec, 200)} is not hf:OWNER/REPO:FILE.gguf")
    path, folder = _hub_place(source)
    sidecar = folder / SIDECAR
    if sidecar.is_file():
        metadata = read_metadata(sidecar)
    else:
        metadata = ModelMetadata(name=path.stem, source=spec, architecture="unknown")
    return CatalogueEntry(spec, metadata, path, folder)


def _hub_place(source: HubSource) -> tuple[Path, Path]:
    """The file and the folder of a model from Hugging Face; a split model's file is its first."""
    owner, _, repository = source.repository.partition("/")
    inside = PurePosixPath(source.file)
    name = part_names(inside.name)[0]
    # One folder for each file of the repository, also for two of one name in it.
    place = quote(str(inside.with_name(name).with_suffix("")), safe="")
    folder = cache_directory() / "hf" / owner / repository / place
    return folder / name, folder


def _described_file(description: Path, metadata: ModelMetadata) -> Path:
    if metadata.path is None:
        raise ModelMetadataError(
            f"{os.fspath(description)!r} names a source but no path; put it into "
            f"{os.fspath(catalogue_directory())!r} and pull it by name",
            field="path",
        )
    return metadata.path


def _looks_like_path(given: str) -> bool:
    return not given.startswith("hf:") and (given.endswith(".gguf") or os.sep in given)
