"""The token tools of an object that has a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llama_runner.tokens.tokenizer import Tokenizer
from llama_runner.tokens.types import Text, TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TokenMethods"]


class TokenMethods:
    """Text to token ids and back, with the object's own tokenizer."""

    tokenizer: Tokenizer

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Return the token ids of a text. See :meth:`Tokenizer.tokenize`.

        The last few long texts, up to 8 MiB, are kept until :meth:`LlamaRunner.clear_context` or
        :meth:`LlamaRunner.close`, so that a text that has grown need not be tokenised whole.
        """
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_batch(
        self, texts: Iterable[Text], *, add_special: bool = True, parse_special: bool = True
    ) -> list[NDArray[np.int32]]:
        """Tokenise many texts on all processors. See :meth:`Tokenizer.tokenize_batch`."""
        return self.tokenizer.tokenize_batch(
            texts, add_special=add_special, parse_special=parse_special
        )

    def count_tokens(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> int:
        """Return how many tokens a text has. See :meth:`Tokenizer.count_tokens`."""
        return self.tokenizer.count_tokens(
            text, add_special=add_special, parse_special=parse_special
        )

    def detokenize(
        self, tokens: TokenIds, *, remove_special: bool = False, unparse_special: bool = True
    ) -> str:
        """Return the text of token ids. See :meth:`Tokenizer.detokenize`."""
        return self.tokenizer.detokenize(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        )
