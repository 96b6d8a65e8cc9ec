"""What a ledger becomes when spans of a conversation go.

What stays must be the text that the template makes of the messages that stay. Templates may write
the system's text into the first question, close an answer only with the next question, or write a
header of their own, so cutting out the tokens of the spans is not enough. The conversation is
rendered with and without what goes, and what differs between the two texts is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llama_runner.alignment import Alignment, Replacement, n_same_tokens
from llama_runner.parts import Part, left
from llama_runner.prompts.chat_format import n_common

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llama_runner.transcript import Transcript

__all__ = ["Removal", "plan_removal"]


@dataclass(frozen=True, slots=True)
class Removal:
    """A transcript without some of its parts.

    Attributes:
        parts: Those that stay, with their new sizes.
        replacements: What changes in the ledger, the last place first.
        divided: Whether the sizes are right. Where tokens do not spell the text, sizes have to be
            found again once the ledger has changed.
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
    gone: set[int],
    *,
    note: Part | None = None,
    raw_note: NDArray[np.int32] | None = None,
    remember: bool = True,
) -> Removal:
    """Find out what taking parts out of a transcript changes in its ledger, which stays as it is.

    Args:
        transcript: The conversation.
        gone: Indices of the parts.
        note: A part to put in the place of the first run of them, with its messages.
        raw_note: The tokens of a note without messages.
        remember: Recognise their messages in a conversation that is given whole later.

    Raises:
        ChatTemplateError: The template refuses what would stay.
    """
    replacements: list[Replacement] = []
    divided = True
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
        divided &= found is not None
        replacements += found or [rendered.replace_rest(doomed, inserted)]
    old = [part.copy() for part in transcript.parts]
    parts = left(old, gone, note=note, remember=remember)
    sizes = _sizes(old, gone, replacements, note is not None)
    for part, size in zip(parts, sizes, strict=True):
        part.n_tokens = size
    return Removal(parts, replacements, divided)


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

    An answer that was generated after the text is not part of it.
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
        return chat.render(messages, for_answer=for_answer, opens=opens)[0].encode()

    def cut_out(self, doomed: list[int]) -> list[Replacement] | None:
        """Take parts out run by run, so that what stays between them need not be replaced.

        Returns:
            The last place first; None where the tokens do not spell the text, or where what is
            before or after a run looks different without it.
        """
        aligned = self._aligned
        if (aligned.n_tokens, aligned.n_bytes) != (self._end, len(self._text)):
            return None
        text, kept, limit = self._text, set(self._region), len(self._text)
        found: list[Replacement] = []
        for run in reversed(list(_runs(doomed))):
            kept -= set(run)
            shorter = self._text_of(kept)
            wanted = aligned.byte_at(self._transcript.start_of(run[0]))
            start, stop = self._range(text, shorter, wanted)
            if stop > limit:
                return None
            replaced = shorter[start : stop - (len(text) - len(shorter))]
            found.append(self._replacement(start, aligned.token_at(stop), replaced))
            text, limit = shorter, start
        return found

    def _range(self, old: bytes, new: bytes, wanted: int) -> tuple[int, int]:
        """Choose which bytes of a text to replace, so that it becomes the other one.

        Args:
            old: The text, spelled by the tokens up to where it was changed last.
            new: The other one.
            wanted: Where to begin if there is a choice: if two turns begin alike, a cut after any
                of these bytes gives the same text.
        """
        import numpy as np

        bounds, n_less = self._aligned.boundaries(), len(old) - len(new)
        n_before, n_after = n_common(old, new), n_common(old[::-1], new[::-1])
        first, last = len(new) - n_after, n_before
        if n_less >= 0 and first <= last:
            starts = bounds[(bounds >= first) & (bounds <= last)]
            starts = starts[np.isin(starts + n_less, bounds)]
            if len(starts):
                start = int(starts[abs(starts - wanted).argmin()])
                return start, start + n_less
            start = min(max(wanted, first), last)
            stop = start + n_less
        else:
            start = n_before
            stop = len(old) - min(n_after, len(new) - n_before, len(old) - n_before)
        # Tokens are replaced whole.
        after = bounds[bounds >= stop]
        return int(bounds[bounds <= start][-1]), int(after[0]) if len(after) else len(old) + 1

    def replace_rest(self, doomed: list[int], note: Sequence[dict[str, Any]]) -> Replacement:
        """Take parts out, and tokenise all that comes after the first difference again."""
        text = self._text_of(set(self._region) - set(doomed), note)
        n_same = min(n_common(self._text, text), self._aligned.n_bytes)
        bounds = self._aligned.boundaries()
        start = int(bounds[bounds <= n_same][-1])
        return self._replacement(start, self._end, text[start:])

    def _replacement(self, start: int, stop: int, text: bytes) -> Replacement:
        """Replace the tokens from a byte on, up to an index, by those of a text."""
        transcript, first = self._transcript, self._aligned.token_at(start)
        old = transcript.sequence.tokens[first:stop]
        new = transcript.chat.continue_rendered(text, transcript.last_of(first))
        n_before = n_same_tokens(old, new)
        n_after = n_same_tokens(old[n_before:][::-1], new[n_before:][::-1])
        return Replacement(first + n_before, stop - n_after, new[n_before : len(new) - n_after])


def _sizes(
    old: list[Part], gone: set[int], replacements: list[Replacement], has_note: bool
) -> list[int]:
    """Divide the tokens that stay among the parts that stay.

    Tokens of a part that goes may stay, as a system message that the template writes into the first
    question: those before the cut go to the part before it, those after it to the part after it.
    """
    import numpy as np

    n_kept = len(old) - len(gone) + has_note
    owners = np.empty(sum(part.n_tokens for part in old), np.int64)
    start = index = 0  # of the next token, and of the next part that stays
    note = -1
    for run_gone, run in groupby(range(len(old)), gone.__contains__):
        n = [old[i].n_tokens for i in run]
        end = start + sum(n)
        if not run_gone:
            owners[start:end] = np.repeat(np.arange(index, index + len(n)), n)
            index += len(n)
        else:
            touching = [r.start for r in replacements if r.start <= end and r.stop >= start]
            cut = min(max(touching[0], start), end) if touching else end
            owners[start:cut] = max(0, index - 1)
            if has_note and note < 0:
                note, index = index, index + 1
            owners[cut:end] = min(index, n_kept - 1)
        start = end
    stays = np.ones(len(owners), bool)
    sizes = np.zeros(n_kept, np.int64)
    for new in replacements:
        stays[new.start : new.stop] = False
        after = owners[new.stop] if new.stop < len(owners) else n_kept - 1
        sizes[note if note >= 0 and new is replacements[-1] else after] += len(new.tokens)
    sizes += np.bincount(owners[stays], minlength=n_kept)
    return sizes.tolist()


def _runs(indices: list[int]) -> Iterator[list[int]]:
    """Divide ascending indices where one is missing."""
    for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        yield [i for _, i in run]
