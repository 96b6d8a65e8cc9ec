"""What can be done with a conversation that lives in the KV memory."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
)

from llama_runner._core import Sequence
from llama_runner._support.files import write_file
from llama_runner.conversation.checkpoints import Checkpoint
from llama_runner.conversation.conversation import Conversation
from llama_runner.conversation.policies import GcPolicyLike, resolve_policy
from llama_runner.conversation.snapshot import (
    naming,
    open_snapshot,
    read_file,
    snapshot_path,
    take_snapshot,
)
from llama_runner.conversation.transcript import TranscriptMark
from llama_runner.errors import InvalidParameterError
from llama_runner.generation.stream import Stream
from llama_runner.params import GenerationOptions, GenerationParams, generation_params
from llama_runner.prompts.messages import (
    Message,
    Prompt,
    as_prompt,
    is_messages,
    read_messages,
    refuse_unseen_roles,
)
from llama_runner.results import Completion, ContextInfo, GcReport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Session", "SessionMark"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Method = Callable[Concatenate["Session", _P], _T]


# Calls, not context managers: where a signal handler raises between the two halves of one, the
# second would never come.


def _looking(method: _Method[_P, _T]) -> _Method[_P, _T]:
    """See :meth:`Conversation.look`."""

    @wraps(method)
    def call(self: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._conversation.look(partial(method, self, *args, **kwargs))

    return call


def _alone(method: _Method[_P, _T]) -> _Method[_P, _T]:
    """See :meth:`Conversation.change`."""

    @wraps(method)
    def call(self: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._conversation.change(partial(method, self, *args, **kwargs))

    return call


def _undone_on_error(method: _Method[_P, _T]) -> _Method[_P, _T]:
    """See :meth:`Conversation.attempt`."""

    @wraps(method)
    def call(self: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._conversation.attempt(partial(method, self, *args, **kwargs))

    return call


@dataclass(frozen=True, slots=True, eq=False)
class SessionMark:
    """A place in a conversation to come back to; see :meth:`Session.mark`."""

    transcript: TranscriptMark
    checkpoint: Checkpoint | None
    lineage: object


class Session:
    """One conversation on a context. Made by :meth:`LlamaRunner.session`.

    Calls from several threads take turns: also :meth:`info`, :attr:`messages` and :meth:`close`
    wait until a :meth:`generate` of another thread is done. While a stream is open, others are
    refused. All but ``close`` raise ClosedError once the session or its runner is closed, and
    ForkedProcessError in a child process.

    Args:
        conversation: What is in it, and whose turn it is.
        name: For people.
        defaults: How to sample where a call does not say.

    Attributes:
        name: For people; a saved session keeps it.

    Raises:
        InvalidParameterError: ``name`` is no printable text.
    """

    def __init__(
        self,
        conversation: Conversation,
        *,
        name: str | None = None,
        defaults: GenerationParams | None = None,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name.isprintable()):
            raise InvalidParameterError(f"name={name!r}: must be printable text", field="name")
        self.name = name
        self._conversation = conversation
        self._defaults = defaults or GenerationParams()

    @property
    def _sequence(self) -> Sequence:
        return self._conversation.sequence

    @property
    @_looking
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first; a copy.

        Waits for a call of another thread on this conversation.

        Raises:
            ClosedError, ForkedProcessError: The session cannot be used any more, or not here.
        """
        return copy.deepcopy(self._conversation.transcript.messages)

    # ---- generating ----------------------------------------------------------------------------

    @_alone
    def generate(
        self,
        prompt: Prompt | Iterable[Message] = (),
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Completion:
        """Add a prompt, generate, and keep both. A call that raises leaves all as it was.

        Args:
            prompt: Text or token ids to go on with, or messages; () to answer what is there.
            max_tokens: Most tokens to generate, -1 until the context is full; what ``params`` say,
                or 200, if not given.
            params: How to sample and when to stop, where it says so: for what it does not set, the
                runner's defaults hold. ``overrides`` are changes to it.

        Raises:
            ContextBusyError: A stream on this conversation is open.
            ContextFullError: All that could make room is pinned.
            Others: As for :meth:`LlamaRunner.generate_stateless`.
        """
        chosen = generation_params(max_tokens, params, overrides, self._defaults)
        return self._conversation.generate(self._read(prompt), chosen)

    @_alone
    def stream(
        self,
        prompt: Prompt | Iterable[Message] = (),
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Stream:
        """Like :meth:`generate`, in chunks. What was generated when it is closed is kept.

        One that is closed before its first token leaves nothing behind.

        Raises:
            As :meth:`generate`; what goes wrong while it is computed, where the stream is read. A
            stream that could not make room ends with what it has, one that failed is undone.
        """
        chosen = generation_params(max_tokens, params, overrides, self._defaults)
        return self._conversation.stream(self._read(prompt), chosen)

    def _read(self, prompt: Prompt | Iterable[Message]) -> Prompt:
        prompt = as_prompt(prompt)
        if is_messages(prompt):
            refuse_unseen_roles(prompt, self._conversation.transcript.chat.template)
        return prompt

    def cancel(self) -> None:
        """Stop what is generated on this conversation, from any thread.

        What there is by then is the answer, with the finish reason "cancelled"; before its first
        token it is as if the call had never been, whatever usage and receipt say. A stream that is
        open ends, too, whoever has it. Where nothing is generated, nothing happens.
        """
        self._conversation.cancel()

    @_alone
    @_undone_on_error
    def append(
        self,
        prompt: Prompt | Iterable[Message],
        *,
        add_special: bool = True,
        parse_special: bool = True,
    ) -> None:
        """Add text, token ids or messages without generating; decoded with the next generation.

        Unlike :meth:`generate` it never takes messages for the whole conversation: an assistant's
        message, as of an example or a call of a tool, comes behind what is there.

        Raises:
            InvalidParameterError: It is empty, or its messages are none.
            TokenizationError: It is no text, or has token ids that do not exist.
            ChatTemplateError: There is no template, or it refuses these messages.
            PromptTooLongError: It does not fit beside what is pinned.
            ContextBusyError: A stream on this conversation is open.
        """
        conversation = self._conversation
        prompt = self._read(prompt)
        if is_messages(prompt):
            conversation.add_messages(read_messages(prompt), for_answer=False)
        else:
            conversation.transcript.add_raw(
                prompt, add_special=add_special, parse_special=parse_special
            )
        conversation.collector.make_room_for_prompt()

    # ---- memory --------------------------------------------------------------------------------

    @_looking
    def info(self) -> ContextInfo:
        """What is in the conversation's memory. Computes nothing on the model.

        Waits for a call of another thread on this conversation.

        Raises:
            ClosedError, ForkedProcessError: The session cannot be used any more, or not here.
        """
        return self._conversation.collector.info()

    @_alone
    @_undone_on_error
    def gc(
        self,
        target: float = 0.5,
        *,
        policy: GcPolicyLike = "oldest_turns",
        dry_run: bool = False,
        exact: bool = False,
    ) -> GcReport:
        """Drop spans until at most ``target`` of the context is used.

        A system message, turns with a pinned span and the newest turn stay; of the newest, older
        calls of tools and their results may go. On a model that remembers with
        plain attention the rest moves up; otherwise, or with ``exact``, it is decoded again with
        the next generation; also while it shares the cells of the rest with a fork, or with what
        it was forked from.

        Args:
            target: Share of the context, from 0 to less than 1. Nothing is dropped where less is
                used.
            policy: "oldest_turns", "tool_results", or a policy of :mod:`llama_runner.memory`.
            dry_run: Drop nothing, report what would be done and what it would cost. A parked
                conversation comes back into the KV memory for that, and others may have to leave.
            exact: Decode what stays again, as if what goes had never been there; also what earlier
                collections moved up.

        Raises:
            InvalidParameterError: ``target`` is out of range, there is no such policy, it proposes
                what is no span, or a summary is no text or too long.
            ChatTemplateError: The template takes no summary there.
            ContextBusyError: A stream on this conversation is open.
            Others: Whatever the policy raises. In each case nothing was dropped.
        """
        if not isinstance(target, int | float) or not 0 <= target < 1:
            raise InvalidParameterError(
                f"target={target!r}: must be a number from 0 on and less than 1", field="target"
            )
        chosen = resolve_policy(policy)
        conversation = self._conversation
        return conversation.collector.collect(target, chosen, dry_run=dry_run, exact=exact)

    @_alone
    @_undone_on_error
    def clear(self) -> None:
        """Forget everything.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        self._conversation.transcript.clear()
        self._conversation.collector.reset()

    def pin(self, index: int = -1) -> None:
        """Keep a span whatever happens.

        What opens the conversation, a system message or the first raw text, is always kept.

        Args:
            index: Of :attr:`ContextInfo.spans`; by default the newest.

        Raises:
            InvalidParameterError: There is no such span.
            ContextBusyError: A stream on this conversation is open.
        """
        self._set_pinned(index, True)

    def unpin(self, index: int = -1) -> None:
        """Let a span go again when room is needed; not what opens the conversation, which stays.

        Args:
            index: As for :meth:`pin`.

        Raises:
            As :meth:`pin`.
        """
        self._set_pinned(index, False)

    @_alone
    def _set_pinned(self, index: int, pinned: bool) -> None:
        self._sequence.check_idle()
        parts = self._conversation.transcript.parts
        try:
            parts[operator.index(index)].pinned = pinned
        except (IndexError, TypeError):
            raise InvalidParameterError(
                f"index={index!r}: must be one of the {len(parts)} spans' indices",
                field="index",
            ) from None

    @_alone
    def pause(self) -> None:
        """Stay in the KV memory while a tool runs: until the next use, others leave it first.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        self._sequence.keep_warm()

    # ---- time travel ---------------------------------------------------------------------------

    @_alone
    def mark(self) -> SessionMark:
        """This place in the conversation, to :meth:`rewind` to.

        On a model with a recurrent state it holds a copy of that state; otherwise next to nothing.

        Raises:
            ContextBusyError: A stream on this conversation is open.
            DecodeError: llama.cpp cannot save the recurrent state.
        """
        self._sequence.check_idle()
        self._sequence.bring_in()
        checkpoint = Checkpoint.take(self._sequence)
        return SessionMark(
            self._conversation.transcript.mark(), checkpoint, self._conversation.lineage
        )

    @_alone
    @_undone_on_error
    def rewind(self, mark: SessionMark) -> None:
        """Go back to a mark of this session: as if what came later had never been.

        A mark of a session that this one was forked from, or that was forked from it, makes this
        one what that was.

        Raises:
            InvalidParameterError: It is no mark of this session or its forks.
            ContextBusyError: A stream on this conversation is open.
        """
        self._sequence.check_idle()
        if not isinstance(mark, SessionMark) or mark.lineage is not self._conversation.lineage:
            raise InvalidParameterError(
                "mark: must be what mark() of this session, or of a fork, returned",
                field="mark",
            )
        self._sequence.bring_in()
        self._conversation.return_to(mark.transcript, mark.checkpoint)
        self._conversation.collector.reset()

    @_alone
    def fork(self, name: str | None = None) -> Session:
        """A second conversation that begins as this one; they go on independently.

        On plain attention in the unified layout both have the same cells; no token is copied.

        Args:
            name: The new one's, for people.

        Raises:
            InvalidParameterError: ``name`` is no printable text.
            ContextBusyError: A stream on this conversation is open.
        """
        return Session(self._conversation.fork(), name=name, defaults=self._defaults)

    # ---- saving --------------------------------------------------------------------------------

    @_alone
    def snapshot(self) -> bytes:
        """The whole conversation as bytes, its cells in the KV memory included.

        They grow with the conversation; on SmolLM2 a token takes 23 kB. For :meth:`restore`, also
        in another process, with the same model.

        Raises:
            DecodeError: llama.cpp cannot save the state.
            ContextBusyError: A stream on this conversation is open.
        """
        return take_snapshot(self._conversation.transcript, self.name)

    @_alone
    def restore(self, snapshot: Buffer) -> None:
        """Become the conversation of a snapshot, in the place of what was here.

        With other context settings than it was made with (kv_type, kv_layout, flash_attention,
        swa_full, RoPE), or another version of llama.cpp, its tokens are computed again with the
        next generation.

        Raises:
            SnapshotError: It is damaged, of a newer version, of another model or adapter, or no
                snapshot; the conversation is as it was.
            PromptTooLongError: It has more tokens than this context holds; likewise.
            ContextBusyError: A stream on this conversation is open.
        """
        self._sequence.check_idle()
        old, new = self._sequence, self._conversation.empty_transcript()
        new.parts, new.turn, name = open_snapshot(snapshot, new.sequence)
        self._conversation.become(new)
        self.name = self.name if name is None else name
        old.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a :meth:`snapshot` to a file, whole or not at all.

        A new file is for the user alone (mode 0600); one that is replaced keeps its mode.

        Raises:
            FileWriteError: It cannot be written there.
            NoDiskSpaceError: The disk has no room.
            ContextBusyError: A stream on this conversation is open.
        """
        write_file(snapshot_path(path), self.snapshot(), private=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Become the conversation of a file that :meth:`save` wrote; see :meth:`restore`.

        Raises:
            SnapshotNotFoundError: There is no such file; the conversation is as it was.
            SnapshotReadError: It cannot be read; likewise.
            Others: As for :meth:`restore`; the message names the file.
        """
        snapshot = read_file(path)
        with naming(path):
            self.restore(snapshot)

    # ---- lifetime ------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory back.

        Waits for a call of another thread on this conversation; :meth:`LlamaRunner.close` does not.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        self._conversation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()  # a loop over a stream may have been left early
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a session cannot be copied or pickled: use fork() for a second one, or save()"
        )

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        if self._sequence.closed:
            return f"<Session{name} (closed)>"
        n_spans = len(self._conversation.transcript.parts)
        return f"<Session{name} {n_spans} spans, {len(self._sequence)} tokens>"
