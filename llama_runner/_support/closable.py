"""Objects that hold native memory: closed by a ``with`` block, and neither copied nor pickled."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, NoReturn, Self

__all__ = ["Closable"]


class Closable:
    """Close at the end of a ``with`` block.

    Attributes:
        cannot_be_copied: The message of the error that copying and pickling raise.
    """

    cannot_be_copied: ClassVar[str]

    def close(self) -> None:
        """Give the memory back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(self.cannot_be_copied)
