"""What the tokens of a conversation are: its spans, kept in step with the sequence's ledger.

The ledger says which tokens there are; the spans say, in order, which message each run of them
came from. Both change together here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_runner._core import Sequence
from llama_runner.errors import InvalidParameterError
from llama_runner.parts import UNTEMPLATED, Part, taken_out, without_collected
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import TokenIds, begins_turn, is_whole_conversation
from llama_runner.results import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Transcript", "TranscriptMark"]


@dataclass(frozen=True, slots=True)
class TranscriptMark:
    """A transcript's contents at one time."""

    parts: tuple[Part, ...]
    turn: int
    tokens: NDArray[np.int32]  # the ledger


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
        self._chat = chat

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first."""
        return [message for part in self.parts for message in part.messages]

    def spans(self) -> tuple[Span, ...]:
        """The parts as they are shown.

        What opens the conversation counts as pinned: a system message, or the first raw text.
        """
        spans, start = [], 0
        for i, part in enumerate(self.parts):
            pinned = part.pinned or part.role == "system" or (i == 0 and part.role == "raw")
            spans.append(Span(part.role, start, part.n_tokens, pinned, part.turn))
            start += part.n_tokens
        return tuple(spans)

    def start_of(self, index: int) -> int:
        """Position of a part's first token."""
        return sum(part.n_tokens for part in self.parts[:index])

    def text_of(self, indices: list[int]) -> str:
        """Parts as text for people: messages as "role: content", other text as it is."""
        tokens = self.sequence.tokens
        texts = []
        for i in indices:
            part = self.parts[i]
            if part.messages:
                texts += [f"{m['role']}: {m.get('content') or ''}" for m in part.messages]
            else:
                start = self.start_of(i)
                run = tokens[start : start + part.n_tokens]
                texts.append(self._chat.vocab.detokenize(run).decode("utf-8", "replace"))
        return "\n\n".join(texts)

    # ---- growing -------------------------------------------------------------------------------

    def add_raw(self, prompt: str | TokenIds, *, parse_special: bool) -> None:
        """Append text or token ids.

        Raises:
            InvalidParameterError: It is empty.
            TokenizationError: It is no text, or has token ids that do not exist.
        """
        before = len(self.sequence)
        if isinstance(prompt, str):
            prompt = (
                self._chat.continue_text(prompt, self._last, parse_special=parse_special)
                if before
                else self._chat.vocab.tokenize(prompt, parse_special=parse_special)
            )
        self.sequence.append(prompt)
        if len(self.sequence) == before:
            raise InvalidParameterError(
                "prompt: there is nothing to add (the prompt is empty)", field="prompt"
            )
        self.parts.append(Part("raw", len(self.sequence) - before, self.turn))

    def add_messages(
        self,
        given: list[dict[str, Any]],
        *,
        for_answer: bool,
        before_cut: Callable[[int], object],
    ) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """Bring the ledger to what the template makes of the conversation.

        Messages that include an assistant's answer or begin with a system message are the whole
        conversation, of which the common beginning stays in memory. Others are new turns.

        Args:
            given: Checked messages.
            for_answer: End with what opens an assistant's message.
            before_cut: Called with the number of tokens that stay, before others are cut off.

        Returns:
            (stops, difference): strings that end an answer in this format; and the first token
            and message that are no longer as they were, None if all are.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        n_fixed = self._n_fixed()
        fixed, chat = self.parts[:n_fixed], self.parts[n_fixed:]
        base = sum(part.n_tokens for part in fixed)
        known = [message for part in chat for message in part.messages]
        messages = known + given
        if is_whole_conversation(given):
            messages = without_collected(chat, given)

        text, stops = self._chat.render(messages, for_answer=for_answer)
        data = text.encode()
        n_same, n_bytes = self._match(base, data)
        # Only whole parts stay: a message that changed in its middle is tokenised anew.
        kept, n_kept, end = fixed, 0, base
        for part in chat:
            if end + part.n_tokens > n_same:
                break
            end += part.n_tokens
            n_kept += len(part.messages)
            kept.append(part)
        difference = None
        if end < len(self.sequence):
            difference = end, n_kept
            before_cut(end)
            self.sequence.truncate(end)
            _, n_bytes = self._match(base, data)
        self.parts = kept
        self._append_messages(messages, n_kept, data, n_bytes, chat)
        rest = len(self.sequence) - self.start_of(len(self.parts))
        if for_answer:
            self.parts.append(Part("assistant", rest, self.turn))
        elif rest:
            self.parts[-1].n_tokens += rest
        return stops, difference

    @property
    def _last(self) -> int | None:
        """The last token, if there is one."""
        n = len(self.sequence)
        return self.sequence.token_at(n - 1) if n else None

    def _n_fixed(self) -> int:
        """Messages are rendered together, from behind the last part that is raw text."""
        raw = [i for i, part in enumerate(self.parts) if part.role in UNTEMPLATED]
        return raw[-1] + 1 if raw else 0

    def _match(self, base: int, data: bytes) -> tuple[int, int]:
        """Index of the first token that differs from the text, and the bytes before it."""
        bos = self._chat.vocab.bos
        start = base
        if bos is not None and len(self.sequence) > base:
            piece = self._chat.vocab.token_to_piece(bos)
            if self.sequence.token_at(base) == bos and not data.startswith(piece):
                start += 1  # put there by us, not by the template
        n_tokens, n_bytes = self.sequence.match_text(start, data)
        return start + n_tokens, n_bytes

    def _append_messages(
        self,
        messages: list[dict[str, Any]],
        n_kept: int,
        data: bytes,
        n_bytes: int,
        before: list[Part],
    ) -> None:
        """Tokenise the rest of the text and find out which message each token belongs to.

        Messages that were there before, but had to be tokenised anew, keep their turn and pin.
        """
        known = [(message, part) for part in before for message in part.messages]
        n_same = next(
            (i for i, (old, _) in enumerate(known[: len(messages)]) if old != messages[i]),
            min(len(known), len(messages)),
        )
        position = len(self.sequence)
        tokens, has_bos = self._chat.tokenize(data[n_bytes:], self._last)
        self.sequence.append(tokens)
        matched = position + has_bos
        if n_bytes == 0 and messages[0]["role"] != "system":
            header = self._chat.implied_header
            if data.startswith(header):
                n_tokens, n_bytes = self.sequence.match_text(matched, header)
                matched += n_tokens
            if matched > position:
                self.parts.append(Part("system", matched - position, self.turn))
                position = matched
        # What closes the last answer is part of it: then any turn can go, and what stays is what
        # the template makes of the rest.
        end_byte = self._chat.end_of(messages, n_kept - 1, data) if n_kept else 0
        if end_byte is not None and end_byte > n_bytes:
            n_tokens, n_matched = self.sequence.match_text(matched, data[n_bytes:end_byte])
            self.parts[-1].n_tokens += n_tokens
            matched += n_tokens
            position = matched
            n_bytes += n_matched
        pending: list[dict[str, Any]] = []
        for i in range(n_kept, len(messages)):
            old = known[i][1] if i < n_same else None
            if i > n_kept and old is None and not pending and begins_turn(messages, i):
                self.turn += 1  # of a conversation that is given whole, each turn may go by itself
            pending.append(messages[i])
            end_byte = self._chat.end_of(messages, i, data, end_byte)
            if end_byte is None or end_byte <= n_bytes:
                continue  # the template shows this message only together with the next
            n_tokens, n_matched = self.sequence.match_text(matched, data[n_bytes:end_byte])
            matched += n_tokens
            n_bytes += n_matched
            part = Part(messages[i]["role"], matched - position, self.turn, messages=pending)
            if old is not None:
                part.turn, part.pinned = old.turn, old.pinned
            self.parts.append(part)
            position, pending = matched, []
        if pending:
            rest = len(self.sequence) - position
            self.parts.append(Part(pending[-1]["role"], rest, self.turn, messages=pending))

    def book_answer(self, text: str | None) -> None:
        """Count tokens that were generated to the part that opened the answer.

        Args:
            text: The whole answer, which ends the turn; None while it is going on.
        """
        n_new = len(self.sequence) - sum(part.n_tokens for part in self.parts)
        last = self.parts[-1]
        if last.role in ("assistant", "generated"):
            last.n_tokens += n_new
        elif n_new > 0:
            last = Part("generated", n_new, self.turn)
            self.parts.append(last)
        if text is not None:
            if last.role == "assistant":
                last.messages.append({"role": "assistant", "content": text})
            self.turn += 1

    # ---- shrinking -----------------------------------------------------------------------------

    def taken_out(self, given: list[dict[str, Any]]) -> list[int]:
        """Indices of parts whose messages a conversation, given whole, no longer has."""
        n_fixed = self._n_fixed()
        return [n_fixed + i for i in taken_out(self.parts[n_fixed:], given)]

    def remove(self, indices: list[int]) -> Literal["shift", "rebuild"]:
        """Take parts out of transcript and ledger; "shift" where no token must be recomputed."""
        method: Literal["shift", "rebuild"] = "shift"
        doomed = set(indices)
        for i in sorted(doomed, reverse=True):
            start = self.start_of(i)
            if self.parts[i].n_tokens:
                how = self.sequence.remove(start, start + self.parts[i].n_tokens)
                method = "rebuild" if how == "rebuild" else method
        kept: list[Part] = []
        collected: tuple[bytes, ...] = ()
        for i, part in enumerate(self.parts):
            if i in doomed:
                collected += part.collect()
            else:
                part.collected = collected + part.collected
                collected = ()
                kept.append(part)
        self.parts = kept
        return method

    def replace(self, indices: list[int], text: str) -> int:
        """Put a pinned note in the place of parts; what comes behind it is decoded again.

        Returns:
            The note's tokens.

        Raises:
            InvalidParameterError: The note has no fewer tokens than what it replaces.
        """
        first, doomed = min(indices), set(indices)
        before = [m for part in self.parts[self._n_fixed() : first] for m in part.messages]
        messages: list[dict[str, Any]] = []
        if first >= self._n_fixed() and self._chat.template is not None:
            text, message = self._chat.inserted(before, text)
            messages.append(message)
        start = self.start_of(first)
        behind = self.sequence.token_at(start - 1) if start else None
        tokens = self._chat.continue_text(text, behind, parse_special=bool(messages))
        n_gone = sum(self.parts[i].n_tokens for i in doomed)
        if len(tokens) >= n_gone:
            raise InvalidParameterError(
                f"summarize: the summary has {len(tokens):,} tokens, what it replaces {n_gone:,}: "
                "write a shorter one"
            )
        ledger = self.sequence.tokens
        runs = [tokens]
        note = Part("summary", len(tokens), self.parts[first].turn, True, messages)
        note.collected = tuple(d for i in indices for d in self.parts[i].collect())
        kept = [*self.parts[:first], note]
        for i in range(first, len(self.parts)):
            if i not in doomed:
                begin = self.start_of(i)
                runs.append(ledger[begin : begin + self.parts[i].n_tokens])
                kept.append(self.parts[i])
        self.sequence.truncate(start)
        for run in runs:
            self.sequence.append(run)
        self.parts = kept
        return len(tokens)

    def clear(self) -> None:
        """Forget everything."""
        self.sequence.truncate(0)
        self.parts.clear()
        self.turn = 0

    # ---- going back ----------------------------------------------------------------------------

    def mark(self) -> TranscriptMark:
        """What is there now, to go back to."""
        parts = tuple(part.copy() for part in self.parts)
        return TranscriptMark(parts, self.turn, self.sequence.tokens)

    def go_back(self, mark: TranscriptMark) -> None:
        """Be as at the mark. Tokens that were removed since are decoded again when needed."""
        n_same = self.sequence.common_prefix(mark.tokens)
        self.sequence.truncate(n_same)
        self.sequence.append(mark.tokens[n_same:])
        self.parts = [part.copy() for part in mark.parts]
        self.turn = mark.turn
