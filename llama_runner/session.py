"""A conversation that lives in the KV memory: its tokens, and whose they are.

The sequence's ledger says which tokens there are; the spans say, in order, which message each run
of them came from. Both are kept in step here and nowhere else.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_runner._core import ChatTemplate, Context, Sequence
from llama_runner.errors import ChatTemplateError, InvalidParameterError, PromptTooLongError
from llama_runner.generation import Generation, Stream
from llama_runner.params import GenerationParams
from llama_runner.prompts.messages import Prompt, TokenIds, is_messages, read_messages
from llama_runner.results import Completion, ContextInfo, ContextState, GcReport, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Session"]


@dataclass(slots=True)
class _Part:
    """A span while the session works on it."""

    role: str
    n_tokens: int
    turn: int
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Mark:
    """A session's contents before a prompt, to go back to when its generation fails."""

    parts: list[_Part]
    turn: int
    tokens: NDArray[np.int32]  # the ledger


class Session:
    """One conversation on a context.

    Calls from several threads take turns. While a stream is open, others are refused.

    Args:
        context: Where it lives.
        template: For prompts that are messages; None where the model has none.
        gc_threshold: Share of the context above which old turns are dropped before a generation.
    """

    def __init__(
        self, context: Context, template: ChatTemplate | None, gc_threshold: float
    ) -> None:
        self._context = context
        self._vocab = context.model.vocab
        self._template = template
        self._gc_threshold = gc_threshold
        self._sequence: Sequence = context.new_sequence()
        self._parts: list[_Part] = []
        self._turn = 0
        self._cleaned = False
        self._lock = threading.RLock()

    # ---- generating ----------------------------------------------------------------------------

    def generate(self, prompt: Prompt, params: GenerationParams) -> Completion:
        """Add a prompt, generate, and keep both. A call that raises leaves all as it was."""
        with self._lock:
            mark = self._mark()
            try:
                generation = self._begin(prompt, params)
                completion = generation.run()
            except BaseException:
                self._go_back(mark)
                raise
            self._keep(completion)
            return completion

    def stream(self, prompt: Prompt, params: GenerationParams) -> Stream:
        """Like :meth:`generate`, in chunks. What was generated when it is closed is kept."""
        with self._lock:
            mark = self._mark()
            try:
                generation = self._begin(prompt, params)
            except BaseException:
                self._go_back(mark)
                raise

            def on_end(completion: Completion | None) -> None:
                if completion is None:
                    self._go_back(mark)
                else:
                    self._keep(completion)

            return Stream(generation, on_end)

    def _begin(self, prompt: Prompt, params: GenerationParams) -> Generation:
        self._sequence.truncate(len(self._sequence))  # refuses while a stream is open
        before = len(self._sequence)
        if is_messages(prompt):
            stops = self._take_messages(read_messages(prompt))
            params = params.merged(stop=(*params.stop, *stops)) if stops else params
        else:
            self._take_raw(prompt, params.parse_special)
        kept = sum(part.n_tokens for part in self._parts if part.turn < self._turn)
        self._make_room()
        generation = Generation(
            self._sequence, params, first_difference=kept if kept < before else None
        )
        self._cleaned = False
        return generation

    def _take_raw(self, prompt: str | TokenIds, parse_special: bool) -> None:
        if isinstance(prompt, str):
            first = len(self._sequence) == 0
            prompt = self._vocab.tokenize(prompt, add_special=first, parse_special=parse_special)
        before = len(self._sequence)
        self._sequence.append(prompt)
        if len(self._sequence) == before:
            raise InvalidParameterError(
                "prompt: there is nothing to add (the prompt is empty)", field="prompt"
            )
        self._parts.append(_Part("raw", len(self._sequence) - before, self._turn))

    def _keep(self, completion: Completion) -> None:
        """Book what was generated, with the prompt's last part where it opened the answer."""
        with self._lock:
            n_booked = sum(part.n_tokens for part in self._parts)
            n_new = len(self._sequence) - n_booked
            last = self._parts[-1]
            if last.role == "assistant":
                last.n_tokens += n_new
                last.messages.append({"role": "assistant", "content": completion.text})
            elif n_new > 0:
                self._parts.append(_Part("raw", n_new, self._turn))
            self._turn += 1

    # ---- messages ------------------------------------------------------------------------------

    def _take_messages(self, given: list[dict[str, Any]]) -> tuple[str, ...]:
        """Bring the ledger to what the template makes of the conversation; returns stop strings.

        Messages that include an assistant's answer or begin with a system message are the whole
        conversation, of which the common beginning stays in memory. Others are new turns.
        """
        if self._template is None:
            raise ChatTemplateError(
                "this model has no chat template: give the prompt as text, or pass chat_template="
            )
        chat = list(itertools.dropwhile(lambda part: not part.messages, self._parts))
        base = sum(part.n_tokens for part in self._parts[: len(self._parts) - len(chat)])
        known = [message for part in chat for message in part.messages]
        whole = given[0]["role"] == "system" or any(m["role"] == "assistant" for m in given)
        messages = given if whole else known + given

        text, stops = self._template.render(messages, add_generation_prompt=True)
        data = text.encode()
        n_same, n_bytes = self._match(base, data)
        # Only whole parts stay: a message that changed in its middle is tokenised anew.
        kept, kept_messages = self._parts[: len(self._parts) - len(chat)], 0
        end = base
        for part in chat:
            if end + part.n_tokens > n_same:
                break
            end += part.n_tokens
            kept_messages += len(part.messages)
            kept.append(part)
        if end < len(self._sequence):
            self._sequence.truncate(end)
            _, n_bytes = self._match(base, data)
        self._parts = kept
        self._append_messages(messages, kept_messages, data, n_bytes)
        return stops

    def _match(self, base: int, data: bytes) -> tuple[int, int]:
        """Index of the first token that differs from the text, and the bytes before it."""
        bos = self._vocab.bos
        start = base
        if bos is not None and len(self._sequence) > base:
            piece = self._vocab.token_to_piece(bos)
            if self._sequence.token_at(base) == bos and not data.startswith(piece):
                start += 1  # put there by us, not by the template
        n_tokens, n_bytes = self._sequence.match_text(start, data)
        return start + n_tokens, n_bytes

    def _append_messages(
        self, messages: list[dict[str, Any]], n_known: int, data: bytes, n_bytes: int
    ) -> None:
        """Tokenise the rest of the text and find out which message each token belongs to."""
        position = len(self._sequence)
        tokens = self._vocab.tokenize(data[n_bytes:], add_special=False, parse_special=True)
        bos = self._vocab.bos
        is_start = position == 0 and self._vocab.add_bos
        if is_start and bos is not None and (len(tokens) == 0 or tokens[0] != bos):
            self._sequence.append([bos])
        self._sequence.append(tokens)
        pending: list[dict[str, Any]] = []
        matched = len(self._sequence) - len(tokens)
        for i in range(n_known, len(messages)):
            pending.append(messages[i])
            end = self._text_until(messages[: i + 1], data)
            if end is None or end <= n_bytes:
                continue  # the template shows this message only together with the next
            n_tokens, _ = self._sequence.match_text(matched, data[n_bytes:end])
            matched += n_tokens
            n_bytes = end
            self._parts.append(_Part(messages[i]["role"], matched - position, self._turn, pending))
            position, pending = matched, []
        # What is left opens the answer.
        self._parts.append(_Part("assistant", len(self._sequence) - position, self._turn, pending))

    def _text_until(self, messages: list[dict[str, Any]], data: bytes) -> int | None:
        """Length of the part of the text that shows these messages, if it begins with it."""
        assert self._template is not None
        try:
            text, _ = self._template.render(messages, add_generation_prompt=False)
        except ChatTemplateError:
            return None
        prefix = text.encode()
        return len(prefix) if data.startswith(prefix) else None

    # ---- memory --------------------------------------------------------------------------------

    def info(self) -> ContextInfo:
        """What is in the conversation's memory. Computes nothing on the model."""
        with self._lock:
            used, n_ctx = len(self._sequence), self._context.n_ctx_seq
            spans, start = [], 0
            for part in self._parts:
                spans.append(Span(part.role, start, part.n_tokens, start == 0, part.turn))
                start += part.n_tokens
            state: ContextState = "growing"
            if used == 0:
                state = "empty"
            elif self._cleaned:
                state = "cleaned"
            elif used > self._gc_threshold * n_ctx:
                state = "full"
            return ContextInfo(
                n_ctx=n_ctx,
                used=used,
                bytes=used * self._context.kv_bytes // self._context.n_ctx,
                spans=tuple(spans),
                gc_would_free=sum(self._parts[i].n_tokens for i in self._droppable()),
                state=state,
            )

    def collect(self) -> GcReport:
        """Drop the oldest turns, about half of what is there; the first span stays."""
        with self._lock:
            started = time.perf_counter()
            doomed = self._droppable()
            if not doomed:
                return GcReport(0, 0, "none", 0, 0.0)
            start = sum(part.n_tokens for part in self._parts[: doomed[0]])
            n_tokens = sum(self._parts[i].n_tokens for i in doomed)
            method = self._sequence.remove(start, start + n_tokens)
            del self._parts[doomed[0] : doomed[-1] + 1]
            self._cleaned = True
            return GcReport(
                spans_removed=len(doomed),
                tokens_removed=n_tokens,
                method=method,
                tokens_recomputed=len(self._sequence) - self._sequence.n_cached,
                ms=(time.perf_counter() - started) * 1e3,
            )

    def _droppable(self) -> list[int]:
        """Indices of the parts that a collection takes: whole turns, oldest first.

        Never the first span (with its turn, unless it is a system message) nor the newest turn.
        """
        if not self._parts:
            return []
        head = 1 if self._parts[0].role == "system" else self._turn_end(0)
        last_turn = self._parts[-1].turn
        goal = sum(part.n_tokens for part in self._parts) // 2
        doomed: list[int] = []
        freed = 0
        i = head
        while i < len(self._parts) and freed < goal and self._parts[i].turn < last_turn:
            end = self._turn_end(i)
            freed += sum(part.n_tokens for part in self._parts[i:end])
            doomed += range(i, end)
            i = end
        return doomed

    def _turn_end(self, index: int) -> int:
        turn = self._parts[index].turn
        while index < len(self._parts) and self._parts[index].turn == turn:
            index += 1
        return index

    def _make_room(self) -> None:
        n_ctx = self._context.n_ctx_seq
        head = self._parts[0].n_tokens if self._parts[0].turn < self._turn else 0
        new = sum(part.n_tokens for part in self._parts if part.turn == self._turn)
        if head + new >= n_ctx:
            raise PromptTooLongError(
                f"the prompt has {new:,} tokens; beside the {head:,} of the conversation's first "
                f"span, {n_ctx - head - 1:,} fit: shorten it or raise n_ctx"
            )
        while len(self._sequence) > self._gc_threshold * n_ctx:
            if self.collect().method == "none":
                break

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._sequence.truncate(0)
            self._parts.clear()
            self._turn = 0
            self._cleaned = False

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._sequence.close()

    # ---- undoing -------------------------------------------------------------------------------

    def _mark(self) -> _Mark:
        return _Mark(list(self._parts), self._turn, self._sequence.tokens)

    def _go_back(self, mark: _Mark) -> None:
        if self._sequence.busy or self._context.closed:
            return
        n_same = self._sequence.common_prefix(mark.tokens)
        self._sequence.truncate(n_same)
        self._sequence.append(mark.tokens[n_same:])
        self._parts, self._turn = mark.parts, mark.turn
