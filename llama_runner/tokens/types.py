"""The types that are accepted as text and as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Text", "TokenIds"]

Text: TypeAlias = "str | Buffer"
"""Input of tokenising: text, or UTF-8 bytes."""

# Not one string, so that a program can write Prompt | None; only the part that needs numpy is a
# string, because importing numpy takes long.
TokenIds: TypeAlias = Union[Sequence[int], "NDArray[np.integer[Any]]"]
