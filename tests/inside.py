"""The one place where tests look inside sessions, runners and streams.

A test should use what users can call. Where it must know what is in the KV memory, it asks here,
so that a renamed attribute changes this file and no test.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

from llama_runner import LlamaRunner, Session
from llama_runner._core import Context, Request, Sequence
from llama_runner.conversation.history import Part
from llama_runner.generation.stream import Stream
from llama_runner.prompts.chat_format import ChatFormat


def own_session(runner: LlamaRunner) -> Session:
    """Return the session that the runner's own stateful calls continue."""
    assert runner._session is not None
    return runner._session


def sequence(owner: Session | LlamaRunner) -> Sequence:
    """Return the core's sequence of a session, or of a runner's own session."""
    session = own_session(owner) if isinstance(owner, LlamaRunner) else owner
    return session._sequence


def ledger(owner: Session | LlamaRunner) -> list[int]:
    """Return every token of a session, or of a runner's own session."""
    tokens: list[int] = sequence(owner).tokens.tolist()
    return tokens


def parts(session: Session) -> Several[Part]:
    """Return the spans of a session as the transcript stores them."""
    return session._conversation.transcript.parts


def is_computing(session: Session) -> bool:
    """Return whether a call of the session has a request that can be cancelled."""
    return session._conversation.turns.request is not None


def request(stream: Stream) -> Request:
    """Return the core's request that a stream pulls from."""
    return stream._generation.request


def context(runner: LlamaRunner) -> Context:
    """Return the core's context of a runner that has one."""
    assert runner._context is not None
    return runner._context


def n_resident(runner: LlamaRunner) -> int:
    """Return the number of cells of the KV memory that hold something."""
    return context(runner).n_resident


def chat(runner: LlamaRunner) -> ChatFormat:
    """Return the runner's chat template."""
    return runner._chat
