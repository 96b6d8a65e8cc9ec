"""The model that a user means: a path, a JSON description, or a name of the catalogue.

Functions that work with a model take all three; those that look at a file, such as ``read_gguf``,
take its path alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from llama_runner._support.files import (
    about_file,
    at_home,
    is_file,
    is_missing,
    is_there,
    path_text,
    trouble_at,
)
from llama_runner.errors import ModelMetadataError, ModelNotFoundError
from llama_runner.loaders.catalogue.catalogue import (
    DEFAULT_MODEL,
    catalogue_directory,
    find_installed,
    is_name,
)
from llama_runner.loaders.catalogue.description import ModelMetadata, read_metadata
from llama_runner.loaders.gguf.fingerprint import fingerprint
from llama_runner.loaders.gguf.header import ModelPath, open_model, quoted, unreadable
from llama_runner.loaders.gguf.info import GgufInfo

if TYPE_CHECKING:
    from llama_runner.loaders.checks.validate import Level
    from llama_runner.params import ModelParams

__all__ = [
    "FoundModel",
    "checked_model",
    "default_model",
    "default_name",
    "find_model",
    "resolve_model",
]


@dataclass(frozen=True)
class FoundModel:
    """A model that is there to be loaded.

    Attributes:
        path: Its file; of a split model, the first.
        metadata: Its description, where it has one.
        info: Its header, if it was read.
        file: The very file that was checked, open; None for the parts of a split model, which
            llama.cpp can only open itself.
    """

    path: Path
    metadata: ModelMetadata | None
    info: GgufInfo | None
    file: IO[bytes] | None

    def load_params(self, given: ModelParams) -> ModelParams:
        """How to load it: what its description recommends holds where nothing else is given."""
        layers = self.metadata.n_gpu_layers if self.metadata is not None else None
        if layers is None or "n_gpu_layers" in given.model_fields_set:
            return given
        return given.merged(n_gpu_layers=layers)

    def fingerprint(self) -> str:
        """What tells it from others; of a split model, its first file does.

        Raises:
            ModelNotFoundError, FileReadError: The file cannot be opened, or not read.
        """
        if self.file is not None:
            return fingerprint(self.file)
        with open_model(self.path) as (file, _):
            return fingerprint(file)


@contextmanager
def checked_model(model: ModelPath, level: Level | Literal[False]) -> Iterator[FoundModel]:
    """Find a model and check its file, and its description against it; False checks nothing.

    Raises:
        As :func:`resolve_model` and :func:`validate_model`.
    """
    from llama_runner.loaders.checks.validate import (
        validate_model,  # needs the core, without which the rest works
    )

    path, metadata = resolve_model(model)
    if level is False:
        yield FoundModel(path, metadata, None, None)
        return
    with open_model(path) as (file, _):
        info = validate_model(file, level).info
        if metadata is not None:
            metadata.check(info)
        yield FoundModel(info.path, metadata, info, None if info.parts else file)


def find_model(name_or_path: ModelPath) -> Path:
    """The file of a model given by path or by name.

    Raises:
        As :func:`resolve_model`.
    """
    return resolve_model(name_or_path)[0]


def resolve_model(name_or_path: ModelPath) -> tuple[Path, ModelMetadata | None]:
    """The file of a model given by path or by name, and its description where it has one.

    A file that exists wins over a name. A path to a ``.json`` description gives the model file
    that it describes. A folder, or anything else under a path that is no name of the catalogue, is
    given back, too: who opens it says best what is wrong with it. The file's path is absolute, as
    it is needed again when the current directory may be another; a link keeps its name, which says
    which part of a split model it is.

    Raises:
        ModelNotFoundError: Neither a file nor a known name, or not pulled yet; the message says
            what to do.
        FileReadError: The system does not let it be looked at, or its description be read.
        ModelMetadataError: The description is not valid.
        InvalidParameterError: Neither a string nor a path.
    """
    given = path_text(name_or_path)
    path = at_home(given)
    if path.suffix == ".json" and is_there(path):
        metadata = read_metadata(path)
        return _described_file(path, metadata), metadata
    if is_file(path) or (is_there(path) and not is_name(given)):
        return path.absolute(), None
    if _looks_like_path(given):
        trouble = trouble_at(path)
        if trouble is not None and not is_missing(trouble):
            raise unreadable(path, trouble)
        missing = ModelNotFoundError(f"no model file at {quoted(given, 200)}", field="model")
        raise about_file(missing, path)
    entry = find_installed(given)
    return entry.path.absolute(), entry.metadata


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
