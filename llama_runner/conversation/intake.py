"""Bringing prompts into a conversation's transcript."""

from __future__ import annotations

from typing import Any, Literal

from llama_runner.conversation.collector import Collector
from llama_runner.conversation.edits import Edits
from llama_runner.conversation.splice import Splicer
from llama_runner.conversation.turns import Turns
from llama_runner.errors import ChatTemplateError, InvalidParameterError
from llama_runner.generation.prompt_work import Difference
from llama_runner.prompts.messages import is_whole_conversation
from llama_runner.prompts.prompt import Ids, Messages, RawText, ReadPrompt

__all__ = ["Intake", "Reuse"]

Reuse = Literal["prefix", "chunks"]


class Intake:
    """Add prompts to one conversation.

    Args:
        turns: Of the conversation; the work that a prompt takes is counted there.
        collector: Of the conversation.
        reuse: What to reuse of the memory for a conversation that is given whole: the common
            beginning, or ("chunks") also what follows messages that were taken out or changed.
    """

    def __init__(self, turns: Turns, collector: Collector, reuse: Reuse) -> None:
        self._turns = turns
        self._collector = collector
        self._reuse = reuse

    def add(
        self, prompt: ReadPrompt, *, for_answer: bool, add_special: bool, parse_special: bool
    ) -> tuple[str, ...]:
        """Add a prompt, and make room for it.

        Args:
            prompt: Of any kind.
            for_answer: An answer follows: messages may be the whole conversation, and end with what
                opens an answer.
            add_special: Add BOS/EOS to raw text where the model wants them.
            parse_special: Read special tokens written out in raw text as those tokens.

        Returns:
            The strings that end an answer in the format of the chat template.
        """
        transcript = self._turns.transcript
        stops: tuple[str, ...] = ()
        if isinstance(prompt, Ids) and prompt.nothing_new and for_answer:
            stops = self._answer_what_is_there()
        elif isinstance(prompt, Messages):
            stops = self._add_messages(prompt.messages, for_answer=for_answer)
        else:
            raw = prompt.text if isinstance(prompt, RawText) else prompt.ids
            transcript.add_raw(raw, add_special=add_special, parse_special=parse_special)
        self._collector.make_room_for_prompt()
        return stops

    def _answer_what_is_there(self) -> tuple[str, ...]:
        spans = self._turns.transcript.parts
        if not spans:
            raise InvalidParameterError(
                "prompt: there is nothing to answer in an empty conversation", field="prompt"
            )
        if not spans[-1].templated:
            return ()  # raw text is continued as it is
        return self._add_messages([], for_answer=True)

    def _add_messages(self, given: list[dict[str, Any]], *, for_answer: bool) -> tuple[str, ...]:
        """Bring the transcript to what these messages say."""
        transcript, work = self._turns.transcript, self._turns.work
        whole = for_answer and (is_whole_conversation(given) or transcript.is_asked(given))
        kept = transcript.pinned_system if whole and given[0]["role"] != "system" else []
        given = kept + given
        n_moved, n_computed = work.moved, work.computed
        edited = None
        if self._reuse == "chunks" and whole:
            edited = self._move_what_follows(given)
        added = transcript.add_messages(given, whole=whole, for_answer=for_answer)
        if edited is not None:  # what was cut off again was moved in vain
            n_after = self._turns.sequence.n_cached - edited.token
            work.moved = n_moved + max(0, n_after - (work.computed - n_computed))
        places = [place for place in (edited, added.difference) if place is not None]
        if places:
            token, message = min(places)
            work.difference = Difference(token, max(0, message - len(kept)))
        return added.stops

    def _move_what_follows(self, given: list[dict[str, Any]]) -> Difference | None:
        """Take out and change what a whole conversation has differently from the transcript.

        Only as far as what follows need not be computed again.

        Returns:
            The first place that was changed.
        """
        turns, transcript = self._turns, self._turns.transcript
        changed = transcript.changes(given)
        if not changed.gone and not changed.edited:
            return None
        turns.sequence.bring_in()  # tokens that are not in the memory cannot be moved there
        places = []
        if changed.gone:
            place = transcript.start_of(changed.gone[0])
            try:
                self._collector.drop(changed.gone)
            except ChatTemplateError:
                return None  # it refuses the conversation before the other changes are made
            places.append(place)
        edits = Edits(transcript, Splicer(turns, self._collector.limit))
        if changed.edited:
            rest = transcript.changes(given) if changed.gone else changed
            edits.apply(rest.edited, rest.conversation)
        if edits.first_token is not None:
            places.append(edits.first_token)
        return Difference(min(places), changed.first_message) if places else None
