"""What the tokens of a conversation are: its spans, kept in step with the sequence's ledger.

The ledger says which tokens there are; the spans say, in order, which message each run of them
came from. Both change together here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_runner._core import ChatTemplate, Sequence, Vocab
from llama_runner.errors import ChatTemplateError, InvalidParameterError
from llama_runner.prompts.messages import TokenIds
from llama_runner.results import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Part", "Transcript", "TranscriptMark"]


@dataclass(slots=True)
class Part:
    """A span while the transcript works on it."""

    role: str
    n_tokens: int
    turn: int
    pinned: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)

    def copy(self) -> Part:
        """A part that can change without this one."""
        return replace(self, messages=list(self.messages))


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
        vocab: The model's.
        template: For messages; None where the model has none.
    """

    def __init__(self, sequence: Sequence, vocab: Vocab, template: ChatTemplate | None) -> None:
        self.sequence = sequence
        self.parts: list[Part] = []
        self.turn = 0
        self._vocab = vocab
        self._template = template
        self._header: bytes | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first."""
        return [message for part in self.parts for message in part.messages]

    @property
    def n_kept(self) -> int:
        """Tokens of all turns before the one that is going on."""
        return sum(part.n_tokens for part in self.parts if part.turn < self.turn)

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

    # ---- growing -------------------------------------------------------------------------------

    def add_raw(self, prompt: str | TokenIds, *, parse_special: bool) -> None:
        """Append text or token ids.

        Raises:
            InvalidParameterError: It is empty.
            TokenizationError: It is no text, or has token ids that do not exist.
        """
        before = len(self.sequence)
        if isinstance(prompt, str):
            prompt = self._vocab.tokenize(
                prompt, add_special=before == 0, parse_special=parse_special
            )
        self.sequence.append(prompt)
        if len(self.sequence) == before:
            raise InvalidParameterError(
                "prompt: there is nothing to add (the prompt is empty)", field="prompt"
            )
        self.parts.append(Part("raw", len(self.sequence) - before, self.turn))

    def add_messages(
        self, given: list[dict[str, Any]], *, for_answer: bool = True
    ) -> tuple[str, ...]:
        """Bring the ledger to what the template makes of the conversation.

        Messages that include an assistant's answer or begin with a system message are the whole
        conversation, of which the common beginning stays in memory. Others are new turns.

        Args:
            given: Checked messages.
            for_answer: End with what opens an assistant's message.

        Returns:
            Strings that end an answer in this format.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        if self._template is None:
            raise ChatTemplateError(
                "this model has no chat template: give the prompt as text, or pass chat_template="
            )
        # Messages are rendered together, from behind the last part that is raw text.
        is_raw = [part.role in ("raw", "generated") for part in self.parts]
        n_fixed = len(is_raw) - is_raw[::-1].index(True) if True in is_raw else 0
        fixed, chat = self.parts[:n_fixed], self.parts[n_fixed:]
        base = sum(part.n_tokens for part in fixed)
        known = [message for part in chat for message in part.messages]
        whole = given[0]["role"] == "system" or any(m["role"] == "assistant" for m in given)
        messages = given if whole else known + given

        text, stops = self._template.render(messages, add_generation_prompt=for_answer)
        data = text.encode()
        n_same, n_bytes = self._match(base, data)
        # Only whole parts stay: a message that changed in its middle is tokenised anew.
        kept, n_known, end = fixed, 0, base
        for part in chat:
            if end + part.n_tokens > n_same:
                break
            end += part.n_tokens
            n_known += len(part.messages)
            kept.append(part)
        if end < len(self.sequence):
            self.sequence.truncate(end)
            _, n_bytes = self._match(base, data)
        self.parts = kept
        self._append_messages(messages, n_known, data, n_bytes, for_answer)
        return stops

    def _match(self, base: int, data: bytes) -> tuple[int, int]:
        """Index of the first token that differs from the text, and the bytes before it."""
        bos = self._vocab.bos
        start = base
        if bos is not None and len(self.sequence) > base:
            piece = self._vocab.token_to_piece(bos)
            if self.sequence.token_at(base) == bos and not data.startswith(piece):
                start += 1  # put there by us, not by the template
        n_tokens, n_bytes = self.sequence.match_text(start, data)
        return start + n_tokens, n_bytes

    def _append_messages(
        self,
        messages: list[dict[str, Any]],
        n_known: int,
        data: bytes,
        n_bytes: int,
        for_answer: bool,
    ) -> None:
        """Tokenise the rest of the text and find out which message each token belongs to."""
        position = len(self.sequence)
        tokens = self._vocab.tokenize(data[n_bytes:], add_special=False, parse_special=True)
        bos = self._vocab.bos
        is_start = position == 0 and self._vocab.add_bos
        if is_start and bos is not None and (len(tokens) == 0 or tokens[0] != bos):
            self.sequence.append([bos])
        self.sequence.append(tokens)
        header = self._implied_header() if n_known == 0 and messages[0]["role"] != "system" else b""
        if header and n_bytes == 0 and data.startswith(header):
            first = len(self.sequence) - len(tokens)
            n_tokens, n_bytes = self.sequence.match_text(first, header)
            self.parts.append(Part("system", first + n_tokens - position, self.turn))
            position = first + n_tokens
            tokens = tokens[n_tokens:]
        pending: list[dict[str, Any]] = []
        matched = len(self.sequence) - len(tokens)
        for i in range(n_known, len(messages)):
            pending.append(messages[i])
            end_byte = self._text_until(messages[: i + 1], data)
            if end_byte is None or end_byte <= n_bytes:
                continue  # the template shows this message only together with the next
            n_tokens, _ = self.sequence.match_text(matched, data[n_bytes:end_byte])
            matched += n_tokens
            n_bytes = end_byte
            role = messages[i]["role"]
            self.parts.append(Part(role, matched - position, self.turn, messages=pending))
            position, pending = matched, []
        rest = len(self.sequence) - position
        if for_answer:
            self.parts.append(Part("assistant", rest, self.turn, messages=pending))
        elif rest or pending:
            role = messages[-1]["role"]
            self.parts.append(Part(role, rest, self.turn, messages=pending))

    def _text_until(self, messages: list[dict[str, Any]], data: bytes) -> int | None:
        """Length of the part of the text that shows these messages, if it begins with it."""
        prefix = self._text_of(messages).encode()
        return len(prefix) if prefix and data.startswith(prefix) else None

    def _implied_header(self) -> bytes:
        """What the template writes before a conversation that has no system message.

        Some models' templates put a system prompt of their own there. It must be a span by itself,
        or it would go with the first turn and the rest would not be what the template makes.
        """
        if self._header is None:
            self._header = b""
            user = {"role": "user", "content": "a"}
            turn = [user, {"role": "assistant", "content": "b"}]
            first = self._text_of([user])
            block = self._text_of([*turn, user]).removeprefix(self._text_of(turn))
            if block and first.endswith(block):
                self._header = first.removesuffix(block).encode()
        return self._header

    def _text_of(self, messages: list[dict[str, Any]]) -> str:
        assert self._template is not None
        try:
            return self._template.render(messages, add_generation_prompt=False)[0]
        except ChatTemplateError:
            return ""

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

    def remove(self, indices: list[int]) -> str:
        """Take parts out of transcript and ledger; "shift" where no token must be recomputed."""
        method = "shift"
        doomed = set(indices)
        for i in sorted(doomed, reverse=True):
            start = sum(part.n_tokens for part in self.parts[:i])
            if self.parts[i].n_tokens:
                how = self.sequence.remove(start, start + self.parts[i].n_tokens)
                method = method if how == "shift" else how
        self.parts = [part for i, part in enumerate(self.parts) if i not in doomed]
        return method

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
