"""Conversations as bytes: the layout of snapshots, and the checks before one is used.

Layout, little-endian::

    magic     8 bytes   b"LLRSNAP\\n"
    version   uint32    of this layout
    n_header  uint32    bytes of the header
    header              JSON: Header
    tokens              int32 * header.n_tokens
    state               header.n_state bytes of llama.cpp's sequence state
    digest    32 bytes  BLAKE2b of all before

The digest is checked first, so that the other checks see only bytes that were written like this.
llama.cpp does not check its state: it is used only if model and context are the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama_runner._support.files import about_file, at_home, open_regular
from llama_runner.conversation.history import Part
from llama_runner.conversation.transcript import Transcript
from llama_runner.errors import (
    InvalidParameterError,
    PromptTooLongError,
    SnapshotError,
    SnapshotNotFoundError,
    SnapshotReadError,
    of_the_call,
)

__all__ = [
    "VERSION",
    "Header",
    "PartRecord",
    "Snapshot",
    "naming",
    "open_snapshot",
    "read_file",
    "snapshot_path",
    "take_snapshot",
]

MAGIC = b"LLRSNAP\n"
VERSION = 2
_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 32


class PartRecord(BaseModel):
    """One span of the transcript."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    n_tokens: int = Field(ge=0)
    turn: int = Field(ge=0)
    pinned: bool
    messages: list[dict[str, Any]]
    collected: list[str]
    """Digests of messages that were evicted before it, as hex."""
    n_opening: int | None = Field(default=None, ge=0)
    """Of a generated answer: how many of its tokens the template wrote to open it."""


class Header(BaseModel):
    """The header of a snapshot.

    There is no sampler state: each generation makes one from its own seed and the tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None
    model: str
    """Fingerprint of the model file."""
    context: dict[str, Any]
    """What the cells depend on besides the model."""
    adapters: list[tuple[str, float, str]]
    """LoRA adapters that the cells were computed with: name, scale, fingerprint."""
    turn: int = Field(ge=0)
    parts: list[PartRecord]
    n_tokens: int = Field(ge=0)
    n_cells: int = Field(ge=0)
    """How many tokens, from the first on, have their cells in the state."""
    n_exact: int = Field(ge=0)
    n_state: int = Field(ge=0)


class Snapshot:
    """A conversation at one time.

    Args:
        header: Describes the rest.
        tokens: int32, shape (n_tokens,).
        state: llama.cpp's bytes.
    """

    def __init__(self, header: Header, tokens: NDArray[np.int32], state: bytes | memoryview):
        self.header = header
        self.tokens = tokens
        self.state = state

    def to_bytes(self) -> bytes:
        """Return the bytes, in the layout above."""
        header = self.header.model_dump_json().encode()
        tokens = self.tokens.astype("<i4").tobytes()
        body = [_PREFIX.pack(MAGIC, VERSION, len(header)), header, tokens, self.state]
        return b"".join([*body, _digest(*body)])

    @classmethod
    def from_bytes(cls, data: Any) -> Snapshot:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            SnapshotError: It is truncated, damaged, of a newer version, or not a snapshot.
        """
        try:
            view = memoryview(data).cast("B")
        except TypeError:
            raise SnapshotError(
                f"a snapshot is bytes, not {type(data).__name__}: give what snapshot() returned"
            ) from None
        if len(view) < _PREFIX.size + _DIGEST_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
            raise SnapshotError("this is not a snapshot of a conversation, or only a part of one")
        _, version, n_header = _PREFIX.unpack_from(view)
        if version > VERSION:
            raise SnapshotError(
                f"this snapshot has format version {version}, this llama_runner reads up to "
                f"{VERSION}: upgrade it"
            )
        body, digest = view[:-_DIGEST_BYTES], bytes(view[-_DIGEST_BYTES:])
        if _digest(body) != digest:
            raise SnapshotError("this snapshot is truncated or damaged: its hash does not match")
        start = _PREFIX.size + n_header
        try:
            header = Header.model_validate_json(bytes(body[_PREFIX.size : start]))
        except ValidationError as error:
            raise SnapshotError(f"this snapshot's header is not valid: {_first(error)}") from None
        n_tokens, end = header.n_tokens, start + 4 * header.n_tokens
        in_parts = sum(part.n_tokens for part in header.parts)
        openings_fit = all((part.n_opening or 0) <= part.n_tokens for part in header.parts)
        counts_fit = in_parts == n_tokens and header.n_cells <= n_tokens and openings_fit
        if end + header.n_state != len(body) or not counts_fit:
            raise SnapshotError("this snapshot's header does not fit its contents")
        tokens = np.frombuffer(body[start:end], "<i4").astype(np.int32)
        return cls(header, tokens, body[end:])


def take_snapshot(transcript: Transcript, name: str | None) -> bytes:
    """Return a conversation as bytes.

    Args:
        transcript: Of an idle sequence.
        name: Of the conversation.
    """
    sequence = transcript.sequence
    context = sequence.context
    state, n_cells = sequence.save_state()
    header = Header(
        name=name,
        model=context.model.fingerprint,
        context=context.state_format,
        adapters=[
            (adapter, scale, context.adapter_fingerprints[adapter])
            for adapter, scale in sequence.adapters
        ],
        turn=transcript.turn,
        parts=[
            PartRecord(
                role=part.role,
                n_tokens=part.n_tokens,
                turn=part.turn,
                pinned=part.pinned,
                messages=part.messages,
                collected=[digest.hex() for digest in part.collected],
                n_opening=part.n_opening,
            )
            for part in transcript.parts
        ],
        n_tokens=len(sequence),
        n_cells=n_cells,
        n_exact=sequence.n_exact,
        n_state=len(state),
    )
    return Snapshot(header, sequence.tokens, state).to_bytes()


def open_snapshot(data: Any, transcript: Transcript) -> str | None:
    """Fill a new transcript with a snapshot's spans, tokens and cells.

    Returns:
        The name that was saved with it.

    Raises:
        SnapshotError: It is damaged, of a newer version, of another model or adapter.
        PromptTooLongError: It has more tokens than a sequence of this context holds.
    """
    snapshot = Snapshot.from_bytes(data)
    header, sequence = snapshot.header, transcript.sequence
    context = sequence.context
    if header.model != context.model.fingerprint:
        raise SnapshotError(
            f"this snapshot was made with another model than {context.model.path!r}: load that one"
        )
    for name, _, made_with in header.adapters:
        known = context.adapter_fingerprints.get(name)
        if known is None:
            raise SnapshotError(f"this snapshot needs the LoRA adapter {name!r}: load it first")
        if known != made_with:
            raise SnapshotError(
                f"this snapshot was made with another LoRA adapter {name!r} than the one loaded"
            )
    if header.n_tokens > context.n_ctx_seq:
        raise PromptTooLongError(
            f"this snapshot has {header.n_tokens:,} tokens, a sequence of this context holds "
            f"{context.n_ctx_seq:,}: raise n_ctx"
        )
    sequence.append(snapshot.tokens)
    sequence.use_adapters([(name, scale) for name, scale, _ in header.adapters])
    if header.n_cells and header.context == context.state_format:
        sequence.adopt_state(snapshot.state, header.n_cells, header.n_exact)
    try:
        transcript.parts = [
            Part(
                record.role,
                record.n_tokens,
                record.turn,
                record.pinned,
                record.messages,
                tuple(map(bytes.fromhex, record.collected)),
                record.n_opening,
            )
            for record in header.parts
        ]
    except of_the_call(ValueError):
        raise SnapshotError("this snapshot's header is not valid: parts.collected") from None
    transcript.turn = header.turn
    return header.name


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a snapshot file.

    Raises:
        SnapshotNotFoundError: There is no such file.
        SnapshotReadError: It cannot be read.
    """
    path = snapshot_path(path)
    try:
        with open_regular(path) as file:
            return file.read()
    except of_the_call(FileNotFoundError) as error:
        missing = SnapshotNotFoundError(
            f"no saved conversation at {str(path)!r}: give the path of a file that save() wrote"
        )
        raise about_file(missing, path, error) from None
    except of_the_call(OSError) as error:
        unreadable = SnapshotReadError(f"{str(path)!r} cannot be read: {error.strerror}")
        raise about_file(unreadable, path, error) from None


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the error for a snapshot that is refused."""
    try:
        yield
    except (SnapshotError, PromptTooLongError) as error:
        raise type(error)(f"{os.fspath(path)!r}: {error.message}") from None


def snapshot_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file.

    Raises:
        InvalidParameterError: It is not one.
    """
    try:
        found = at_home(path)
    except TypeError:
        found = None
    if found is None or "\0" in str(found) or not found.name:
        raise InvalidParameterError(f"path={path!r}: must be the path of a file", field="path")
    return found


def _digest(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
