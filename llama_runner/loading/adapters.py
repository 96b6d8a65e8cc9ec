"""Loading a LoRA adapter: checking its file against the model before llama.cpp reads it."""

from __future__ import annotations

from llama_runner._core import Context
from llama_runner._support.files import path_text
from llama_runner.errors import InvalidParameterError, UnsupportedModelError
from llama_runner.loaders.checks.lora import validate_lora
from llama_runner.loaders.gguf.fingerprint import fingerprint
from llama_runner.loaders.gguf.header import ModelPath, open_model
from llama_runner.loaders.gguf.info import GgufInfo
from llama_runner.loaders.gguf.read import read_gguf

__all__ = ["load_adapter"]


def load_adapter(
    context: Context, header: GgufInfo | None, path: ModelPath, name: str | None
) -> str:
    """Load an adapter into a context; see :meth:`LlamaRunner.load_lora`.

    Args:
        context: The model's context.
        header: The header of the model's file, if it was already read.
        path: The adapter's file.
        name: A name for the adapter; None for the file's name without its suffix.

    Returns:
        The adapter's name.
    """
    if not isinstance(name, str | None) or name == "":
        raise InvalidParameterError(f"name={name!r}: must be a non-empty string", field="name")
    with open_model(path_text(path, "path"), "adapter") as (file, place):
        info = validate_lora(file, header or read_gguf(context.model.path))
        if "adapter.alora.invocation_tokens" in info.keys:
            raise UnsupportedModelError(
                f"{str(path)!r} is an activated LoRA, which is switched on in the middle of a "
                "prompt: convert it as a plain one"
            )
        name = place.stem if name is None else name
        context.load_adapter(name, place.absolute(), file, fingerprint(file))
    return name
