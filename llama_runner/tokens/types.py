"""What can be given as text and as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Text", "TokenIds"]

Text: TypeAlias = "str | Buffer"
"""What can be tokenised: text, or bytes of UTF-8."""

# A type, so that a program may write Prompt | None; only what needs numpy is a string, because
# importing numpy takes long.
TokenIds: TypeAlias = Union[Sequence[int], "NDArray[np.integer[Any]]"]
