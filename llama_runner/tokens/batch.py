"""Tokens of several sequences, laid out as one batch."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from llama_runner._core import token_array
from llama_runner.errors import InvalidParameterError, TokenizationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llama_runner.tokens.types import TokenIds

__all__ = ["Batch", "build_batch"]

_LAST_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tokens in decoding order, as numpy arrays of shape (n,).

    Attributes:
        tokens: Token ids.
        positions: Position of each token in its sequence.
        sequence_ids: Sequence that each token belongs to.
        logits: Whether the logits after each token are wanted.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequence_ids: NDArray[np.int32]
    logits: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


def build_batch(
    sequences: Iterable[TokenIds],
    *,
    positions: Iterable[int] | None = None,
    logits: Literal["last", "all", "none"] = "last",
) -> Batch:
    """Lay out the tokens of several sequences as one batch, to inspect or for a model of your own.

    Generating does not need this: the engine builds its batches itself.

    Args:
        sequences: Token ids of each sequence; its index is the sequence id.
        positions: Position of each sequence's first token; 0 by default.
        logits: The tokens of each sequence after which logits are wanted.

    Raises:
        InvalidParameterError: The number of positions differs from the number of sequences, a
            position is negative or too large, or ``logits`` has another value.
        TokenizationError: Something is not a token id.
    """
    import numpy as np

    if not isinstance(logits, str) or logits not in ("last", "all", "none"):
        raise InvalidParameterError(
            f"logits: must be 'last', 'all' or 'none' (got {logits!r})", field="logits"
        )
    runs = [_ids(tokens, i) for i, tokens in enumerate(_items(sequences, "sequences"))]
    for i, run in enumerate(runs):
        for at in np.flatnonzero(run < 0):
            raise TokenizationError(
                f"sequences[{i}]: token id {run[at]} at index {at} is out of range: "
                "ids are 0 and above",
                field="sequences",
            )
    lengths = [len(run) for run in runs]
    starts = [0] * len(runs) if positions is None else _items(positions, "positions")
    if len(starts) != len(runs) or not all(map(_is_position, starts, lengths)):
        raise InvalidParameterError(
            f"positions: must be {len(runs)} integers of at least 0, with the last token of each "
            f"sequence at {_LAST_POSITION} or before (got {reprlib.repr(starts)})",
            field="positions",
        )
    empty = np.empty(0, np.int32)
    places = [int(start) + np.arange(n) for start, n in zip(starts, lengths, strict=True)]
    wanted = np.full(sum(lengths), logits == "all")
    if logits == "last":
        wanted[[end - 1 for end, n in zip(np.cumsum(lengths), lengths, strict=True) if n]] = True
    return Batch(
        tokens=np.concatenate([empty, *runs]),
        positions=np.concatenate([empty, *places], dtype=np.int32),
        sequence_ids=np.repeat(np.arange(len(runs), dtype=np.int32), lengths),
        logits=wanted,
    )


def _ids(tokens: TokenIds, index: int) -> NDArray[np.int32]:
    dimensions = getattr(tokens, "ndim", 1)
    try:
        if dimensions > 1:
            raise TokenizationError(f"must have one dimension, not {dimensions}")
        return token_array(tokens)
    except TokenizationError as error:
        advice = ": if it is one sequence, put it in a list" * isinstance(tokens, Integral)
        raise TokenizationError(
            f"sequences[{index}]: {error.message}{advice}", field="sequences"
        ) from None


def _items(values: Iterable[Any], field: str) -> list[Any]:
    try:
        items = iter(values)
    except TypeError:
        raise InvalidParameterError(
            f"{field}: must be a list (got {type(values).__name__})", field=field
        ) from None
    return list(items)


def _is_position(start: Any, n: int) -> bool:
    """Return whether n tokens fit from this position on."""
    is_number = isinstance(start, Integral) and not isinstance(start, bool)
    return is_number and 0 <= int(start) <= _LAST_POSITION + 1 - max(n, 1)
