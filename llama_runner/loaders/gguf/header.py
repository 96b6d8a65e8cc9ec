"""A bounded reader for the header of a GGUF file: the bytes before the tensor data.

No number in the file is trusted until it was compared with the bytes that are there: a count is
checked before its loop, a length before its read, and everything against a fixed limit.
"""

from __future__ import annotations

import errno
import os
import re
import reprlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

from llama_runner._support.files import (
    about_file,
    at_home,
    is_missing,
    open_regular,
    path_text,
    refuse_special,
)
from llama_runner.errors import (
    FileReadError,
    InvalidParameterError,
    ModelNotFoundError,
    ModelValidationError,
    of_the_call,
)
from llama_runner.loaders.gguf.types import VALUE_TYPES

if TYPE_CHECKING:
    from llama_runner._core import StringArray

# The core is imported where it is called, because the catalogue and `doctor` must work without it.

__all__ = [
    "GgufArray",
    "HeaderReader",
    "Limits",
    "open_model",
    "quoted",
    "refuse",
    "unreadable",
    "words",
]

# Room for the largest vocabularies in use (262,144 tokens with 514,906 merges: about 17 MiB) and
# little more: these two limits bound the time and memory that a hostile file can cost.
MAX_HEADER_BYTES: Final = 24 << 20
MAX_ARRAY_STRINGS: Final = 900_000
# Keys, names and text values together; usual are a few kilobytes and a chat template.
MAX_TEXT_BYTES: Final = 4 << 20
MAX_KEYS: Final = 1024  # a hundred are already many; a model in 256 parts has 768 more
MAX_TENSORS: Final = 4096
MAX_TEMPLATE_BYTES: Final = 256 << 10  # of a chat template; some kilobytes are usual
FIRST_READ: Final = 2 << 20  # bytes; enough for most headers

# Names that splitting tools and uploaders give to pieces: x.gguf.part1of2, x.gguf-split-a.
_PIECE: Final = re.compile(
    r"(?P<whole>.+\.gguf)(?P<kind>[.-](?:part|split)-?)(?:\d+of(?P<count>\d+)|\d{1,3}|[a-z]{1,2})"
)
_U64: Final = struct.Struct("<Q")

ModelPath = str | os.PathLike[str]
Scalar = int | float | bool | str


def words(text: str) -> frozenset[str]:
    """Return the words of a text: a readable way to write a long set of names."""
    return frozenset(text.split())


def quoted(text: str | bytes, limit: int = 60) -> str:
    """Quote text from a file for a message: one line, printable, of limited length."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def refuse(path: Path, field: str, problem: str) -> NoReturn:
    """Refuse a model file.

    Raises:
        ModelValidationError: Always.
    """
    raise ModelValidationError(
        f"{quoted(str(path), limit=200)} is not a valid model: {problem}", field=field
    )


def unreadable(path: Path, trouble: OSError) -> FileReadError:
    """Make the error for a file that the system does not let us read."""
    forbidden = trouble.errno in (errno.EACCES, errno.EPERM)
    advice = "let this user read it and enter its folders" if forbidden else "give another file"
    error = FileReadError(
        f"{quoted(str(path), limit=200)} cannot be read: {trouble.strerror}; {advice}", field="path"
    )
    return about_file(error, path, trouble)


@contextmanager
def open_model(
    model: ModelPath | IO[bytes], what: str = "model"
) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a model file once, as a regular file; a file that is already open is left open.

    Names of the catalogue and descriptions are not resolved; resolve_model() does that.

    Args:
        model: A path, or an open file.
        what: The kind of file, for messages; only "model" files have catalogue names.

    Yields:
        The file, and its path for messages.

    Raises:
        ModelNotFoundError: There is no such file.
        FileReadError: The system does not allow reading it.
        ModelValidationError: It is a directory, a device or a pipe, or its name is impossible.
        InvalidParameterError: It is neither a path nor an open file.
    """
    opened = None if isinstance(model, str | os.PathLike) else model
    if opened is not None and not _is_open_file(opened):
        raise InvalidParameterError(
            f"model={reprlib.repr(model)}: must be a path, or a file open for reading bytes",
            field="model",
        )
    given = path_text(model) if opened is None else str(opened.name)
    path = at_home(given) if opened is None else Path(given)
    name = quoted(given, limit=200)
    try:
        file = open_regular(path) if opened is None else opened
        refuse_special(os.fstat(file.fileno()).st_mode)
    except of_the_call(OSError) as error:
        if is_missing(error):
            may_be_name = what == "model" and path.name == given and not path.suffix
            advice = "; find_model() also takes names" * may_be_name
            missing = ModelNotFoundError(f"no {what} file at {name}{advice}", field="path")
            raise about_file(missing, path, error) from None
        if error.errno == errno.EINVAL:  # from our own check, not from the system
            raise ModelValidationError(
                f"{name} cannot be opened: {error.strerror}; give the path of a .gguf file",
                field="path",
            ) from None
        raise unreadable(path, error) from None
    try:
        _refuse_piece(path)
        yield file, path
    finally:
        if opened is None:
            file.close()


def _refuse_piece(path: Path) -> None:
    """Refuse a piece of a file that was cut at some byte: no piece is a model by itself."""
    piece = _PIECE.fullmatch(path.name)
    if piece is None:
        return
    whole, others = piece["whole"], f"{piece['whole']}{piece['kind']}*"
    in_order = f"$(ls -v {others})" if int(piece["count"] or 0) > 9 else others
    raise ModelValidationError(
        f"{quoted(path.name, 200)} is a piece of a file that was split; join the pieces first: "
        f"cat {in_order} > {whole}",
        field="path",
    )


def _is_open_file(model: IO[bytes]) -> bool:
    """Return whether it reads bytes from a file of the operating system, unlike a BytesIO."""
    try:
        return model.fileno() >= 0 and isinstance(model.read(0), bytes)
    except of_the_call(AttributeError, TypeError, OSError, ValueError):
        return False


@dataclass
class Limits:
    """The amounts that may still be read of a model's header, shared by all parts of a model."""

    header_bytes: int = MAX_HEADER_BYTES
    array_strings: int = MAX_ARRAY_STRINGS
    text_bytes: int = MAX_TEXT_BYTES
    keys: int = MAX_KEYS
    tensors: int = MAX_TENSORS


class Header:
    """The bytes of a header that were read so far."""

    def __init__(self, buffer: bytes) -> None:
        self.buffer = buffer


class GgufArray:
    """An array in the metadata, decoded only when asked for.

    Attributes:
        element_type: ``u8`` ... ``f64``, ``bool`` or ``str``.
    """

    __slots__ = ("_end", "_length", "_source", "_start", "_strings", "_type")

    def __init__(
        self,
        source: Header,
        type_id: int,
        length: int,
        start: int,
        end: int,
        strings: StringArray | None = None,
    ) -> None:
        self._source = source
        self._type = type_id
        self._length = length
        self._start = start
        self._end = end
        self._strings = strings

    @property
    def element_type(self) -> str:
        return VALUE_TYPES[self._type].name

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GgufArray):
            return NotImplemented
        alike = self._type == other._type and self._length == other._length
        return alike and self.raw() == other.raw()

    def __hash__(self) -> int:
        return hash((self._type, self._length))

    def __reduce__(self) -> tuple[object, ...]:
        return _array, (self._type, self._length, self.raw())

    def __repr__(self) -> str:
        return f"<GgufArray of {self._length} {self.element_type}>"

    @property
    def nbytes(self) -> int:
        """The array's size in the file, in bytes."""
        return self._end - self._start

    def raw(self) -> bytes:
        """Return the array's bytes as they are in the file."""
        return self._source.buffer[self._start : self._end]

    def strings(self) -> StringArray:
        """Return the elements of a string array, undecoded."""
        if self._strings is None:
            raise TypeError(f"this is an array of {self.element_type}, not of strings")
        return self._strings

    def find(self, value: int, first: int = 0) -> int | None:
        """Return the first index, from ``first`` on, of a value in an array of i32, if any."""
        from llama_runner._core import find_int32

        return find_int32(self._source.buffer, self._start, self._length, value, first)

    def find_nan(self) -> int | None:
        """Return the index of the first NaN in an array of f32; None if it has none."""
        from llama_runner._core import find_nan

        return find_nan(self._source.buffer, self._start, self._length)

    def values(self) -> list[Scalar]:
        """Return the elements as Python values; bytes that are not UTF-8 become U+FFFD."""
        scalar = VALUE_TYPES[self._type].scalar
        if scalar is None:
            return [text.decode("utf-8", "replace") for text in self.strings()]
        return list(struct.unpack(f"<{self._length}{scalar.format[1:]}", self.raw()))


def _array(type_id: int, length: int, raw: bytes) -> GgufArray:
    """Make an array that holds only its own bytes, for unpickling."""
    strings = None
    if VALUE_TYPES[type_id].scalar is None:
        from llama_runner._core import StringArray

        strings = StringArray(0)
        strings.read(raw, length)
    return GgufArray(Header(raw), type_id, length, 0, len(raw), strings)


class HeaderReader(Header):
    """A forward reader of a header; errors in the header raise `ModelValidationError`.

    The file is read in growing pieces, beginning with ``first_read`` bytes, and never past a limit.
    So the cost depends on the header and not on what the file claims about itself.
    """

    def __init__(self, file: IO[bytes], path: Path, limits: Limits, first_read: int) -> None:
        self.file_size = os.fstat(file.fileno()).st_size
        super().__init__(b"")
        self.position = 0
        self._file = file
        self._path = path
        self._limits = limits
        self._first_read = first_read
        self._arrays: list[StringArray] = []

    def fail(self, field: str, problem: str) -> NoReturn:
        """Refuse this file.

        Raises:
            ModelValidationError: Always.
        """
        refuse(self._path, field, problem)

    def unpack(self, layout: struct.Struct, field: str) -> tuple[int, ...]:
        """Read fixed-size values."""
        end = self.position + layout.size
        if end > len(self.buffer):
            self.need(layout.size, field)
        values = layout.unpack_from(self.buffer, self.position)
        self.position = end
        return values

    def text(self, limit: int, field: str) -> bytes:
        """Read a string of at most ``limit`` bytes."""
        (length,) = self.unpack(_U64, field)
        if length > limit:
            self.fail(
                field, f"{quoted(field)} is {length} bytes long; at most {limit} are accepted"
            )
        start, end = self.position, self.position + length
        if end > len(self.buffer):
            self.need(length, field)
        self._charge(length, field)
        self.position = end
        return self.buffer[start:end]

    def any_text(self, field: str) -> str:
        """Read a string of any length; bytes that are not UTF-8 become U+FFFD."""
        raw = self.text(self.file_size, field)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._charge(7 * len(raw), field)  # decoding it takes that much longer
            return raw.decode("utf-8", "replace")

    def _charge(self, length: int, field: str) -> None:
        self._limits.text_bytes -= length
        if self._limits.text_bytes < 0:
            self.fail(field, f"a model may have at most {MAX_TEXT_BYTES >> 20} MiB of text in all")

    def array(self, type_id: int, length: int, field: str) -> GgufArray:
        """Step over an array and return a view of it."""
        scalar = VALUE_TYPES[type_id].scalar
        start = self.position
        if scalar is None:
            strings = self._strings(length, field)
            return GgufArray(self, type_id, length, start, self.position, strings)
        self.need(length * scalar.size, field)
        self.position += length * scalar.size
        return GgufArray(self, type_id, length, start, self.position)

    def need(self, count: int, field: str) -> None:
        """Make sure that ``count`` more bytes are in the buffer."""
        end = self.position + count
        if end > self.file_size:
            past = end - self.file_size
            self.fail(field, f"{quoted(field)} reaches {past} bytes past the end of the file")
        while end > len(self.buffer):
            self._grow(field)

    def _strings(self, length: int, field: str) -> StringArray:
        if length > self._limits.array_strings:
            limit = f"a model may have at most {MAX_ARRAY_STRINGS} in all"
            self.fail(field, f"{quoted(field)} claims {length} strings; {limit}")
        if length * 8 > self.file_size - self.position:
            self.fail(
                field,
                f"{quoted(field)} claims {length} strings, too many for the file; is it truncated?",
            )
        from llama_runner._core import StringArray

        self._limits.array_strings -= length
        strings = StringArray(self.position)
        self._arrays.append(strings)
        while True:
            strings.read(self.buffer, length)
            self.position = strings.end
            if len(strings) == length:
                return strings
            # The next string ends after the buffer, and perhaps after the file.
            self.need(8, field)
            self.need(8 + _U64.unpack_from(self.buffer, self.position)[0], field)

    def _grow(self, field: str) -> None:
        limit = self._limits.header_bytes
        if len(self.buffer) >= limit:
            self.fail(
                field, f"a model's header may have at most {MAX_HEADER_BYTES >> 20} MiB in all"
            )
        target = min(max(self._first_read, 4 * len(self.buffer)), limit, self.file_size)
        try:
            self._file.seek(0)
            self.buffer = self._file.read(target)
        except of_the_call(OSError) as error:
            raise unreadable(self._path, error) from None
        if len(self.buffer) < target:
            self.fail(field, "the file became shorter while it was read")
        for strings in self._arrays:  # they would keep the old, shorter buffer in memory
            strings.read(self.buffer, len(strings))
