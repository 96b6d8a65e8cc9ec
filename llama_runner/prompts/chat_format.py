"""Messages to text and tokens, in the format that a model was trained on."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llama_runner._core import ChatTemplate
from llama_runner.errors import ChatTemplateError, TokenizationError
from llama_runner.tokens import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BREAK", "ChatFormat"]

# Stands in rendered text where no token may reach across: a noncharacter, which no text has.
_BREAK = "\ufdd0"
BREAK = _BREAK.encode()
# Whose messages may write special tokens: the program's own and the model's.
_TRUSTED = ("system", "developer", "assistant")


class ChatFormat:
    """A tokenizer and a chat template that belong together.

    Args:
        tokenizer: The model's.
        template: Or why there is none: raw prompts work without one.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | ChatTemplateError) -> None:
        self.tokenizer = tokenizer
        self.vocab = tokenizer.vocab
        self.template = template if isinstance(template, ChatTemplate) else None
        self._problem = template.message if isinstance(template, ChatTemplateError) else ""

    def render(
        self, messages: list[dict[str, Any]], *, for_answer: bool = True, opens: bool = True
    ) -> tuple[str, tuple[str, ...]]:
        """The text of messages, and the strings that end an answer in this format.

        Args:
            messages: Checked messages.
            for_answer: End with what opens an assistant's message.
            opens: They open the conversation. Behind other text, what the template writes by
                itself before the first of them is left out.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        if self.template is None:
            raise ChatTemplateError(self._problem)
        harmless = [self._without_control(message) for message in messages]
        text, stops = self.template.render(harmless, add_generation_prompt=for_answer)
        if not opens and messages[0]["role"] != "system":
            text = text.removeprefix(self.implied_header.decode())
        return text, stops

    def _without_control(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message whose content is text alone, also where it spells "<|im_end|>"."""
        content, trusted = message.get("content"), message["role"] in _TRUSTED
        if not content:
            return message
        if isinstance(content, str):
            return {**message, "content": self._broken_up(content, trusted)}
        parts = [{**part, "text": self._broken_up(part["text"], trusted)} for part in content]
        if not trusted:  # a template may put one part right behind the other
            for part in parts[1:]:
                part["text"] = _BREAK + part["text"]
        return {**message, "content": parts}

    def _broken_up(self, text: str, trusted: bool) -> str:
        text = text.replace(_BREAK, "\N{REPLACEMENT CHARACTER}")
        return text if trusted else self._inside_control(text, BREAK)

    def _inside_control(self, text: str, mark: bytes) -> str:
        """Text with a mark in each control token that it spells."""
        try:
            places = self.vocab.inside_control(text)
        except TokenizationError:
            return text  # no Unicode; the template says which message it is
        if not places:
            return text
        data = text.encode()
        pieces = (data[a:b] for a, b in pairwise([0, *places, len(data)]))
        return mark.join(pieces).decode()

    def text_of(self, messages: list[dict[str, Any]], *, opens: bool = True) -> str:
        """The text of messages alone, "" where the template refuses them."""
        try:
            return self.render(messages, for_answer=False, opens=opens)[0]
        except ChatTemplateError:
            return ""

    def end_of(
        self,
        messages: list[dict[str, Any]],
        i: int,
        data: bytes,
        *,
        start: int | None = None,
        inside: int | None = None,
    ) -> int | None:
        """Where a message ends in the text of a conversation that begins with these messages.

        Rendering all messages up to each one would take quadratic time. So what a message adds to
        the last question and step before it is looked for where it must be; only if it is not
        there, all are rendered.

        Args:
            messages: The conversation.
            i: Index of the message.
            data: The text, UTF-8.
            start: Where the message before it ends, if that is known.
            inside: A place in it or at its end, if one is known.

        Returns:
            A byte offset, or None where the template shows the message only with the next.
        """
        behind = _last_step(messages[:i])
        if len(behind) < i and (start is not None or inside is not None):
            before, after = self.text_of(behind), self.text_of([*behind, messages[i]])
            block = after.removeprefix(before).encode() if after.startswith(before) else b""
            first, last = (start, start) if inside is None else (inside - len(block), inside)
            at = data.find(block, max(0, first or 0), (last or 0) + len(block))
            if before and block and at >= 0:
                return at + len(block)
        for opens in (True, False):
            whole = self.text_of(messages[: i + 1], opens=opens).encode()
            if whole and data.startswith(whole):
                return len(whole)
        return None

    def tokenize(self, text: bytes, behind: int | None) -> tuple[NDArray[np.int32], bool]:
        """Token ids of rendered text, and whether a BOS was put before it.

        Templates write their special tokens themselves, but not all write the BOS.

        Args:
            text: UTF-8.
            behind: The token that it follows; None at the start.
        """
        tokens = self.continue_rendered(text, behind)
        bos = self.vocab.bos
        if behind is not None or not self.vocab.add_bos or bos is None:
            return tokens, False
        if len(tokens) and tokens[0] == bos:
            return tokens, False
        import numpy as np

        return np.concatenate([np.array([bos], np.int32), tokens]), True

    def continue_rendered(self, text: bytes, behind: int | None) -> NDArray[np.int32]:
        """Token ids of rendered text that follows other tokens."""
        first, *others = text.split(BREAK)
        runs = [self.continue_text(first, behind)]
        for piece in others:
            behind = int(runs[-1][-1]) if len(runs[-1]) else behind
            runs.append(self.continue_text(piece, behind))
        if not others:
            return runs[0]
        import numpy as np

        return np.concatenate(runs)

    def continue_text(
        self, text: str | bytes, behind: int | None, *, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Token ids of text that follows other tokens.

        SentencePiece vocabularies put a space before a text, and behind a special token; not in
        the middle of one.
        """
        tokens = self.tokenizer.tokenize(text, add_special=False, parse_special=parse_special)
        if behind is None or not self._adds_space or self.vocab.is_control(behind):
            return tokens
        data = text.encode() if isinstance(text, str) else text
        opening = self.vocab.tokenize(b"\n", add_special=False)
        whole = self.vocab.tokenize(b"\n" + data, add_special=False, parse_special=parse_special)
        n = len(opening)
        return whole[n:] if (whole[:n] == opening).all() else tokens

    @cached_property
    def _adds_space(self) -> bool:
        tokens = self.vocab.tokenize("a", add_special=False)
        return len(tokens) > 0 and self.vocab.token_to_piece(int(tokens[0])).startswith(b" ")

    @cached_property
    def implied_header(self) -> bytes:
        """What the template writes before a conversation that has no system message.

        Some models' templates put a system prompt of their own there, or a BOS. It must be a span
        by itself, or it would go with the first turn and the rest would not be what the template
        makes.
        """
        user = {"role": "user", "content": "a"}
        turn = [user, {"role": "assistant", "content": "b"}]
        first = self.text_of([user])
        block = self.text_of([*turn, user]).removeprefix(self.text_of(turn))
        if block and first.endswith(block):
            return first.removesuffix(block).encode()
        return b""

    def inserted(
        self, before: list[dict[str, Any]], text: str, behind: list[dict[str, Any]]
    ) -> tuple[str, list[dict[str, Any]]]:
        """How the template shows a note to the model between other messages.

        As a system message, or a user's where it takes no second system message; with an answer
        where it wants users and assistants to take turns.

        Returns:
            (text, messages): what to put behind the text of ``before``, and the messages it is of.

        Raises:
            ChatTemplateError: The template takes it in no form.
        """
        # It may quote strangers, and stands where a program's own text does: changed for good.
        text = self._inside_control(text, "\N{ZERO WIDTH SPACE}".encode())
        note = {"role": "user", "content": text}
        # A note in the place of what the template writes by itself would be one that opens.
        lead = self.text_of(before) if before else self.implied_header.decode()
        for messages in (
            [{"role": "system", "content": text}],
            [note],
            [note, {"role": "assistant", "content": "Understood."}],
        ):
            whole = self.text_of([*before, *messages])
            if not whole.startswith(lead) or len(whole) <= len(lead):
                continue
            if self.text_of([*before, *messages, *behind]).startswith(whole):
                return whole.removeprefix(lead), messages
        raise ChatTemplateError(
            "summarize: this chat template takes no note between messages: use another policy"
        )


def _last_step(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation's last question, and what the assistant said last with what followed it."""
    places = range(len(messages))
    j = next((k for k in reversed(places) if messages[k]["role"] == "user"), 0)
    steps = (k for k in reversed(places[j + 1 :]) if messages[k]["role"] == "assistant")
    return messages[j : j + 1] + messages[next(steps, j + 1) :]
