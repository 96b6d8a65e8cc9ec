"""Tokenising and detokenising: one text, many texts at once, or one that grows.

``Vocab`` of the native core does the work. This module keeps the tokens of long texts and uses all
processors for many.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard

from llama_runner._core import TokenizedText, Vocab, token_array
from llama_runner._support.hardware import usable_cpus
from llama_runner.errors import InvalidParameterError, TokenizationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llama_runner.tokens.types import Text, TokenIds

__all__ = ["Detokenizer", "Tokenizer"]

# Limits of the kept texts. Shorter texts are tokenised faster than looked up; the total is enough
# for some sixty transcripts of 30,000 tokens.
_SHORTEST_KEPT = 4096
_BYTES_KEPT = 8 * 1024 * 1024
_MOST_KEPT = 16


class Tokenizer:
    """A tokenizer that keeps the most recent long texts, up to 8 MiB, with their tokens.

    If a kept text has grown, only the appended part is tokenised; the result is the same as for the
    whole text. Threads may share a tokenizer.

    Args:
        vocab: The vocabulary, from :attr:`Model.vocab`. Look up single tokens there: special ones
            as attributes (``vocab.eos``), the bytes of a token with ``vocab.token_to_piece()``.

    Raises:
        InvalidParameterError: ``vocab`` is something else.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = _vocab_of(vocab)
        # Each with the options that it was tokenised with; newest first.
        self._kept: tuple[tuple[tuple[bool, bool], TokenizedText], ...] = ()

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Return the token ids of a text as a numpy int32 array of shape (n,).

        Ctrl-C interrupts it between calls of llama.cpp, but not inside one. One call can take some
        seconds for megabytes of text without a place to cut, such as one repeated letter.

        Args:
            text: Text, or UTF-8 in a bytes-like object.
            add_special: Add BOS/EOS if the model wants them.
            parse_special: Read special tokens written out in the text as those tokens.

        Raises:
            TokenizationError: The text has lone surrogates, is too long, or cannot be written with
                this vocabulary.
        """
        if _is_long(text):
            return self._read(text, add_special, parse_special).tokens
        return self.vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_prompt(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Return the token ids of a prompt: as :meth:`tokenize`, but with BOS and EOS not doubled.

        A prompt that was copied from a model card or rendered elsewhere often begins with BOS, and
        models answer worse after two of them.
        """
        tokens = self.tokenize(text, add_special=add_special, parse_special=parse_special)
        if not (add_special and parse_special):
            return tokens
        bos, eos = self.vocab.bos, self.vocab.eos
        if self.vocab.add_bos and len(tokens) > 1 and tokens[0] == tokens[1] == bos:
            tokens = tokens[1:]
        if self.vocab.add_eos and len(tokens) > 1 and tokens[-1] == tokens[-2] == eos:
            tokens = tokens[:-1]
        return tokens

    def count_tokens(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> int:
        """Return the number of tokens that :meth:`tokenize` would return."""
        if _is_long(text):
            return len(self._read(text, add_special, parse_special))
        return self.vocab.count_tokens(text, add_special=add_special, parse_special=parse_special)

    def tokenize_batch(
        self, texts: Iterable[Text], *, add_special: bool = True, parse_special: bool = True
    ) -> list[NDArray[np.int32]]:
        """Return the result of :meth:`tokenize` for each of many texts, using all processors.

        Raises:
            TokenizationError: As :meth:`tokenize`; if an item is not text, the message says which.
        """
        if isinstance(texts, Iterator):
            texts = list(texts)  # after an error they are searched again
        try:
            return self.vocab.tokenize_batch(
                texts,
                add_special=add_special,
                parse_special=parse_special,
                n_threads=self._n_threads,
            )
        except TokenizationError as error:
            index = _first_that_is_no_text(texts)
            if index is None:
                raise
            raise TokenizationError(f"texts[{index}]: {error.message}", field="texts") from None

    def detokenize(
        self, tokens: TokenIds, *, remove_special: bool = False, unparse_special: bool = True
    ) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: Token ids; an int32 array is read in place.
            remove_special: Leave out the BOS/EOS that tokenising added.
            unparse_special: Write special tokens as text instead of leaving them out.

        Raises:
            TokenizationError: An id is out of range.
        """
        data = self.vocab.detokenize(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        )
        return data.decode("utf-8", "replace")

    def forget(self) -> None:
        """Drop the kept texts."""
        self._kept = ()

    def detokenizer(self, *, unparse_special: bool = True) -> Detokenizer:
        """Make a detokenizer for tokens that arrive one after another."""
        return Detokenizer(self.vocab, unparse_special=unparse_special)

    @cached_property
    def _n_threads(self) -> int:
        return usable_cpus()

    def _read(self, text: str | bytes, add_special: bool, parse_special: bool) -> TokenizedText:
        options = (add_special, parse_special)
        kept = self._kept
        alike = (known for its_options, known in kept if its_options == options)
        previous = max(alike, key=lambda known: known.common_prefix(text), default=None)
        read = self.vocab.read(text, previous, add_special=add_special, parse_special=parse_special)
        if read.n_bytes > _BYTES_KEPT:
            return read
        # A text that has grown replaces its former self; one with just a common beginning does not.
        has_grown = previous is not None and previous.common_prefix(text) == previous.n_bytes
        others = (one for one in kept if not (has_grown and one[1] is previous))
        self._kept = tuple(_that_fit(((options, read), *others)))
        return read


def _that_fit(
    newest_first: Iterable[tuple[tuple[bool, bool], TokenizedText]],
) -> Iterator[tuple[tuple[bool, bool], TokenizedText]]:
    n_bytes = 0
    for kept in islice(newest_first, _MOST_KEPT):
        if n_bytes + kept[1].n_bytes <= _BYTES_KEPT:
            n_bytes += kept[1].n_bytes
            yield kept


def _is_long(text: Text) -> TypeGuard[str | bytes]:
    return isinstance(text, str | bytes) and len(text) >= _SHORTEST_KEPT


def _first_that_is_no_text(texts: object) -> int | None:
    """Return the index of the text that the core refused; it checks the types of all first."""
    if not isinstance(texts, Iterable) or _is_text_or_bytes(texts):
        return None
    for is_text in (_is_text_or_bytes, _is_unicode):
        for index, text in enumerate(texts):
            if not is_text(text):
                return index
    return None


def _is_text_or_bytes(text: Any) -> bool:
    if isinstance(text, str):
        return True
    try:
        return memoryview(text).format in ("B", "b", "c")
    except TypeError:
        return False


def _is_unicode(text: Any) -> bool:
    if not isinstance(text, str):
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _vocab_of(source: Vocab | Tokenizer) -> Vocab:
    vocab = source.vocab if isinstance(source, Tokenizer) else source
    if not isinstance(vocab, Vocab):
        raise InvalidParameterError(
            f"vocab: must be a Vocab, such as runner.tokenizer.vocab (got {type(vocab).__name__})",
            field="vocab",
        )
    return vocab


class Detokenizer:
    """A detokenizer for tokens that arrive one after another; it never returns half a character.

    The results of all calls, joined, equal :meth:`Tokenizer.detokenize` of all the tokens; each
    token is processed only once.

    Args:
        vocab: A :class:`Tokenizer`, or the vocabulary of one.
        unparse_special: Write special tokens as text instead of leaving them out.

    Raises:
        InvalidParameterError: ``vocab`` is something else.
    """

    def __init__(self, vocab: Vocab | Tokenizer, *, unparse_special: bool = True) -> None:
        self._vocab = _vocab_of(vocab)
        self._unparse_special = unparse_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False

    def feed(self, tokens: int | TokenIds) -> str:
        """Return the text that one or more further tokens complete; it may be empty.

        Raises:
            TokenizationError: An id is out of range or not an integer.
        """
        ids = [tokens] if isinstance(tokens, int | Integral) else token_array(tokens)
        data = self._vocab.detokenize(
            ids, unparse_special=self._unparse_special, strip_prefix=not self._begun
        )
        self._begun = self._begun or len(ids) > 0
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return the rest, U+FFFD for an incomplete last character, and begin a new text."""
        self._begun = False
        return self._decoder.decode(b"", final=True)
