"""Which of three kinds a prompt is: raw text, token ids or chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias, cast

from llama_runner.errors import InvalidParameterError, TokenizationError
from llama_runner.prompts.messages import Message, Prompt, read_messages, refuse_unseen_roles
from llama_runner.tokens.types import TokenIds

if TYPE_CHECKING:
    from llama_runner._core import ChatTemplate

__all__ = ["Ids", "Messages", "RawText", "ReadPrompt", "read_prompt"]


@dataclass(frozen=True, slots=True)
class RawText:
    """Text that no chat template is applied to."""

    text: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids, which are not checked yet."""

    ids: TokenIds

    @property
    def nothing_new(self) -> bool:
        """Return whether these are (): a conversation is to answer what is there."""
        return isinstance(self.ids, tuple) and not self.ids


@dataclass(frozen=True, slots=True)
class Messages:
    """Chat messages, checked and copied."""

    messages: list[dict[str, Any]]


ReadPrompt: TypeAlias = RawText | Ids | Messages


def read_prompt(
    prompt: Prompt | Iterable[Message], template: ChatTemplate | None = None
) -> ReadPrompt:
    """Find out of which kind a prompt is, and check its messages.

    Args:
        prompt: What a caller gave. An iterator, such as a generator, is read to its end.
        template: The chat template that the messages are for.

    Raises:
        InvalidParameterError: It is a message that is not in a list, or a message is invalid, or
            the template shows nothing of a message because of its role.
        TokenizationError: It is not of a kind that a prompt can be.
    """
    if isinstance(prompt, str):
        return RawText(prompt)
    if isinstance(prompt, Mapping):
        raise InvalidParameterError(
            "prompt: a single message must be in a list: [message]", field="prompt"
        )
    if isinstance(prompt, bytes | bytearray) or not _has_items(prompt):
        raise _no_prompt(type(prompt).__name__)
    if not hasattr(prompt, "__getitem__"):
        prompt = list(prompt)
    if not isinstance(prompt, Sequence) or len(prompt) == 0:
        return Ids(cast("TokenIds", prompt))
    first = prompt[0]
    if not isinstance(first, Mapping | SupportsIndex):
        raise _no_prompt(f"{type(prompt).__name__} of {type(first).__name__}")
    if not isinstance(first, Mapping):
        return Ids(cast("TokenIds", prompt))
    given = cast("Sequence[Message]", prompt)
    messages = read_messages(given)
    refuse_unseen_roles(messages, template)
    return Messages(messages)


def _has_items(prompt: object) -> bool:
    try:
        iter(prompt)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def _no_prompt(kind: str) -> TokenizationError:
    return TokenizationError(
        f"prompt: must be text, token ids or a list of messages (got {kind})", field="prompt"
    )
