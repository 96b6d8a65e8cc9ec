"""Messages to text and tokens, in the format that a model was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llama_runner._core import ChatTemplate
from llama_runner.errors import ChatTemplateError, TokenizationError
from llama_runner.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BREAK", "ChatFormat", "Rendered", "n_common"]

# Stands in rendered text where no token may reach across. It is a noncharacter, so no text has it.
_BREAK = "\ufdd0"
BREAK = _BREAK.encode()
# Marks to find messages by in rendered text: one private character of the last plane for each.
_FIRST_ANCHOR, _MAX_ANCHORS = 0x100000, 0xFFFE
_ANCHOR = re.compile(rb"\xf4[\x80-\x8f][\x80-\xbf]{2}")
# Roles whose messages may write special tokens: the program's own and the model's.
_TRUSTED = ("system", "developer", "assistant")


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """Messages, and the text that a chat template makes of them.

    Attributes:
        messages: The messages.
        harmless: The same, but their content is text alone, also where it spells "<|im_end|>".
        data: The text, UTF-8.
        stops: The strings that end an answer in this format.
        for_answer: Whether the text ends with what opens an answer.
        opens: Whether the messages open the conversation.
    """

    messages: list[dict[str, Any]]
    harmless: list[dict[str, Any]]
    data: bytes
    stops: tuple[str, ...]
    for_answer: bool
    opens: bool


class ChatFormat:
    """A tokenizer and a chat template that belong together.

    Args:
        tokenizer: The model's.
        template: The template, or the reason why there is none: raw prompts work without one.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | ChatTemplateError) -> None:
        self.tokenizer = tokenizer
        self.vocab = tokenizer.vocab
        self.template = template if isinstance(template, ChatTemplate) else None
        self._problem = template.message if isinstance(template, ChatTemplateError) else ""

    def render(
        self, messages: list[dict[str, Any]], *, for_answer: bool = True, opens: bool = True
    ) -> Rendered:
        """Make one text of messages.

        Args:
            messages: Checked messages.
            for_answer: End with what opens an assistant's message.
            opens: They open the conversation. After other text, what the template writes by
                itself before the first of them is left out.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
        """
        harmless = [self._without_control(message) for message in messages]
        text, stops = self._render(harmless, for_answer=for_answer, opens=opens)
        return Rendered(messages, harmless, text.encode(), stops, for_answer, opens)

    def _render(
        self, messages: list[dict[str, Any]], *, for_answer: bool, opens: bool
    ) -> tuple[str, tuple[str, ...]]:
        if self.template is None:
            raise ChatTemplateError(self._problem)
        text, stops = self.template.render(messages, add_generation_prompt=for_answer)
        if not opens and messages[0]["role"] != "system":
            text = text.removeprefix(self.implied_header.decode())
        return text, stops

    def needs_question(self, messages: list[dict[str, Any]]) -> bool:
        """Return whether these are system messages that the template shows only with a question."""
        if any(message["role"] != "system" for message in messages):
            return False
        question = {"role": "user", "content": "a"}
        return not self._text_of(messages) and bool(self._text_of([*messages, question]))

    def _without_control(self, message: dict[str, Any]) -> dict[str, Any]:
        content, trusted = message.get("content"), message["role"] in _TRUSTED
        if not content:
            return message
        if isinstance(content, str):
            return {**message, "content": self._broken_up(content, trusted)}
        parts = [{**part, "text": self._broken_up(part["text"], trusted)} for part in content]
        if not trusted:  # a template may put one part right after the other
            for part in parts[1:]:
                part["text"] = _BREAK + part["text"]
        return {**message, "content": parts}

    def _broken_up(self, text: str, trusted: bool) -> str:
        text = text.replace(_BREAK, "\N{REPLACEMENT CHARACTER}")
        return text if trusted else self._inside_control(text, BREAK)

    def _inside_control(self, text: str, mark: bytes) -> str:
        """Return a text with a mark in each control token that it spells."""
        try:
            places = self.vocab.inside_control(text)
        except TokenizationError:
            return text  # not Unicode; the template says which message it is
        if not places:
            return text
        data = text.encode()
        pieces = (data[a:b] for a, b in pairwise([0, *places, len(data)]))
        return mark.join(pieces).decode()

    def text_of(self, messages: list[dict[str, Any]], *, opens: bool = True) -> str:
        """Return the text of harmless messages alone; "" if the template refuses them."""
        try:
            return self._render(messages, for_answer=False, opens=opens)[0]
        except ChatTemplateError:
            return ""

    def _text_of(self, messages: list[dict[str, Any]]) -> str:
        return self.text_of([self._without_control(message) for message in messages])

    def anchors(
        self, messages: list[dict[str, Any]], data: bytes, *, for_answer: bool, opens: bool
    ) -> list[int | None]:
        """Find a byte of each message's content in the text that the template makes of them.

        The messages are rendered once more, each with a mark in its content.

        Args:
            messages: Harmless ones; see :class:`Rendered`.
            data: Their text, UTF-8, as :meth:`render` made it with the same options.
            for_answer: As for :meth:`render`.
            opens: As for :meth:`render`.

        Returns:
            For each message a byte offset, None if the text does not show its mark. An empty list
            if the marks change what the template writes.
        """
        if len(messages) > _MAX_ANCHORS:
            return []
        marked = [
            _with_anchor(message, chr(_FIRST_ANCHOR + i)) for i, message in enumerate(messages)
        ]
        try:
            text = self._render(marked, for_answer=for_answer, opens=opens)[0].encode()
        except ChatTemplateError:
            return []
        if _ANCHOR.sub(b"", text) != data:
            return []
        found: list[int | None] = [None] * len(messages)
        for k, mark in enumerate(_ANCHOR.finditer(text)):
            found[ord(mark[0].decode()) - _FIRST_ANCHOR] = mark.start() - k * len(mark[0])
        return found

    def before_anchor(self, message: dict[str, Any]) -> str:
        """Return the content of a harmless message up to the mark that :meth:`anchors` puts."""
        return _divided(_shown(message))[0]

    def tokenize(self, text: bytes, previous: int | None) -> tuple[NDArray[np.int32], bool]:
        """Return the token ids of rendered text, and whether a BOS was put before it.

        Templates write their special tokens themselves, but not all write the BOS.

        Args:
            text: UTF-8.
            previous: The token before it; None at the start.
        """
        tokens = self.continue_rendered(text, previous)
        bos = self.vocab.bos
        if previous is not None or not self.vocab.add_bos or bos is None:
            return tokens, False
        if len(tokens) and tokens[0] == bos:
            return tokens, False
        import numpy as np

        return np.concatenate([np.array([bos], np.int32), tokens]), True

    def continue_rendered(self, text: bytes, previous: int | None) -> NDArray[np.int32]:
        """Return the token ids of rendered text that follows other tokens."""
        first, *others = text.split(BREAK)
        runs = [self.continue_text(first, previous)]
        for piece in others:
            previous = int(runs[-1][-1]) if len(runs[-1]) else previous
            runs.append(self.continue_text(piece, previous))
        if not others:
            return runs[0]
        import numpy as np

        return np.concatenate(runs)

    def continue_text(
        self, text: str | bytes, previous: int | None, *, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Return the token ids of text that follows other tokens.

        SentencePiece vocabularies put a space before a text and after a special token, but not in
        the middle of a text.
        """
        tokens = self.tokenizer.tokenize(text, add_special=False, parse_special=parse_special)
        if previous is None or not self._adds_space or self.vocab.is_control(previous):
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
        """The text that the template writes before a conversation without a system message.

        Some models' templates put a system prompt of their own there, or a BOS. It must be a span
        by itself. Otherwise it would be evicted with the first turn, and the rest would not be what
        the template makes.
        """
        user = {"role": "user", "content": "a"}
        turn = [user, {"role": "assistant", "content": "b"}]
        first = self.text_of([user])
        block = self.text_of([*turn, user]).removeprefix(self.text_of(turn))
        if block and first.endswith(block):
            return first.removesuffix(block).encode()
        return b""

    def notes_between(
        self, before: list[dict[str, Any]], text: str, after: list[dict[str, Any]]
    ) -> list[list[dict[str, Any]]]:
        """Return the messages that can put a note between others, the best first.

        A system message, or a user's if the template takes no second system message, with an answer
        if users and assistants have to take turns.

        Raises:
            ChatTemplateError: The template does not take it in any form.
        """
        # It may quote strangers, and stands where a program's own text does: changed for good.
        text = self._inside_control(text, "\N{ZERO WIDTH SPACE}".encode())
        note = {"role": "user", "content": text}
        forms = [
            [{"role": "system", "content": text}],
            [note],
            [note, {"role": "assistant", "content": "Understood."}],
        ]
        without = self._text_of([*before, *after]) if before or after else ""
        wholes = [self._text_of([*before, *form, *after]) for form in forms]
        accepted = [
            form
            for form, whole in zip(forms, wholes, strict=True)
            if text.strip() in whole and _is_inserted(whole, without)
        ]
        if not accepted:
            raise ChatTemplateError(
                "summarize: this chat template takes no note between messages: use another policy"
            )
        return accepted


def _is_inserted(whole: str, without: str) -> bool:
    """Tell whether one text is the other with something put into it."""
    long, short = whole.encode(), without.encode()
    n_before, n_after = n_common(long, short), n_common(long[::-1], short[::-1])
    return n_before + n_after >= len(short) < len(long)


def n_common(a: bytes, b: bytes) -> int:
    """Return with how many equal bytes two texts begin."""
    import numpy as np

    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return int((np.frombuffer(a, np.uint8, n) != np.frombuffer(b, np.uint8, n)).argmax())


def _with_anchor(message: dict[str, Any], mark: str) -> dict[str, Any]:
    """Put a mark into a message's content or, if it has none, into the name that it calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and content.strip():
        return {**message, "content": _marked(content, mark)}
    if content and not isinstance(content, str) and content[-1]["text"].strip():
        last = {**content[-1], "text": _marked(content[-1]["text"], mark)}
        return {**message, "content": [*content[:-1], last]}
    name = _name_of(calls[-1]) if calls else ""
    if calls and name:
        function = {**calls[-1]["function"], "name": _marked(name, mark)}
        return {**message, "tool_calls": [*calls[:-1], {**calls[-1], "function": function}]}
    return message


def _shown(message: dict[str, Any]) -> str:
    """Return the text of a message that a mark is put into."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = content[-1]["text"]
    if not content.strip() and message.get("tool_calls"):
        return _name_of(message["tool_calls"][-1])
    return str(content)


def _name_of(call: dict[str, Any]) -> str:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _marked(text: str, mark: str) -> str:
    return mark.join(_divided(text))


def _divided(text: str) -> tuple[str, str]:
    """Divide text before its last character that is not white space.

    A mark there survives if a template trims the text, or cuts off the thoughts before an answer.
    """
    at = max(0, len(text.rstrip()) - 1)
    return text[:at], text[at:]
