"""Aligning the tokens of a ledger with the bytes of a rendered text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_runner._core import Sequence
from llama_runner.prompts.chat_format import BREAK, ChatFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Alignment", "Replacement", "n_same_tokens"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """Tokens that are to replace tokens[start:stop]."""

    start: int
    stop: int
    tokens: NDArray[np.int32]


class Alignment:
    """The tokens of a sequence, from one index on, compared with a text.

    Args:
        sequence: Its ledger.
        chat: How text becomes tokens.
        base: Index of the first token to compare.
        data: The text, UTF-8.

    Attributes:
        start: Index of the first token of the text: after a BOS that the text does not write.
        n_tokens: Index of the first token that does not spell the text.
        n_bytes: How many bytes of the text the tokens before it spell.
    """

    def __init__(self, sequence: Sequence, chat: ChatFormat, base: int, data: bytes) -> None:
        self._sequence = sequence
        self._chat = chat
        self._data = data
        self.start = base
        bos = chat.vocab.bos
        if bos is not None and len(sequence) > base and sequence.token_at(base) == bos:
            self.start += not data.startswith(chat.vocab.token_to_piece(bos))
        self._spell_from(self.start, 0)

    def byte_at(self, token: int) -> int:
        """Return the byte at which a token that spells the text begins."""
        n = min(token - self._token, len(self._ends))
        return int(self._ends[n - 1]) if n > 0 else self._byte

    def boundaries(self) -> NDArray[np.int64]:
        """Return the bytes at which tokens that spell the text begin or end, ascending."""
        import numpy as np

        return np.unique(np.append(self._ends, self._byte))

    def token_at(self, byte: int) -> int:
        """Return the index of the first token that ends after a byte.

        The tokens of some vocabularies do not spell the text: they normalise it, or lack some of
        its characters. Then the text before the byte is tokenised once more, to count its tokens.
        Ask for ascending bytes.
        """
        if byte > self.n_bytes and self.n_tokens < len(self._sequence):
            first = self.n_tokens
            previous = self._sequence.token_at(first - 1) if first else None
            again = self._chat.continue_rendered(self._data[self.n_bytes : byte], previous)
            ledger = self._sequence.tokens[first:]
            self._spell_from(first + n_same_tokens(ledger, again), byte)
        return self._token + int(self._ends.searchsorted(byte, "right"))

    def _spell_from(self, token: int, byte: int) -> None:
        # Tokens from self._token on end at the bytes self._ends; those before it, at self._byte.
        self._token, self._byte = token, byte
        self._ends = self._sequence.match_text(token, self._data[byte:], skip=BREAK) + byte
        self.n_tokens = token + len(self._ends)
        self.n_bytes = int(self._ends[-1]) if len(self._ends) else byte


def n_same_tokens(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return how many tokens at the beginning of two runs are equal."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n
