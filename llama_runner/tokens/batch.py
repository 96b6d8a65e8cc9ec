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
    """Tokens in the order in which one decode would take them, in numpy arrays of shape (n,).

    Attributes:
        tokens: Token ids.
        positions: Position of each in its sequence.
        sequence_ids: Which sequence each belongs to.
        logits: Whether the logits after this token are wanted.
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
    """Lay tokens of several sequences out as one batch, to look at or to feed a model of your own.

    Generating needs none of this: the engine builds its batches itself.

    Args:
        sequences: Token ids of each; the index in here is the sequence id.
        positions: Of each sequence's first token; 0 by default.
        logits: After which tokens of each sequence logits are wanted.

    Raises:
        InvalidParameterError: Another number of positions than of sequences, or one that is
            negative or too large; another value of ``logits``.
        TokenizationError: Token ids that are none.
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
            f"positions: needs {len(runs)} integers from 0 up that leave the last token at most at "
            f"{_LAST_POSITION} (got {reprlib.repr(starts)})",
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
    """Can n tokens stand from there on?"""
    is_number = isinstance(start, Integral) and not isinstance(start, bool)
    return is_number and 0 <= int(start) <= _LAST_POSITION + 1 - max(n, 1)
