"""The spans of a conversation, kept in step with the sequence's ledger.

The ledger has the tokens; the spans say, in order, which message each run of tokens came from. Both
change together here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_runner._core import Request, Sequence
from llama_runner.conversation.alignment import Alignment, Replacement, n_same_tokens
from llama_runner.conversation.checkpoints import Checkpoint, Checkpoints
from llama_runner.conversation.dividing import Divider, divide_again
from llama_runner.conversation.history import (
    Changes,
    Part,
    changes,
    copies,
    index_in,
    n_before_messages,
    without_collected,
)
from llama_runner.conversation.removal import Removal
from llama_runner.errors import InvalidParameterError
from llama_runner.generation.prompt_work import Difference
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import as_text, is_step
from llama_runner.results import Span
from llama_runner.tokens.types import TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Added", "Transcript", "TranscriptMark"]


@dataclass(frozen=True, slots=True, eq=False)
class TranscriptMark:
    """The contents of a transcript at one time."""

    parts: tuple[Part, ...]
    turn: int
    tokens: NDArray[np.int32]  # the ledger
    epoch: object


@dataclass(frozen=True, slots=True)
class Added:
    """What became of messages that were added."""

    stops: tuple[str, ...] = ()
    """Strings that end an answer in the format of the chat template."""
    difference: Difference | None = None
    """The first token and message that are not as they were; None if all are."""


class Transcript:
    """The spans of one sequence.

    Args:
        sequence: Its ledger.
        chat: How messages become tokens.
    """

    def __init__(self, sequence: Sequence, chat: ChatFormat) -> None:
        self.sequence = sequence
        self.parts: list[Part] = []
        self.turn = 0
        """The highest number of a turn so far."""
        # Another object after each shift, because the cells before and after it are not the same.
        self._epoch = object()
        self.chat = chat
        self.checkpoints = Checkpoints(sequence)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in memory, oldest first."""
        return [message for part in self.parts for message in part.messages]

    @property
    def pinned_system(self) -> list[dict[str, Any]]:
        """A list of the system message that opens the conversation, if it is pinned; else empty."""
        first = self.parts[:1]
        return [m for part in first if part.role == "system" and part.pinned for m in part.messages]

    def is_asked(self, given: list[dict[str, Any]]) -> bool:
        """Return whether these messages are all that was said, with or without the last answer."""
        if any(part.collected for part in self.parts):
            return False
        known = self.messages[len(self.pinned_system) :]
        is_answered = bool(known) and known[-1]["role"] == "assistant"
        return bool(given) and given in (known, known[:-1] if is_answered else known)

    def spans(self) -> tuple[Span, ...]:
        """Return the spans as a session shows them.

        What opens the conversation counts as pinned: a system message, or the first raw text.
        """
        spans, start = [], 0
        for i, part in enumerate(self.parts):
            pinned = part.pinned or part.role == "system" or (i == 0 and part.role == "raw")
            spans.append(Span(part.role, start, part.n_tokens, pinned, part.turn))
            start += part.n_tokens
        return tuple(spans)

    def start_of(self, index: int) -> int:
        """Return the position of a part's first token."""
        return sum(part.n_tokens for part in self.parts[:index])

    def text_of(self, indices: list[int]) -> str:
        """Return parts as text for people: messages as "role: content", other text as it is."""
        tokens = self.sequence.tokens
        texts: list[str] = []
        for i in indices:
            part = self.parts[i]
            if part.messages:
                texts += map(as_text, part.messages)
            else:
                start = self.start_of(i)
                run = tokens[start : start + part.n_tokens]
                texts.append(self.chat.vocab.detokenize(run).decode("utf-8", "replace"))
        return "\n\n".join(texts)

    # ---- growing -------------------------------------------------------------------------------

    def add_raw(self, prompt: str | TokenIds, *, add_special: bool, parse_special: bool) -> None:
        """Append text or token ids.

        Raises:
            InvalidParameterError: It is empty.
            TokenizationError: It is not text, or has token ids that do not exist.
        """
        before = len(self.sequence)
        if isinstance(prompt, str):
            prompt = (
                self.chat.continue_text(prompt, self.last_of(before), parse_special=parse_special)
                if before
                else self.chat.tokenizer.tokenize_prompt(
                    prompt, add_special=add_special, parse_special=parse_special
                )
            )
        self.sequence.append(prompt)
        if len(self.sequence) == before:
            raise InvalidParameterError(
                "prompt: there is nothing to add (the prompt is empty)", field="prompt"
            )
        self.parts.append(Part("raw", len(self.sequence) - before, self.next_turn()))

    def add_messages(
        self,
        given: list[dict[str, Any]],
        *,
        whole: bool,
        for_answer: bool,
    ) -> Added:
        """Bring the ledger to what the template makes of the conversation.

        Args:
            given: Checked messages.
            whole: They are the whole conversation, and its common beginning stays in memory.
                Otherwise they are added to it.
            for_answer: End with what opens an assistant's message.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        n_fixed = n_before_messages(self.parts, whole=whole)
        fixed, chat = self.parts[:n_fixed], self.parts[n_fixed:]
        messages = _said(chat, given, whole=whole, for_answer=for_answer)
        if not for_answer and self.chat.needs_question(messages):
            self.parts.append(Part("system", 0, self.turn, messages=given))
            return Added()
        rendered = self.chat.render(messages, for_answer=for_answer, opens=not fixed)
        base = sum(part.n_tokens for part in fixed)
        aligned = Alignment(self.sequence, self.chat, base, rendered.data)
        kept, n_kept, end = _keep(chat, messages, base, aligned.n_tokens)
        n_bytes = aligned.byte_at(end)
        cut = self._replace_rest(end, rendered.data[n_bytes:])
        difference = None
        if cut is not None:
            difference = Difference(cut, index_in(given, messages, n_kept) if whole else n_kept)
        self.parts = fixed + kept
        Divider(self, rendered, n_bytes).divide(n_kept, chat)
        rest = len(self.sequence) - self.start_of(len(self.parts))
        if for_answer:
            turn = self.parts[-1].turn if self.parts else self.turn
            self.parts.append(Part("assistant", rest, turn, n_opening=rest))
        elif rest:
            self.parts[-1].n_tokens += rest
        return Added(rendered.stops, difference)

    def _replace_rest(self, end: int, text: bytes) -> int | None:
        """Make the tokens of a text follow the first tokens of the ledger.

        A message that changed in its middle is tokenised anew: its tokens may end elsewhere. Tokens
        that are in the ledger already stay.

        Args:
            end: How many tokens stay before the text.
            text: Rendered.

        Returns:
            The index of the first token that was cut off; None if none was.
        """
        tokens, _ = self.chat.tokenize(text, self.last_of(end))
        cut = end + n_same_tokens(self.sequence.tokens[end:], tokens)
        is_cut = cut < len(self.sequence)
        if is_cut:
            # If nothing follows, the last one is computed again, to know what comes next.
            self.checkpoints.go_back(cut if cut < end + len(tokens) else max(0, cut - 1))
            self.sequence.truncate(cut)
        self.sequence.append(tokens[cut - end :])
        return cut if is_cut else None

    def last_of(self, n: int) -> int | None:
        """Return the last of the first n tokens, None if there are none."""
        return self.sequence.token_at(n - 1) if n else None

    def next_turn(self) -> int:
        """Begin a turn; the first shares its number with a system message before it."""
        if any(part.role != "system" for part in self.parts):
            self.turn += 1
        return self.turn

    def end_answer(self, request: Request) -> None:
        """Keep the answer of a request that is done. It may be done again if it is interrupted."""
        end = request.stop_at
        if end is not None:
            self.checkpoints.go_back(end)
            self.sequence.truncate(end)
            # A stop string that began inside a token: the memory keeps what was shown of that one.
            kept, last = request.kept_text, self.last_of(end)
            self.sequence.append(self.chat.continue_text(kept, last, parse_special=False))
        self.book_answer(request.text)

    def book_answer(self, text: str | None) -> None:
        """Add generated tokens to the part that opened the answer. It may be called again.

        Args:
            text: The whole answer, which ends the turn; None while it is being generated.
        """
        n_new = len(self.sequence) - sum(part.n_tokens for part in self.parts)
        last = self.parts[-1]
        if last.role in ("assistant", "generated"):
            last.n_tokens += n_new
        elif n_new > 0:
            last = Part("generated", n_new, last.turn)
            self.parts.append(last)
        if text is not None and last.role == "assistant":
            last.messages = [{"role": "assistant", "content": text}]

    # ---- shrinking -----------------------------------------------------------------------------

    def changes(self, given: list[dict[str, Any]]) -> Changes:
        """Find how a whole conversation differs from the transcript, its end excepted."""
        n_fixed = n_before_messages(self.parts, whole=True)
        found = changes(self.parts[n_fixed:], given)
        return found._replace(
            gone=[n_fixed + i for i in found.gone],
            edited={n_fixed + i: messages for i, messages in found.edited.items()},
        )

    def apply(
        self, removal: Removal, splice: Callable[[Replacement], bool] | None = None
    ) -> Literal["shift", "rebuild"]:
        """Remove parts from transcript and ledger.

        Args:
            removal: Planned for this transcript as it is.
            splice: Puts new tokens into the ledger and moves what follows; returns False if that is
                not possible. Without it, what follows new tokens is decoded again.

        Returns:
            "shift" if what follows stayed in the memory.
        """
        method: Literal["shift", "rebuild"] = "shift"
        for new in removal.replacements:
            if new.start == new.stop and not len(new.tokens):
                continue
            self.start_epoch()
            if not len(new.tokens):
                if self.sequence.remove(new.start, new.stop) == "rebuild":
                    method = "rebuild"
            elif splice is None or not splice(new):
                rest = self.sequence.tokens[new.stop :]
                self.sequence.truncate(new.start)
                self.sequence.append(new.tokens)
                self.sequence.append(rest)
                method = "rebuild"
        self.parts = removal.parts
        if not removal.divided:
            divide_again(self)
        return method

    def start_epoch(self) -> None:
        """Invalidate marks, because cached cells are about to move."""
        self._epoch = object()

    def clear(self) -> None:
        """Forget everything."""
        self.sequence.truncate(0)
        self.parts.clear()
        self.turn = 0

    # ---- going back ----------------------------------------------------------------------------

    def fork(self) -> Transcript:
        """Return a second transcript, on a fork of the sequence."""
        child = Transcript(self.sequence.fork(), self.chat)
        child.parts = copies(self.parts)
        child.turn, child._epoch = self.turn, self._epoch
        child.checkpoints.adopt(self.checkpoints)
        return child

    def mark(self) -> TranscriptMark:
        """Return what is there now, to go back to."""
        parts = tuple(copies(self.parts))
        return TranscriptMark(parts, self.turn, self.sequence.tokens, self._epoch)

    def _n_as_at(self, mark: TranscriptMark) -> int:
        """Return how many tokens of a mark can stay in the memory.

        Cells that were moved since were computed with what had been between them.
        """
        n_same = self.sequence.common_prefix(mark.tokens)
        return n_same if mark.epoch is self._epoch else min(n_same, self.sequence.n_exact)

    def go_back(self, mark: TranscriptMark, checkpoint: Checkpoint | None = None) -> None:
        """Be as at the mark. Tokens that were removed since are decoded again when needed.

        Args:
            mark: Of this transcript, or of one that it was forked from or that was forked from it.
            checkpoint: A copy of the state that was kept with it.
        """
        self.checkpoints.go_back(self._n_as_at(mark), checkpoint)
        n_same = self._n_as_at(mark)
        self.sequence.truncate(n_same)
        self.sequence.append(mark.tokens[n_same:])
        self.parts = copies(mark.parts)
        self.turn = mark.turn


def _said(
    parts: list[Part], given: list[dict[str, Any]], *, whole: bool, for_answer: bool
) -> list[dict[str, Any]]:
    """Return the conversation that messages are, or that they continue."""
    if whole:
        return without_collected(parts, given)
    known = [message for part in parts for message in part.messages]
    if for_answer and is_step(given) and known and known[-1]["role"] == "assistant":
        known.pop()  # the same answer, as the caller reads it: a tool call
    return known + given


def _keep(
    parts: list[Part], messages: list[dict[str, Any]], start: int, n_same: int
) -> tuple[list[Part], int, int]:
    """Find the spans that stay as they are in a rendered conversation.

    Args:
        parts: The spans of messages.
        messages: The conversation.
        start: Where the first of them starts.
        n_same: How many tokens of the ledger spell the text.

    Returns:
        (kept, n_messages, end): the spans, the number of their messages, and where they end.
    """
    kept: list[Part] = []
    n_messages, end = 0, start
    for part in parts:
        n = len(part.messages)
        # An empty answer has no other tokens than what opens the answer that is to come.
        if end + part.n_tokens > n_same or n_messages + n > len(messages):
            break
        end += part.n_tokens
        # Also what the template does not show of them.
        part.messages = messages[n_messages : n_messages + n]
        part.n_opening = None  # the template's text now
        n_messages += n
        kept.append(part)
    return kept, n_messages, end
