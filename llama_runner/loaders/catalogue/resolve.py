"""Finding the model that a user means: by a path, a JSON description or a name of the catalogue.

Functions that work with a model take all three; those that only look at a file, such as
``read_gguf``, take just its path.
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
from llama_runner.loaders.gguf.info import GgufInfo, require_weights

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
    """A model that was found and can be loaded.

    Attributes:
        path: Its file; the first one of a split model.
        metadata: Its description, if it has one.
        info: Its header, if it was read.
        file: The open file that was checked, so that the same file is loaded; None if it was not
            checked, or if the model is split, because llama.cpp has to open the parts itself.
    """

    path: Path
    metadata: ModelMetadata | None
    info: GgufInfo | None
    file: IO[bytes] | None

    def load_params(self, given: ModelParams) -> ModelParams:
        """Return the parameters to load it with, and apply what its description recommends.

        Raises:
            ModelLoadError: It holds no weights, and ``vocab_only`` is not set.
        """
        if self.info is not None and not given.vocab_only:
            require_weights(self.info)
        layers = self.metadata.n_gpu_layers if self.metadata is not None else None
        if layers is None or "n_gpu_layers" in given.model_fields_set:
            return given
        return given.merged(n_gpu_layers=layers)

    def fingerprint(self) -> str:
        """Return the fingerprint of its file; for a split model, of its first file.

        Raises:
            ModelNotFoundError, FileReadError: The file cannot be opened or read.
        """
        if self.file is not None:
            return fingerprint(self.file)
        with open_model(self.path) as (file, _):
            return fingerprint(file)


@contextmanager
def checked_model(model: ModelPath, level: Level | Literal[False]) -> Iterator[FoundModel]:
    """Find a model, and check its file and its description; the level False checks nothing.

    Raises:
        As :func:`resolve_model` and :func:`validate_model`.
    """
    # Imported here, because it needs the core; everything else works without it.
    from llama_runner.loaders.checks.validate import validate_model

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
    """Find the file of a model given by path or by name.

    Raises:
        As :func:`resolve_model`.
    """
    return resolve_model(name_or_path)[0]


def resolve_model(name_or_path: ModelPath) -> tuple[Path, ModelMetadata | None]:
    """Find the file of a model given by path or by name, and its description if it has one.

    An existing file takes precedence over a name. A path to a ``.json`` description gives the model
    file that it describes. Anything else that exists under the path, such as a folder, is returned
    too, unless the catalogue has a model of that name: opening it gives the best error message. The
    returned path is absolute, because it is used again later, when the current directory may have
    changed. Links are not resolved: the link's name says which part of a split model it is.

    Raises:
        ModelNotFoundError: It is neither a file nor a known name, or it is not pulled yet; the
            message says what to do.
        FileReadError: The system does not allow looking at it or reading its description.
        ModelMetadataError: The description is not valid.
        InvalidParameterError: It is neither a string nor a path.
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
    """Return the name or the path of the model to use when none is given."""
    return os.environ.get("LLAMA_RUNNER_MODEL") or DEFAULT_MODEL


def default_model() -> tuple[Path, str]:
    """Return the file of the model to use when none is given, and words that say which it is.

    Raises:
        ModelNotFoundError: ``LLAMA_RUNNER_MODEL`` does not name a model, or the default model was
            not pulled yet.
    """
    name = default_name()
    why = "LLAMA_RUNNER_MODEL" if os.environ.get("LLAMA_RUNNER_MODEL") else "the default model"
    return find_model(name), f"{name} ({why})"


def _described_file(description: Path, metadata: ModelMetadata) -> Path:
    if metadata.path is None:
        raise ModelMetadataError(
            f"{os.fspath(description)!r} gives a source but no path; put it into "
            f"{os.fspath(catalogue_directory())!r} and pull it by name",
            field="path",
        )
    return metadata.path


def _looks_like_path(given: str) -> bool:
    return not given.startswith("hf:") and (given.endswith(".gguf") or os.sep in given)
