"""``llama-runner generate``: one prompt, one answer."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from llama_runner.cli.options import (
    CONTEXT,
    GENERATION,
    MODEL,
    QUIET,
    SYSTEM,
    generation_options,
    open_runner,
)
from llama_runner.cli.output import note, print_json

if TYPE_CHECKING:
    from llama_runner.generation.stream import Stream
    from llama_runner.results import Completion

__all__ = ["generate", "write_stream"]


@click.command(
    params=[
        click.Argument(["prompt"], required=False),
        click.Option(["-p", "--prompt", "prompt_text"], metavar="TEXT", help="Instead of PROMPT."),
        SYSTEM,
        click.Option(["--raw"], is_flag=True, help="Send the bare text, without a chat template."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the whole result as JSON."),
        MODEL,
        *GENERATION,
        *CONTEXT,
        QUIET,
    ]
)
def generate(
    prompt: str | None,
    prompt_text: str | None,
    raw: bool,
    as_json: bool,
    model: str | None,
    system: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer one prompt.

    PROMPT is read from standard input if it is - or missing. If there is a prompt as well, piped
    text is appended to it: cat notes.txt | llama-runner generate "Summarise:". The model gets it as
    a user's message, or, if the model has no chat template, as a text to continue.
    """
    if raw and system:
        raise click.UsageError("--system needs a chat template, which --raw does not use.")
    text = _read_prompt(prompt, prompt_text)
    if not text:
        raise click.UsageError("The prompt is empty.")
    overrides = generation_options(options)
    with open_runner(model, options, quiet=quiet) as runner:
        bare = raw or (runner.chat_template is None and not system)
        if bare and not raw and not quiet:
            note("this model has no chat template: sending the bare text, as with --raw")
        request = text if bare else _as_messages(text, system)
        if as_json:
            completion = runner.generate_stateless(request, **overrides)
            print_json(dataclasses.asdict(completion))
        else:
            completion = write_stream(runner.stream_stateless(request, **overrides))
        if not quiet:
            note(_summary(completion))


def write_stream(chunks: Stream) -> Completion:
    """Print an answer while it is generated, and return its completion."""
    completion = None
    with closing(chunks):
        for chunk in chunks:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            completion = chunk.completion
    assert completion is not None  # the last chunk carries it
    if not completion.text.endswith("\n"):
        click.echo()
    return completion


def _read_prompt(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None:
        raise click.UsageError("Give the prompt as an argument or with --prompt, not both.")
    given = option if option is not None else argument
    on_terminal = sys.stdin.isatty()
    if given is None and on_terminal:
        raise click.UsageError("No prompt: give it as an argument, or pipe it in.")
    only_piped = given is None or argument == "-"
    piped = "" if on_terminal and not only_piped else sys.stdin.read().removesuffix("\n")
    return piped if only_piped else "\n\n".join(filter(None, (given, piped)))


def _as_messages(text: str, system: str | None) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def _summary(completion: Completion) -> str:
    usage, timings = completion.usage, completion.timings
    return (
        f"[prompt: {usage.prompt_tokens} tokens, {timings.prefill_tokens_per_second:.0f}/s; "
        f"answer: {usage.completion_tokens} tokens, {timings.tokens_per_second:.1f}/s, "
        f"first after {timings.first_token_ms:.0f} ms; "
        f"{completion.finish_reason}; seed {completion.seed}]"
    )
