"""Stateless generation: a prompt in a sequence of its own, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterable

from llama_runner._core import Context
from llama_runner.generation.generation import Generation
from llama_runner.generation.prompt_work import PromptWork
from llama_runner.params import GenerationParams
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import Message, Prompt
from llama_runner.prompts.prompt import Ids, Messages, read_prompt

__all__ = ["prepare_stateless"]


def prepare_stateless(
    context: Context,
    chat: ChatFormat,
    prompt: Prompt | Iterable[Message],
    params: GenerationParams,
) -> Generation:
    """Put a prompt into a new sequence, and prepare the generation of its answer.

    Raises:
        As :meth:`LlamaRunner.generate_stateless`.
    """
    work = PromptWork()
    sequence = context.new_sequence()
    given = read_prompt(prompt, chat.template)
    stops: tuple[str, ...] = ()
    if isinstance(given, Messages):
        rendered = chat.render(given.messages)
        stops = rendered.stops
        sequence.append(chat.tokenize(rendered.data, previous=None)[0])
    elif isinstance(given, Ids):
        sequence.append(given.ids)
    elif given.text:
        sequence.append(
            chat.tokenizer.tokenize_prompt(
                given.text, add_special=params.add_special, parse_special=params.parse_special
            )
        )
    sequence.use_adapters(params.lora)
    generation = Generation(sequence, params, work, stops=stops, temporary=True)
    generation.check_adapters()
    return generation
