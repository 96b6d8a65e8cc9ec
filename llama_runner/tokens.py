"""Text to token ids and back: one text, many at once, or one that grows.

``Vocab`` (of the native core) does the work. What is here keeps long texts tokenised, uses all
processors, and makes batches and samplers for those who run a model by themselves.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Literal, Unpack

from llama_runner._core import Sampler, TokenizedText, Vocab
from llama_runner.errors import InvalidParameterError
from llama_runner.params import (
    SEED_MAX,
    GenerationOptions,
    GenerationParams,
    generation_params,
)
from llama_runner.system import usable_cpus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llama_runner.prompts.messages import TokenIds

__all__ = ["Batch", "Detokenizer", "Tokenizer", "build_batch", "create_sampler"]

# Shorter texts are tokenised faster than looked up.
_SHORTEST_KEPT = 4096
_MOST_KEPT = 8


class Tokenizer:
    """Tokenises with a vocabulary and keeps the last long texts with their tokens.

    Of a text that was tokenised before and has grown, only what was appended is tokenised; the
    tokens are those of the whole text all the same. Threads may share one.

    Args:
        vocab: From :attr:`Model.vocab`. Single tokens are looked up there: the special ones as
            attributes (``vocab.eos``), the bytes of one with ``vocab.token_to_piece()``.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        # By the options they were tokenised with; newest first.
        self._kept: dict[tuple[bool, bool], tuple[TokenizedText, ...]] = {}

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Token ids of a text: numpy int32 array, shape (n,).

        Args:
            text: Text, or bytes of UTF-8.
            add_special: Add BOS/EOS where the model wants them.
            parse_special: Read special tokens written out in the text as those tokens.

        Raises:
            TokenizationError: The text has lone surrogates, is too long, or is nothing that the
                vocabulary can write.
        """
        if _is_long(text):
            return self._read(text, add_special, parse_special).tokens
        return self.vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def count_tokens(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> int:
        """How many tokens :meth:`tokenize` gives."""
        if _is_long(text):
            return len(self._read(text, add_special, parse_special))
        return self.vocab.count_tokens(text, add_special=add_special, parse_special=parse_special)

    def tokenize_batch(
        self, texts: Iterable[str | bytes], *, add_special: bool = True, parse_special: bool = True
    ) -> list[NDArray[np.int32]]:
        """What :meth:`tokenize` gives for each of many texts, on all processors."""
        return self.vocab.tokenize_batch(
            texts,
            add_special=add_special,
            parse_special=parse_special,
            n_threads=self._n_threads,
        )

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
        self._kept.clear()

    def detokenizer(self, *, unparse_special: bool = True) -> Detokenizer:
        """A detokenizer for tokens that come one after the other."""
        return Detokenizer(self.vocab, unparse_special=unparse_special)

    @cached_property
    def _n_threads(self) -> int:
        return usable_cpus()

    def _read(self, text: str | bytes, add_special: bool, parse_special: bool) -> TokenizedText:
        kept = self._kept.get((add_special, parse_special), ())
        previous = max(kept, key=lambda known: known.common_prefix(text), default=None)
        read = self.vocab.read(text, previous, add_special=add_special, parse_special=parse_special)
        # A text that has grown takes its own place; another that begins the same does not.
        has_grown = previous is not None and previous.common_prefix(text) == previous.n_bytes
        others = (known for known in kept if not (has_grown and known is previous))
        self._kept[add_special, parse_special] = (read, *others)[:_MOST_KEPT]
        return read


def _is_long(text: str | bytes) -> bool:
    return isinstance(text, str | bytes) and len(text) >= _SHORTEST_KEPT


class Detokenizer:
    """Turns tokens that come one after the other into text, never half a character.

    What all calls return, put together, is what :meth:`Tokenizer.detokenize` makes of all the
    tokens; each token is looked at once.

    Args:
        vocab: From :attr:`Model.vocab`.
        unparse_special: Write special tokens as text instead of leaving them out.
    """

    def __init__(self, vocab: Vocab, *, unparse_special: bool = True) -> None:
        self._vocab = vocab
        self._unparse_special = unparse_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False

    def feed(self, tokens: int | TokenIds) -> str:
        """The text that one more token, or more of them, completes; it may be empty.

        Raises:
            TokenizationError: An id is out of range.
        """
        ids: TokenIds = [int(tokens)] if isinstance(tokens, int | Integral) else tokens
        data = self._vocab.detokenize(
            ids, unparse_special=self._unparse_special, strip_prefix=not self._begun
        )
        self._begun = self._begun or len(ids) > 0
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD where the last character is not whole. Then a new text begins."""
        self._begun = False
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tokens in the order in which one decode would take them, in numpy arrays of shape (n,)."""

    tokens: NDArray[np.int32]
    """Token ids."""
    positions: NDArray[np.int32]
    """Position of each in its sequence."""
    sequence_ids: NDArray[np.int32]
    """Which sequence each belongs to."""
    logits: NDArray[np.bool_]
    """Whether the logits after this token are wanted."""

    def __len__(self) -> int:
        return len(self.tokens)


def build_batch(
    sequences: Sequence[TokenIds],
    *,
    positions: Sequence[int] | None = None,
    logits: Literal["last", "all", "none"] = "last",
) -> Batch:
    """Lay tokens of several sequences out as one batch, to look at or to feed a model of your own.

    Generating needs none of this: the engine builds its batches itself.

    Args:
        sequences: Token ids of each; the index in here is the sequence id.
        positions: Of each sequence's first token; 0 by default.
        logits: After which tokens of each sequence logits are wanted.

    Raises:
        InvalidParameterError: Another number of positions than of sequences, or a negative one.
    """
    import numpy as np

    starts = [0] * len(sequences) if positions is None else list(positions)
    if len(starts) != len(sequences) or any(start < 0 for start in starts):
        raise InvalidParameterError(
            f"positions: needs {len(sequences)} numbers from 0 up (got {starts})",
            field="positions",
        )
    empty = np.empty(0, np.int32)
    runs = [np.asarray(tokens, np.int32) for tokens in sequences]
    places = [np.arange(start, start + len(run)) for start, run in zip(starts, runs, strict=True)]
    lengths = [len(run) for run in runs]
    wanted = np.full(sum(lengths), logits == "all")
    if logits == "last":
        wanted[[end - 1 for end, n in zip(np.cumsum(lengths), lengths, strict=True) if n]] = True
    return Batch(
        tokens=np.concatenate([empty, *runs]),
        positions=np.concatenate([empty, *places], dtype=np.int32),
        sequence_ids=np.repeat(np.arange(len(runs), dtype=np.int32), lengths),
        logits=wanted,
    )


def create_sampler(
    params: GenerationParams | None = None, **overrides: Unpack[GenerationOptions]
) -> Sampler:
    """A sampler for logits of your own, with what generating uses.

    Args:
        params: How to sample; without a seed, one is chosen. ``overrides`` are changes to it.

    Raises:
        InvalidParameterError: A parameter is unknown or out of range.
    """
    chosen = generation_params(1, params, overrides, GenerationParams())
    if chosen.seed is None:
        chosen = chosen.merged(seed=secrets.randbelow(SEED_MAX + 1))
    return Sampler(chosen)
