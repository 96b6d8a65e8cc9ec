"""Planning what a ledger becomes when spans of a conversation are removed.

The rest must be the text that the template makes of the messages that stay. Templates may write
the system's text into the first question, close an answer only with the next question, or write a
header of their own, so it is not enough to cut out the tokens of the spans. The conversation is
rendered with and without the removed messages, and what differs between the two texts is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_runner.conversation.alignment import Alignment, Replacement, n_same_tokens
from llama_runner.conversation.history import Part, copies, left
from llama_runner.errors import InvalidParameterError
from llama_runner.prompts.chat_format import n_common

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llama_runner.conversation.transcript import Transcript

__all__ = ["Removal", "plan_removal", "plan_summary"]


# Bytes that do not begin a UTF-8 character.
_CONTINUES = {bytes([byte]) for byte in range(0x80, 0xC0)}


@dataclass(frozen=True, slots=True)
class Removal:
    """A transcript without some of its parts.

    Attributes:
        parts: The parts that stay, with their new sizes.
        replacements: What changes in the ledger, the last place first.
        divided: Whether the sizes are right. If tokens do not spell the text, the sizes have to be
            found again after the ledger has changed.
    """

    parts: list[Part]
    replacements: list[Replacement]
    divided: bool

    @property
    def first_token(self) -> int:
        """Index of the first token that changes; there must be one."""
        return self.replacements[-1].start

    @property
    def n_removed(self) -> int:
        """By how many tokens the ledger becomes shorter."""
        return sum(r.stop - r.start - len(r.tokens) for r in self.replacements)

    @property
    def n_new(self) -> int:
        """How many tokens are new."""
        return sum(len(r.tokens) for r in self.replacements)


def plan_removal(
    transcript: Transcript,
    indices: Collection[int],
    *,
    note: Part | None = None,
    raw_note: NDArray[np.int32] | None = None,
    remember: bool = True,
) -> Removal:
    """Find out what removing parts of a transcript would change in its ledger.

    Args:
        transcript: The conversation.
        indices: Of the parts.
        note: A part to replace the first run of them, with its messages.
        raw_note: The tokens of a note without messages.
        remember: Recognise their messages in a conversation that is given whole later, and leave
            them out of it: they were evicted, not taken out by the caller.

    Raises:
        ChatTemplateError: The template refuses what would stay.
    """
    gone = set(indices)
    replacements: list[Replacement] = []
    exact = True
    for region in reversed(_regions(transcript.parts)):
        doomed = [i for i in region if i in gone]
        if not doomed:
            continue
        if not transcript.parts[region[0]].templated:
            replacements += [_all_of(transcript, i) for i in reversed(doomed)]
            if raw_note is not None and min(gone) == doomed[0]:
                replacements[-1] = replace(replacements[-1], tokens=raw_note)
            continue
        rendered = _Rendered(transcript, region)
        inserted = note.messages if note is not None and min(gone) == doomed[0] else []
        found = rendered.cut_out(doomed) if not inserted else None
        exact &= found is not None
        replacements += found or [rendered.replace_rest(doomed, inserted)]
    old = copies(transcript.parts)
    parts = left(old, gone, note=note, remember=remember)
    divided = _resize(parts, old, gone, replacements, note is not None)
    return Removal(parts, replacements, divided and exact)


def plan_summary(transcript: Transcript, indices: Collection[int], text: str) -> Removal:
    """Find out what replacing spans by a pinned note changes.

    Raises:
        InvalidParameterError: The note does not have fewer tokens than what it replaces.
        ChatTemplateError: The template does not take a note there.
    """
    parts, chat = transcript.parts, transcript.chat
    first, gone = min(indices), set(indices)
    note = Part("summary", 0, parts[first].turn, pinned=True)
    if parts[first].templated:
        region = next(region for region in _regions(parts) if first in region)
        before = [m for i in region if i < first for m in parts[i].messages]
        rest = [i for i in region if i >= first and i not in gone]
        after = [m for i in rest for m in parts[i].messages]
        for messages in chat.notes_between(before, text, after):
            note.messages = messages
            removal = plan_removal(transcript, gone, note=note)
            if removal.n_removed > 0:
                break  # some templates repeat all their instructions in each system message
    else:
        previous = transcript.last_of(transcript.start_of(first))
        tokens = chat.continue_text(text, previous, parse_special=False)
        removal = plan_removal(transcript, gone, note=note, raw_note=tokens)
    if removal.n_removed <= 0:
        n_gone = sum(parts[i].n_tokens for i in gone)
        raise InvalidParameterError(
            f"summarize: the summary has {n_gone - removal.n_removed:,} tokens, what it "
            f"replaces {n_gone:,}: write a shorter one"
        )
    return removal


def _regions(parts: list[Part]) -> list[list[int]]:
    """Group the indices of parts by whether the template made them."""
    indices = groupby(range(len(parts)), lambda i: parts[i].templated)
    return [list(run) for _, run in indices]


def _all_of(transcript: Transcript, index: int) -> Replacement:
    start = transcript.start_of(index)
    none = transcript.sequence.tokens[:0]
    return Replacement(start, start + transcript.parts[index].n_tokens, none)


class _Rendered:
    """Consecutive parts that the template made, and the tokens that spell their text.

    An answer that was generated after the text does not belong to it.
    """

    def __init__(self, transcript: Transcript, region: list[int]) -> None:
        self._transcript = transcript
        self._region = region
        last = transcript.parts[region[-1]]
        self._answer = region[-1] if last.n_opening is not None else None
        n_last = last.n_tokens if last.n_opening is None else last.n_opening
        self._end = transcript.start_of(region[-1]) + n_last
        self._text = self._text_of(region)
        self._aligned = Alignment(
            transcript.sequence, transcript.chat, transcript.start_of(region[0]), self._text
        )
        # Where a token begins or ends, and a character does.
        bounds = self._aligned.boundaries().tolist()
        self._bounds = np.array([b for b in bounds if self._text[b : b + 1] not in _CONTINUES])

    def _text_of(self, kept: Collection[int], note: Sequence[dict[str, Any]] = ()) -> bytes:
        """Render the messages of some parts, with a note where the first one is missing."""
        messages: list[dict[str, Any]] = []
        for i in self._region:
            if i not in kept:
                messages += note
                note = ()
            elif i != self._answer:
                messages += self._transcript.parts[i].messages
        if not messages:
            return b""
        for_answer, opens = self._answer in kept, self._region[0] == 0
        chat = self._transcript.chat
        return chat.render(messages, for_answer=for_answer, opens=opens).data

    def cut_out(self, doomed: list[int]) -> list[Replacement] | None:
        """Remove parts run by run, so that what stays between them need not be replaced.

        Returns:
            The last place first; None if the tokens do not spell the text, or if what is before or
            after a run looks different without it.
        """
        aligned = self._aligned
        if (aligned.n_tokens, aligned.n_bytes) != (self._end, len(self._text)):
            return None
        runs = list(_runs(doomed))
        found = self._spans_themselves(runs, self._text_of(set(self._region) - set(doomed)))
        return self._run_by_run(runs) if found is None else found

    def _spans_themselves(self, runs: list[list[int]], text: bytes) -> list[Replacement] | None:
        """Cut out the spans' own tokens, if that leaves this text."""
        parts, aligned = self._transcript.parts, self._aligned
        pieces, found, at = [], [], 0
        for run in runs:
            first = max(aligned.start, self._transcript.start_of(run[0]))
            stop = self._transcript.start_of(run[-1]) + parts[run[-1]].n_tokens
            pieces.append(self._text[at : aligned.byte_at(first)])
            at = aligned.byte_at(stop)
            if not self._may_follow(first, stop, self._text[at:]):
                return None
            found.append(Replacement(first, stop, self._transcript.sequence.tokens[:0]))
        pieces.append(self._text[at:])
        return found[::-1] if b"".join(pieces) == text else None

    def _run_by_run(self, runs: list[list[int]]) -> list[Replacement] | None:
        text, kept, limit = self._text, set(self._region), len(self._text)
        found: list[Replacement] = []
        for run in reversed(runs):
            kept -= set(run)
            shorter = self._text_of(kept)
            wanted = self._aligned.byte_at(self._transcript.start_of(run[0]))
            start, stop = self._range(text, shorter, wanted)
            if stop > limit:
                return None
            replaced = shorter[start : stop - (len(text) - len(shorter))]
            found.append(self._replacement(start, self._aligned.token_at(stop), replaced))
            text, limit = shorter, start
        return found

    def _may_follow(self, first: int, stop: int, text: bytes) -> bool:
        """Return whether a token spells a text also after the tokens before ``first``.

        A SentencePiece vocabulary puts a space before a text. Only after a special token that space
        is not part of the text.
        """
        sequence, vocab = self._transcript.sequence, self._transcript.chat.vocab
        if stop >= self._end:
            return True
        piece = vocab.token_to_piece(sequence.token_at(stop))
        previous = self._transcript.last_of(first)
        if text.startswith(piece) or not piece.startswith(b" "):
            return True
        return previous is None or vocab.is_control(previous)

    def _range(self, old: bytes, new: bytes, wanted: int) -> tuple[int, int]:
        """Choose which bytes of a text to replace, so that it becomes the other one.

        Args:
            old: The text, spelled by the tokens up to where it was changed last.
            new: The other one.
            wanted: Where to begin if there is a choice: if two turns begin in the same way, a cut
                after any of these bytes gives the same text.
        """
        bounds, n_less = self._bounds, len(old) - len(new)
        n_before, n_after = n_common(old, new), n_common(old[::-1], new[::-1])
        first, last = len(new) - n_after, n_before
        if n_less >= 0 and first <= last:
            starts = bounds[(bounds >= first) & (bounds <= last)]
            starts = starts[np.isin(starts + n_less, bounds)]
            for start in starts[abs(starts - wanted).argsort()].tolist():
                stop = start + n_less
                tokens = self._aligned.token_at(start), self._aligned.token_at(stop)
                if self._may_follow(*tokens, old[stop:]):
                    return start, stop
            start = min(max(wanted, first), last)
            stop = start + n_less + 1  # with the token that cannot stay as it is
        else:
            start = n_before
            stop = len(old) - min(n_after, len(new) - n_before, len(old) - n_before)
        # Tokens are replaced whole.
        after = bounds[bounds >= stop]
        return int(bounds[bounds <= start][-1]), int(after[0]) if len(after) else len(old) + 1

    def replace_rest(self, doomed: list[int], note: Sequence[dict[str, Any]]) -> Replacement:
        """Remove parts, and tokenise everything after the first difference again."""
        text = self._text_of(set(self._region) - set(doomed), note)
        n_same = min(n_common(self._text, text), self._aligned.n_bytes)
        start = int(self._bounds[self._bounds <= n_same][-1])
        return self._replacement(start, self._end, text[start:])

    def _replacement(self, start: int, stop: int, text: bytes) -> Replacement:
        """Replace the tokens from a byte on, up to an index, by those of a text."""
        transcript, first = self._transcript, self._aligned.token_at(start)
        old = transcript.sequence.tokens[first:stop]
        new = transcript.chat.continue_rendered(text, transcript.last_of(first))
        n_before = n_same_tokens(old, new)
        n_after = n_same_tokens(old[n_before:][::-1], new[n_before:][::-1])
        return Replacement(first + n_before, stop - n_after, new[n_before : len(new) - n_after])


def _resize(
    parts: list[Part],
    old: list[Part],
    gone: set[int],
    replacements: list[Replacement],
    has_note: bool,
) -> bool:
    """Divide the tokens that stay among the parts that stay.

    Tokens of a removed part may stay, such as a system message that the template writes into the
    first question. Those before the cut are given to the part before it, those after the cut to the
    part after it. A part without messages, such as the template's own header, is given none.

    Returns:
        False if new tokens belong to several parts, so that they must be divided by rendering.
    """
    owners = np.empty(sum(part.n_tokens for part in old), np.int64)
    stayed = np.zeros(len(owners), bool)  # those of parts that stay
    start = index = 0  # of the next token, and of the next part that stays
    note = -1
    for run_gone, run in groupby(range(len(old)), gone.__contains__):
        n = [old[i].n_tokens for i in run]
        end = start + sum(n)
        if not run_gone:
            owners[start:end] = np.repeat(np.arange(index, index + len(n)), n)
            stayed[start:end] = True
            index += len(n)
        else:
            cuts = [r.start for r in replacements if r.start <= end and r.stop >= start]
            cut = min(max(cuts[-1], start), end) if cuts else end
            before = index - 1
            if has_note and note < 0:
                note, index = index, index + 1
            after = min(index, len(parts) - 1)
            owns_text = before >= 0 and parts[before].messages
            owners[start:cut] = before if owns_text else min(before + 1, after)
            owners[cut:end] = after
        start = end
    stays = np.ones(len(owners), bool)
    sizes = np.zeros(len(parts), np.int64)
    divided = True
    for new in replacements:
        stays[new.start : new.stop] = False
        if not len(new.tokens):
            continue
        replaced = owners[new.start : new.stop][stayed[new.start : new.stop]]
        divided &= len(np.unique(replaced)) <= 1
        owner = owners[max(new.start, new.stop - 1)] if len(owners) > new.start else len(parts) - 1
        sizes[note if note >= 0 and new is replacements[-1] else owner] += len(new.tokens)
    sizes += np.bincount(owners[stays], minlength=len(parts))
    for part, size in zip(parts, sizes.tolist(), strict=True):
        if part.n_opening is not None:  # what was generated after it stays
            part.n_opening += size - part.n_tokens
        part.n_tokens = size
    return divided


def _runs(indices: list[int]) -> Iterator[list[int]]:
    """Divide ascending indices where one is missing."""
    for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        yield [i for _, i in run]
