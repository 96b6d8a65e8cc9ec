"""Models that can be referred to by name, and where their files are kept.

Names come from JSON descriptions: a few in the package, and the user's own in
``catalogue_directory()``. The name is the stem of the JSON file. Pulled files are kept in
``cache_directory()``, where only complete, verified files get their final names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import reprlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote, unquote

from llama_runner._support.files import (
    about_file,
    at_home,
    bytes_below,
    is_file,
    is_missing,
    is_there,
    open_regular,
    path_text,
    size_of,
    trouble_at,
)
from llama_runner.errors import (
    FileReadError,
    InvalidParameterError,
    LlamaSystemError,
    ModelError,
    ModelMetadataError,
    ModelNotFoundError,
    ModelValidationError,
    of_the_call,
)
from llama_runner.loaders.catalogue.description import ModelMetadata, read_metadata
from llama_runner.loaders.catalogue.sources import HubSource, parse_source
from llama_runner.loaders.gguf.header import quoted, unreadable
from llama_runner.loaders.gguf.read import part_names

__all__ = [
    "DEFAULT_MODEL",
    "CatalogueEntry",
    "cache_directory",
    "catalogue_directory",
    "entry_from_hub",
    "find_entry",
    "find_installed",
    "is_name",
    "list_models",
    "verify",
]

DEFAULT_MODEL: Final = "smollm2-135m"
SIDECAR: Final = "model.json"
_EMBEDDED: Final = Path(__file__).with_name("models")
_HASH_BLOCK: Final = 1 << 20
_PULL_AGAIN: Final = "remove it with llama-runner rm, and pull it again"
_OWN_FILE: Final = "correct the description, or replace the file with the one described"

Progress = Callable[[int, int, str], None]
"""Called with the bytes done, the total bytes, and the stage: ``download``, ``unpack``,
``verify``."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that can be referred to by name.

    Attributes:
        name: A name of the catalogue, or ``hf:OWNER/REPO:FILE.gguf``.
        metadata: Its description.
        path: Where its file is, or will be once it is pulled; the first file of a split model. If
            the description is broken, the path of the description.
        folder: The model's own folder in the cache; None for a file of the user's own.
        problem: What is wrong with its description; if set, the model cannot be used.
    """

    name: str
    metadata: ModelMetadata
    path: Path
    folder: Path | None
    problem: str | None = None

    @property
    def files(self) -> list[Path]:
        """Its file, or all files that it is split into."""
        return [self.path.with_name(name) for name in part_names(self.path.name)]

    @property
    def installed(self) -> bool:
        """Whether all its files are there."""
        return self.problem is None and all(map(is_file, self.files))

    @property
    def whole(self) -> bool:
        """Whether all its files are there and, if pulled, have the size given in the description.

        :func:`verify` compares their content.
        """
        if not self.installed or self.folder is None or self.metadata.size is None:
            return self.installed
        try:
            return sum(file.stat().st_size for file in self.files) == self.metadata.size
        except of_the_call(OSError):  # deleted just now
            return False

    @property
    def bytes_in_cache(self) -> int:
        """The size of its folder in the cache in bytes, including an interrupted pull."""
        return 0 if self.folder is None else bytes_below(self.folder)


def cache_directory() -> Path:
    """Return the folder of pulled models: ``LLAMA_RUNNER_CACHE``, or one in the user's cache."""
    import platformdirs

    chosen = os.environ.get("LLAMA_RUNNER_CACHE")
    return at_home(chosen) if chosen else Path(platformdirs.user_cache_dir("llama_runner"))


def catalogue_directory() -> Path:
    """Return the folder of the user's own model descriptions.

    That is ``LLAMA_RUNNER_CATALOGUE``, or ``models`` in the user's configuration directory.
    """
    import platformdirs

    chosen = os.environ.get("LLAMA_RUNNER_CATALOGUE")
    if chosen:
        return at_home(chosen)
    return Path(platformdirs.user_config_dir("llama_runner"), "models")


def list_models() -> list[CatalogueEntry]:
    """Return all models that can be referred to by name, sorted by name.

    They come from the package, from the user's own descriptions, and from pulls from Hugging Face,
    including interrupted ones. An invalid description gives an entry with a ``problem``.

    Raises:
        LlamaSystemError: The directory of the catalogue or of the cache cannot be read.
    """
    entries = {name: _entry_or_problem(name, path) for name, path in _descriptions().items()}
    named = {entry.path for entry in entries.values()}
    hub = cache_directory() / "hf"
    for folder in _listed(hub, "*/*/*"):
        owner, repository, place = folder.relative_to(hub).parts
        try:
            entry = entry_from_hub(f"hf:{owner}/{repository}:{unquote(place)}.gguf")
        except InvalidParameterError:
            continue  # a pull cannot have such a name: the folder is not ours
        if entry.path not in named and entry.bytes_in_cache:
            entries[entry.name] = entry
    return [entries[name] for name in sorted(entries)]


def is_name(text: str) -> bool:
    """Return whether the catalogue has a model of this name."""
    return text.startswith("hf:") or text in _descriptions()


def find_entry(name: str) -> CatalogueEntry:
    """Return the catalogue's entry of this name.

    Raises:
        ModelNotFoundError: There is no such name; the message lists the known ones.
        ModelMetadataError: Its description is not valid.
        InvalidParameterError: The name is not a string, or is a malformed ``hf:`` name.
        LlamaSystemError: The catalogue's directory cannot be read.
    """
    if path_text(name, "name").startswith("hf:"):
        return entry_from_hub(name)
    descriptions = _descriptions()
    if name not in descriptions:
        raise ModelNotFoundError(
            f"no model file or catalogue name {quoted(name, 200)}; "
            f"the catalogue has {', '.join(sorted(descriptions))}",
            field="model",
        )
    return _entry(name, descriptions[name])


def find_installed(name: str) -> CatalogueEntry:
    """Return the catalogue's entry of this name, and make sure that its files are there.

    Raises:
        ModelNotFoundError: There is no such name, or not all of its files were pulled.
        FileReadError: The system does not allow looking at its files.
        ModelMetadataError: Its description is not valid.
        InvalidParameterError: As :func:`find_entry`.
    """
    entry = find_entry(name)
    if entry.problem is not None:
        raise ModelMetadataError(f"{entry.problem}; run: llama-runner pull {name}")
    if entry.installed:
        return entry
    missing = next((file for file in entry.files if not is_file(file)), entry.path)
    trouble = trouble_at(missing)
    if trouble is not None and not is_missing(trouble):
        raise unreadable(missing, trouble)
    error = ModelNotFoundError(
        f"no model file at {quoted(os.fspath(missing), 200)}, the path in the description of "
        f"{name!r}"
        if entry.folder is None
        else f"the model {name!r} is not on this machine yet; run: llama-runner pull {name}",
        field="model",
    )
    raise about_file(error, missing)


def verify(name: str, progress: Progress | None = None) -> None:
    """Compare a model's files with its description: length, hash and header.

    Raises:
        ModelNotFoundError: There is no such name, or its files are not on this machine.
        FileReadError: The system does not allow reading a file.
        ModelValidationError: A file is damaged, or not the one described.
        ModelMetadataError: The description contradicts the file.
        InvalidParameterError: ``progress`` is not a function.
    """
    check_progress(progress)
    entry = find_installed(name)
    advice = _OWN_FILE if entry.folder is None else _PULL_AGAIN
    verify_files(entry.files, entry.metadata, progress, advice)
    entry.metadata.check(entry.path)


def check_progress(progress: object) -> None:
    """Refuse a wrong ``progress`` now and not in the middle of reading or fetching.

    Raises:
        InvalidParameterError: It is not a function.
    """
    if progress is not None and not callable(progress):
        raise InvalidParameterError(
            f"progress={reprlib.repr(progress)}: must be a function that takes the bytes done, the "
            "total bytes and the stage",
            field="progress",
        )


def verify_files(
    files: list[Path], metadata: ModelMetadata, progress: Progress | None, advice: str
) -> None:
    """Compare the length and the hashes of a model's files with a description.

    Args:
        files: All files of the model.
        metadata: The description.
        progress: Called while the files are read.
        advice: What to do if they differ, for the message.

    Raises:
        FileReadError: The system does not allow reading a file.
        ModelValidationError: The files differ from the description.
        ModelMetadataError: The description is of another number of files.
    """
    where = os.fspath(files[0])
    size = size_of(files)
    if metadata.size is not None and size != metadata.size:
        of_all = f" in {len(files)} files" * (len(files) > 1)
        raise ModelValidationError(
            f"{where!r} has {size} bytes{of_all}, but its description says {metadata.size}; "
            f"{advice}",
            field="size",
        )
    if metadata.hashes and len(metadata.hashes) != len(files):
        raise ModelMetadataError(
            f"the description of {where!r} has {len(metadata.hashes)} sha256 for {len(files)} "
            "files: give one for each file",
            field="sha256",
        )
    for file, expected in zip(files, metadata.hashes, strict=False):
        found = sha256_of(file, progress)
        if found != expected:
            raise ModelValidationError(
                f"{os.fspath(file)!r} has the sha256 {found}, but its description says {expected}; "
                f"{advice}",
                field="sha256",
            )


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        FileReadError: The system does not allow reading it.
    """
    total = size_of([path])
    digest = hashlib.sha256()
    done = 0
    for block in _blocks(path):
        digest.update(block)
        done += len(block)
        if progress is not None:
            progress(done, total, "verify")
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while block := file.read(_HASH_BLOCK):
                yield block
    except of_the_call(OSError) as error:
        raise unreadable(path, error) from None


def _descriptions() -> dict[str, Path]:
    """Map names to JSON files. The user's own come last, so that they replace the package's."""
    return {
        path.stem: path
        for folder in (_EMBEDDED, catalogue_directory())
        for path in _listed(folder, "*.json")
    }


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Return the matching paths in a folder, which need not exist."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted(folder.glob(pattern))
    except of_the_call(FileNotFoundError):
        return []
    except of_the_call(OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "a path cannot have such characters"
        raise LlamaSystemError(
            f"the directory {quoted(os.fspath(folder), 200)} cannot be read: {reason}; choose "
            "another with LLAMA_RUNNER_CATALOGUE or LLAMA_RUNNER_CACHE"
        ) from None


def _entry(name: str, description: Path) -> CatalogueEntry:
    metadata = read_metadata(description)
    if metadata.path is not None:
        return CatalogueEntry(name, metadata, metadata.path, folder=None)
    assert metadata.source is not None  # read_metadata() requires one of the two
    source = parse_source(metadata.source)
    if isinstance(source, HubSource):
        return CatalogueEntry(name, metadata, *_hub_place(source))
    folder = cache_directory() / "models" / name
    return CatalogueEntry(name, metadata, folder / PurePosixPath(source.member).name, folder)


def _entry_or_problem(name: str, description: Path) -> CatalogueEntry:
    try:
        return _entry(name, description)
    except (ModelError, FileReadError) as error:
        return CatalogueEntry(name, _undescribed(name), description, None, str(error))


def entry_from_hub(spec: str) -> CatalogueEntry:
    """Return an entry for ``hf:OWNER/REPO:FILE.gguf``, pulled or not.

    Raises:
        InvalidParameterError: It is not of this form.
    """
    source = parse_source(spec)
    if not isinstance(source, HubSource):
        raise InvalidParameterError(f"{quoted(spec, 200)} is not hf:OWNER/REPO:FILE.gguf")
    path, folder = _hub_place(source)
    metadata, problem = _undescribed(path.stem, spec), None
    if is_there(folder / SIDECAR):
        try:
            metadata = read_metadata(folder / SIDECAR)
        except (ModelError, FileReadError) as error:
            problem = str(error)
    return CatalogueEntry(spec, metadata, path, folder, problem)


def _undescribed(name: str, source: str | None = None) -> ModelMetadata:
    printable = name.encode("utf-8", "replace").decode()
    return ModelMetadata(name=printable, source=source, architecture="unknown")


def _hub_place(source: HubSource) -> tuple[Path, Path]:
    """Return the file (the first one of a split model) and the folder of a model of the hub."""
    owner, _, repository = source.repository.partition("/")
    inside = PurePosixPath(source.file)
    name = part_names(inside.name)[0]
    # A separate folder for each file of the repository, even for two files with the same name.
    place = quote(str(inside.with_name(name).with_suffix("")), safe="")
    folder = cache_directory() / "hf" / owner / repository / place
    return folder / name, folder
