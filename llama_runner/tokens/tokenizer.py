"""Text to token ids and back: one text, many at once, or one that grows.

``Vocab`` (of the native core) does the work. What is here keeps long texts tokenised, uses all
processors, and makes batches and samplers for those who run a model by themselves.
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

# Of the texts that are kept. Shorter ones are tokenised faster than looked up; all together they
# have room for some sixty transcripts of 30,000 tokens.
_SHORTEST_KEPT = 4096
_BYTES_KEPT = 8 * 1024 * 1024
_MOST_KEPT = 16


class Tokenizer:
    """Tokenises with a vocabulary and keeps the last long texts, up to 8 MiB, with their tokens.

    Of a text that was tokenised before and has grown, only what was appended is tokenised; the
    tokens are those of the whole text all the same. Threads may share one.

    Args:
        vocab: From :attr:`Model.vocab`. Single tokens are looked up there: the special ones as
            attributes (``vocab.eos``), the bytes of one with ``vocab.token_to_piece()``.

    Raises:
        InvalidParameterError: ``vocab`` is something else.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = _vocab_of(vocab)
        # With the options they were tokenised with; newest first.
        self._kept: tuple[tuple[tuple[bool, bool], TokenizedText], ...] = ()

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Token ids of a text: numpy int32 array, shape (n,).

        Args:
            text: Text, or bytes of UTF-8 in any object that is like bytes.
            add_special: Add BOS/EOS where the model wants them.
            parse_special: Read special tokens written out in the text as those tokens.

        Raises:
            TokenizationError: The text has lone surrogates, is too long, or is nothing that the
                vocabulary can write.

        Ctrl-C ends it, but not inside one call of llama.cpp: that takes some seconds for a
        stretch of megabytes that has no place where it can be cut, such as a single letter over
        and over.
        """
        if _is_long(text):
            return self._read(text, add_special, parse_special).tokens
        return self.vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_prompt(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Token ids of a text to generate from: as :meth:`tokenize`, with no BOS or EOS twice.

        A prompt that was copied from a model's card or rendered elsewhere often begins with the
        BOS itself, and models are worse after two of them.
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
        """How many tokens :meth:`tokenize` gives."""
        if _is_long(text):
            return len(self._read(text, add_special, parse_special))
        return self.vocab.count_tokens(text, add_special=add_special, parse_special=parse_special)

    def tokenize_batch(
        self, texts: Iterable[Text], *, add_special: bool = True, parse_special: bool = True
    ) -> list[NDArray[np.int32]]:
        """What :meth:`tokenize` gives for each of many texts, on all processors.

        Raises:
            TokenizationError: As :meth:`tokenize`; the message says which is no text.
        """
        if isinstance(texts, Iterator):
            texts = list(texts)  # they may be looked through again
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
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: Token ids; an int32 array is read where it lies.
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
        """Drop the texts that are kept."""
        self._kept = ()

    def detokenizer(self, *, unparse_special: bool = True) -> Detokenizer:
        """A detokenizer for tokens that come one after the other."""
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
        # A text that has grown takes its own place; another that begins the same does not.
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
    """The index of what the core refuses, which looks at the types of all of them first."""
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
    """Turns tokens that come one after the other into text, never half a character.

    What all calls return, put together, is what :meth:`Tokenizer.detokenize` makes of all the
    tokens; each token is looked at once.

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
        """The text that one more token, or more of them, completes; it may be empty.

        Raises:
            TokenizationError: An id is out of range, or no integer.
        """
        ids = [tokens] if isinstance(tokens, int | Integral) else token_array(tokens)
        data = self._vocab.detokenize(
            ids, unparse_special=self._unparse_special, strip_prefix=not self._begun
        )
        self._begun = self._begun or len(ids) > 0
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD where the last character is not whole. Then a new text begins."""
        self._begun = False
        return self._decoder.decode(b"", final=True)
