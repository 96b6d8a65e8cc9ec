"""``llama-runner chat``: a conversation that lives in the context."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from llama_runner.cli.generate import write_stream
from llama_runner.cli.options import (
    CHAT_GENERATION,
    CHAT_MAX_TOKENS,
    CONTEXT,
    MODEL,
    QUIET,
    SYSTEM,
    generation_options,
    open_runner,
)
from llama_runner.cli.output import note, printable
from llama_runner.errors import ChatTemplateError, LlamaError

if TYPE_CHECKING:
    from llama_runner.results import ContextInfo
    from llama_runner.runner import LlamaRunner

__all__ = ["chat"]

HELP = """\
/info   show what is in the context
/gc     evict the oldest turns
/clear  clear the context
/help   show this list
/quit   leave, as Ctrl-D does; Ctrl-C stops an answer"""


@click.command(params=[MODEL, SYSTEM, *CHAT_GENERATION, *CONTEXT, QUIET])
@click.pass_context
def chat(
    context: click.Context, /, model: str | None, system: str | None, quiet: bool, **options: Any
) -> None:
    """Chat with a model.

    Type /help for the list of commands. Lines that are pasted together are one question. If the
    questions are piped in, each line is one, and the exit status is 1 if any of them failed.
    """
    overrides = {"max_tokens": CHAT_MAX_TOKENS} | generation_options(options)
    with open_runner(model, options, quiet=quiet) as runner:
        if runner.chat_template is None:
            raise ChatTemplateError(
                "this model has no chat template and cannot chat; try llama-runner generate --raw"
            )
        if not quiet:
            note("/help for help, Ctrl-D to leave")
        all_answered = Conversation(runner, system, overrides, quiet=quiet).run()
    if not all_answered and not sys.stdin.isatty():
        context.exit(1)


class Conversation:
    """The loop of questions, answers and slash commands."""

    def __init__(
        self,
        runner: LlamaRunner,
        system: str | None,
        overrides: dict[str, Any],
        *,
        quiet: bool = False,
    ) -> None:
        self.runner = runner
        self.quiet = quiet
        self.overrides = overrides
        self.opening = [{"role": "system", "content": system}] if system else []

    def run(self) -> bool:
        """Answer until the user leaves, and return whether every line succeeded."""
        all_well = True
        for line in _lines():
            if line == "/quit":
                break
            try:
                if line.startswith("/"):
                    note(self.command(line))
                elif line:
                    self.answer(line)
            except LlamaError as error:
                note(f"error: {printable(str(error))}")
                all_well = False
        return all_well

    def answer(self, question: str) -> None:
        """Ask the model and print its answer; Ctrl-C stops it."""
        turn = [{"role": "user", "content": question}]
        begun = self.runner.get_context_info().used > 0
        messages = turn if begun else self.opening + turn
        try:
            completion = write_stream(self.runner.stream_stateful(messages, **self.overrides))
        except KeyboardInterrupt:
            self.remark("\n[stopped]")
        else:
            if completion.finish_reason == "length":
                self.remark("[cut off: --max-tokens or the context is used up]")

    def remark(self, text: str) -> None:
        """Print a note about an answer, unless --quiet asks for answers alone."""
        if not self.quiet:
            note(text)

    def command(self, line: str) -> str:
        """Run a slash command and return its output."""
        match line:
            case "/info":
                return _describe(self.runner.get_context_info())
            case "/gc":
                return str(self.runner.gc_context())
            case "/clear":
                self.runner.clear_context()
                return "cleared"
            case "/help":
                return HELP
        return f"unknown command {printable(line)}; /help lists the commands"


def _lines() -> Iterator[str]:
    """Yield what the user types until the input ends; a terminal has a prompt and editing."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # adds editing and history to input()

    # The terminal marks pasted text, and input() returns it in one piece, line breaks included.
    readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        try:
            yield "\n".join([input("> "), *_waiting_lines()]).strip()
        except KeyboardInterrupt:
            note("")
        except EOFError:
            note("")
            return


def _waiting_lines() -> Iterator[str]:
    """Yield the other lines of a paste if the terminal does not mark pasted text."""
    while select.select([sys.stdin], [], [], 0.05)[0]:
        try:
            yield input()
        except EOFError:  # raised again when the next question is read
            return


def _describe(info: ContextInfo) -> str:
    lines = [str(info)]
    for span in info.spans:
        pinned = ", pinned" if span.pinned else ""
        lines.append(f"{span.start:8,}  {span.role}: {span.tokens:,} tokens{pinned}")
    return "\n".join(lines)
