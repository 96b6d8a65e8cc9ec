"""What the tokens of a conversation are: its spans, kept in step with the sequence's ledger.

The ledger says which tokens there are; the spans say, in order, which message each run of them
came from. Both change together here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_runner._core import Request, Sequence
from llama_runner.conversation.alignment import Alignment, Replacement, n_same_tokens
from llama_runner.conversation.checkpoints import Checkpoint, Checkpoints
from llama_runner.conversation.history import (
    Changes,
    Part,
    changes,
    index_in,
    origins,
    without_collected,
)
from llama_runner.conversation.removal import Removal, plan_removal, regions
from llama_runner.errors import InvalidParameterError
from llama_runner.generation.prompt_work import Difference
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.message_ends import MessageEnds
from llama_runner.prompts.messages import as_text, begins_turn, is_step
from llama_runner.results import Span
from llama_runner.tokens.types import TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Added", "Transcript", "TranscriptMark"]


@dataclass(frozen=True, slots=True, eq=False)
class TranscriptMark:
    """A transcript's contents at one time."""

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
        """The highest number that a turn has had."""
        # Another object after each shift: cells of before and after are not the same.
        self._epoch = object()
        self.chat = chat
        self.checkpoints = Checkpoints(sequence)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first."""
        return [message for part in self.parts for message in part.messages]

    @property
    def pinned_system(self) -> list[dict[str, Any]]:
        """The system message that opens the conversation, if it is pinned; a list of it."""
        first = self.parts[:1]
        return [m for part in first if part.role == "system" and part.pinned for m in part.messages]

    def is_asked(self, given: list[dict[str, Any]]) -> bool:
        """Whether these messages are all that was said, with or without the last answer."""
        if any(part.collected for part in self.parts):
            return False
        known = self.messages[len(self.pinned_system) :]
        is_answered = bool(known) and known[-1]["role"] == "assistant"
        return bool(given) and given in (known, known[:-1] if is_answered else known)

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
            TokenizationError: It is no text, or has token ids that do not exist.
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
        self.parts.append(Part("raw", len(self.sequence) - before, self._next_turn()))

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
            whole: They are the whole conversation, of which the common beginning stays in memory;
                otherwise they are added to it.
            for_answer: End with what opens an assistant's message.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        n_fixed = self.n_fixed(whole)
        fixed, chat = self.parts[:n_fixed], self.parts[n_fixed:]
        base = sum(part.n_tokens for part in fixed)
        known = [message for part in chat for message in part.messages]
        if for_answer and is_step(given) and known and known[-1]["role"] == "assistant":
            known.pop()  # the same answer, as the caller reads it: a call of a tool
        messages = known + given
        if whole:
            messages = without_collected(chat, given)

        if not for_answer and self.chat.needs_question(messages):
            self.parts.append(Part("system", 0, self.turn, messages=given))
            return Added()
        text, stops = self.chat.render(messages, for_answer=for_answer, opens=not fixed)
        data = text.encode()
        aligned = Alignment(self.sequence, self.chat, base, data)
        kept, n_kept, end = fixed, 0, base
        for part in chat:
            n = len(part.messages)
            # An empty answer has no other tokens than what opens the one that is to come.
            if end + part.n_tokens > aligned.n_tokens or n_kept + n > len(messages):
                break
            end += part.n_tokens
            # Also what the template does not show of them.
            part.messages = messages[n_kept : n_kept + n]
            part.n_opening = None  # the template's text now
            n_kept += n
            kept.append(part)
        n_bytes = aligned.byte_at(end)
        # A message that changed in its middle is tokenised anew: its tokens may end elsewhere. What
        # they have in common with those that are there stays.
        tokens, _ = self.chat.tokenize(data[n_bytes:], self.last_of(end))
        n_old = len(self.sequence) - end
        cut = end + n_same_tokens(self.sequence.tokens[end:], tokens)
        difference = None
        if cut < end + n_old:
            message = index_in(given, messages, n_kept) if whole else n_kept
            difference = Difference(cut, message)
            # Where nothing follows, the last one is computed again, to know what comes next.
            self.checkpoints.go_back(cut if cut < end + len(tokens) else max(0, cut - 1))
            self.sequence.truncate(cut)
        self.sequence.append(tokens[cut - end :])
        self.parts = kept
        self._divide(messages, n_kept, data, n_bytes, chat, for_answer=for_answer)
        rest = len(self.sequence) - self.start_of(len(self.parts))
        if for_answer:
            turn = self.parts[-1].turn if self.parts else self.turn
            self.parts.append(Part("assistant", rest, turn, n_opening=rest))
        elif rest:
            self.parts[-1].n_tokens += rest
        return Added(stops, difference)

    def last_of(self, n: int) -> int | None:
        """Return the last of the first n tokens, None if there are none."""
        return self.sequence.token_at(n - 1) if n else None

    def _next_turn(self) -> int:
        """Begin a turn; the first shares its number with a system message before it."""
        if any(part.role != "system" for part in self.parts):
            self.turn += 1
        return self.turn

    def n_fixed(self, whole: bool) -> int:
        """Messages are rendered together, from behind the last part that is raw text.

        A whole conversation replaces raw text that came behind messages.
        """
        raw = [i for i, part in enumerate(self.parts) if not part.templated]
        if whole:
            raw = [i for n, i in enumerate(raw) if i == n]
        return raw[-1] + 1 if raw else 0

    def _divide(
        self,
        messages: list[dict[str, Any]],
        n_kept: int,
        data: bytes,
        n_bytes: int,
        before: list[Part],
        *,
        for_answer: bool,
    ) -> None:
        """Find out which message each token after the parts belongs to.

        Messages that were there before, but had to be tokenised anew, keep their turn and pin; so
        do those that were changed, and those after them.

        Args:
            messages: The conversation.
            n_kept: How many of them the parts hold.
            data: Its text.
            n_bytes: How much of the text the parts hold.
            before: The parts that were there before.
            for_answer: Whether the text ends with what opens an answer.
        """
        n_fixed = self.n_fixed(whole=False)
        aligned = Alignment(self.sequence, self.chat, self.start_of(n_fixed), data)
        ends = MessageEnds(self.chat, messages, data, for_answer=for_answer, opens=n_fixed == 0)
        known = origins(before, messages)
        position = self.start_of(len(self.parts))
        if n_bytes == 0 and messages[0]["role"] != "system":
            header = self.chat.implied_header
            n_bytes = len(header) if data.startswith(header) else 0
            header_end = aligned.token_at(n_bytes)
            if header_end > position:
                turn = before[0].turn if before else self.turn
                self.parts.append(Part("system", header_end - position, turn))
                position = header_end
        # What closes the last answer is part of it: then any turn can go, and what stays is what
        # the template makes of the rest.
        end_byte = ends.find(n_kept - 1, inside=n_bytes) if n_kept else 0
        if end_byte is not None and end_byte > n_bytes:
            n_closing = aligned.token_at(end_byte) - position
            self.parts[-1].n_tokens += n_closing
            position += n_closing
            n_bytes = end_byte
        pending: list[dict[str, Any]] = []
        role, turn, pinned = "", self.turn, False
        collected: tuple[bytes, ...] = ()
        for i in range(n_kept, len(messages)):
            old = known[i] if i < len(known) else None
            if not pending:
                role = messages[i]["role"]
            if old is not None:
                if old.part.role == "summary" and messages[i] in old.part.messages:
                    role = "summary"
                turn, pinned = old.part.turn, old.part.pinned
                collected += old.collected
            elif not pending:
                pinned = False
                if begins_turn(messages, i):
                    turn = self._next_turn()
                else:
                    turn = self.parts[-1].turn if self.parts else self.turn
            pending.append(messages[i])
            end_byte = ends.find(i, start=end_byte)
            goes_on = old is not None and i + 1 < len(known) and known[i + 1].part is old.part
            if end_byte is None or goes_on:
                continue  # shown only together with the next message, or one span with it
            n_bytes = max(n_bytes, end_byte)
            n_tokens = max(0, aligned.token_at(n_bytes) - position)
            self.parts.append(Part(role, n_tokens, turn, pinned, pending, collected))
            position += n_tokens
            pending, collected = [], ()
        if pending:
            rest = len(self.sequence) - position
            self.parts.append(Part(role, rest, turn, pinned, pending, collected))

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
        """Count tokens that were generated to the part that opened the answer; once or again.

        Args:
            text: The whole answer, which ends the turn; None while it is going on.
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
        """What a conversation, given whole, says otherwise in what is not its end."""
        n_fixed = self.n_fixed(whole=True)
        found = changes(self.parts[n_fixed:], given)
        return found._replace(
            gone=[n_fixed + i for i in found.gone],
            edited={n_fixed + i: messages for i, messages in found.edited.items()},
        )

    def plan_removal(self, indices: Collection[int], *, remember: bool = True) -> Removal:
        """Find out what taking parts out changes; see :func:`plan_removal`.

        Args:
            indices: Of the parts.
            remember: Recognise their messages in a conversation that is given whole, and leave them
                out of it: they were evicted, the caller did not take them out.

        Raises:
            ChatTemplateError: The template refuses what would stay.
        """
        return plan_removal(self, set(indices), remember=remember)

    def apply(
        self, removal: Removal, splice: Callable[[Replacement], bool] | None = None
    ) -> Literal["shift", "rebuild"]:
        """Take parts out of transcript and ledger.

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
            self._divide_again()
        return method

    def _divide_again(self) -> None:
        """Find out anew which message each token after the raw text belongs to."""
        n_fixed = self.n_fixed(whole=False)
        fixed, chat = self.parts[:n_fixed], self.parts[n_fixed:]
        answer = chat.pop() if chat and chat[-1].n_opening is not None else None
        messages = [message for part in chat for message in part.messages]
        if messages:
            for_answer = answer is not None
            text, _ = self.chat.render(messages, for_answer=for_answer, opens=not fixed)
            data, turn, n_bytes = text.encode(), self.turn, 0
            self.parts = fixed
            if chat[0].role == "system" and not chat[0].messages:  # the template's own header
                self.parts = [*fixed, chat[0]]
                base = self.start_of(len(fixed))
                aligned = Alignment(self.sequence, self.chat, base, data)
                n_bytes = aligned.byte_at(base + chat[0].n_tokens)
            self._divide(messages, 0, data, n_bytes, chat, for_answer=for_answer)
            self.turn = turn
        rest = len(self.sequence) - self.start_of(len(self.parts))
        if answer is not None and answer.n_opening is not None:
            answer.n_opening += rest - answer.n_tokens
            answer.n_tokens = rest
            self.parts.append(answer)
        elif rest:
            self.parts[-1].n_tokens += rest

    def start_epoch(self) -> None:
        """Make older marks compute again what is moved now."""
        self._epoch = object()

    def plan_summary(self, indices: Collection[int], text: str) -> Removal:
        """Find out what putting a pinned note in the place of parts changes.

        Raises:
            InvalidParameterError: The note does not have fewer tokens than what it replaces.
            ChatTemplateError: The template does not take a note there.
        """
        first, gone = min(indices), set(indices)
        note = Part("summary", 0, self.parts[first].turn, pinned=True)
        if self.parts[first].templated:
            region = next(region for region in regions(self.parts) if first in region)
            before = [m for i in region if i < first for m in self.parts[i].messages]
            rest = [i for i in region if i >= first and i not in gone]
            after = [m for i in rest for m in self.parts[i].messages]
            for messages in self.chat.notes_between(before, text, after):
                note.messages = messages
                removal = plan_removal(self, gone, note=note)
                if removal.n_removed > 0:
                    break  # some templates repeat all their instructions in each system message
        else:
            previous = self.last_of(self.start_of(first))
            tokens = self.chat.continue_text(text, previous, parse_special=False)
            removal = plan_removal(self, gone, note=note, raw_note=tokens)
        if removal.n_removed <= 0:
            n_gone = sum(self.parts[i].n_tokens for i in gone)
            raise InvalidParameterError(
                f"summarize: the summary has {n_gone - removal.n_removed:,} tokens, what it "
                f"replaces {n_gone:,}: write a shorter one"
            )
        return removal

    def clear(self) -> None:
        """Forget everything."""
        self.sequence.truncate(0)
        self.parts.clear()
        self.turn = 0

    # ---- going back ----------------------------------------------------------------------------

    def fork(self) -> Transcript:
        """A second one, of a fork of the sequence."""
        child = Transcript(self.sequence.fork(), self.chat)
        child.parts = [part.copy() for part in self.parts]
        child.turn, child._epoch = self.turn, self._epoch
        child.checkpoints.adopt(self.checkpoints)
        return child

    def mark(self) -> TranscriptMark:
        """What is there now, to go back to."""
        parts = tuple(part.copy() for part in self.parts)
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
        self.parts = [part.copy() for part in mark.parts]
        self.turn = mark.turn
