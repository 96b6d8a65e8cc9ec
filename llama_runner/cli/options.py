"""Options that several commands share, and opening a runner with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_runner.cli.output import bar, note, printable
from llama_runner.errors import InvalidParameterError

if TYPE_CHECKING:
    from llama_runner.runner import LlamaRunner

__all__ = [
    "CHAT_GENERATION",
    "CHAT_MAX_TOKENS",
    "CONTEXT",
    "GENERATION",
    "MODEL",
    "QUIET",
    "SYSTEM",
    "generation_options",
    "open_runner",
]


def _tokens_or_auto(value: str) -> int | str:
    if value != "auto" and not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of tokens nor 'auto'.")
    return value if value == "auto" else int(value)


MODEL = click.Option(
    ["-m", "--model"],
    metavar="PATH|NAME",
    help="Model file, or a name from 'llama-runner models'. "
    "[default: LLAMA_RUNNER_MODEL, else smollm2-135m]",
)
SYSTEM = click.Option(["-s", "--system"], metavar="TEXT", help="System message for the model.")
QUIET = click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing but the answer.")

# In a chat, an answer cut off in mid-sentence is worse than a long one.
CHAT_MAX_TOKENS = 1000


def _max_tokens(default: int) -> click.Option:
    return click.Option(
        ["-n", "--max-tokens"],
        type=int,
        show_default=str(default),
        help="Maximum number of tokens to generate; -1: until the context is full.",
    )


# GenerationParams and ContextParams alone check values and set defaults; these are only shown.
GENERATION = (
    _max_tokens(200),
    click.Option(
        ["-t", "--temperature"], type=float, show_default="0.8", help="Randomness; 0 is none."
    ),
    click.Option(
        ["--top-k"], type=int, show_default="40", help="Keep the k most likely tokens; 0 is all."
    ),
    click.Option(
        ["--top-p"],
        type=float,
        show_default="0.95",
        help="Keep the most likely tokens that together reach this probability.",
    ),
    click.Option(
        ["--min-p"],
        type=float,
        show_default="0.05",
        help="Drop tokens below this fraction of the most likely one.",
    ),
    click.Option(
        ["--repeat-penalty"],
        type=float,
        show_default="1.0",
        help="Weaken repeated tokens; 1 is off.",
    ),
    click.Option(
        ["--seed"], type=int, show_default="random", help="The same seed gives the same answer."
    ),
    click.Option(
        ["--stop"], multiple=True, metavar="TEXT", help="End the answer at TEXT (repeatable)."
    ),
)
CHAT_GENERATION = (_max_tokens(CHAT_MAX_TOKENS), *GENERATION[1:])
CONTEXT = (
    click.Option(
        ["-c", "--n-ctx"],
        type=_tokens_or_auto,
        metavar="INTEGER|auto",
        show_default="4096",
        help="Tokens of context; 0: as trained, auto: as many as fit.",
    ),
    click.Option(
        ["--n-threads"], type=int, show_default="physical cores", help="Threads for decoding."
    ),
    click.Option(
        ["--n-threads-batch"], type=int, show_default="as n-threads", help="Threads for prompts."
    ),
    click.Option(
        ["--n-gpu-layers"],
        type=int,
        show_default="-1",
        help="Layers on the accelerator; -1 is all.",
    ),
    click.Option(
        ["--kv-type"],
        metavar="TYPE",
        show_default="f16",
        help="Type of the KV cache: f16, q8_0, q4_0 ...",
    ),
)


def generation_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation parameters that the user gave.

    Raises:
        click.UsageError: A value is out of range: reported before the model is loaded.
    """
    from llama_runner.params import GenerationParams

    given = _given(values, GENERATION)
    with _wrong_usage():
        GenerationParams(**given)
    return given


@contextmanager
def open_runner(
    model: str | None, values: Mapping[str, Any], *, quiet: bool
) -> Iterator[LlamaRunner]:
    """Load the model, say which it is, and close it at the end.

    Raises:
        click.UsageError: An option is out of range.
        LlamaError: There is no such model, or it cannot be loaded with these options.
    """
    from llama_runner.loaders import default_name
    from llama_runner.params import runner_params
    from llama_runner.runner import LlamaRunner

    settings: Any = {"n_seq_max": 1} | _given(values, CONTEXT)  # one conversation gets all of n_ctx
    with _wrong_usage():
        runner_params(settings)
    path, words = _find(model)
    # Not the path: it would not lead to the model's description.
    meant = default_name() if model is None else model
    if quiet:
        runner = LlamaRunner(meant, **settings)
    else:
        note(f"model: {printable(words)}")
        with bar(path.name, count_bytes=False) as update:
            runner = LlamaRunner(
                meant, progress=lambda done: update(done, 1, "loading"), **settings
            )
    with closing(runner):
        yield runner


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Report an invalid option value like any other wrong usage."""
    try:
        yield
    except InvalidParameterError as error:
        raise click.UsageError(printable(str(error))) from None


def _given(values: Mapping[str, Any], group: Sequence[click.Option]) -> dict[str, Any]:
    names = [str(option.name) for option in group]
    return {name: values[name] for name in names if values[name] not in (None, ())}


def _find(model: str | None) -> tuple[Path, str]:
    from llama_runner.loaders import default_model, find_model

    return default_model() if model is None else (find_model(model), model)
