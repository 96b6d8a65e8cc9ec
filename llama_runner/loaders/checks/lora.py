"""Checks of a LoRA adapter against the model that it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import IO, Final

from llama_runner.errors import ModelValidationError
from llama_runner.loaders.checks.metadata import Facts
from llama_runner.loaders.checks.tensors import check_tensor_layout, check_tensor_types
from llama_runner.loaders.gguf.header import ModelPath, quoted
from llama_runner.loaders.gguf.info import GgufInfo, TensorInfo
from llama_runner.loaders.gguf.read import read_gguf

__all__ = ["bare_header", "validate_lora"]

_EMBEDDINGS: Final = "token_embd.weight"
_LOW_RANK: Final = (".lora_a", ".lora_b")


def validate_lora(adapter: ModelPath | IO[bytes], base: GgufInfo) -> GgufInfo:
    """Check that a LoRA adapter can be applied to a model, and return its header.

    Args:
        adapter: The path of its file, or the file, open for reading bytes.
        base: The model's header.

    Raises:
        ModelNotFoundError: There is no such file.
        FileReadError: The system does not allow reading it.
        ModelValidationError: It is not an adapter, or not for this model; ``field`` says where.
    """
    info = read_gguf(adapter)
    facts = Facts(info)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        found = facts.text(key)
        if found != wanted:
            raise ModelValidationError(
                f"{quoted(str(info.path), 200)} is not a LoRA adapter: {key} is "
                f"{'missing' if found is None else quoted(found)} instead of {wanted!r}",
                field=key,
            )
    check_tensor_layout(facts, info)
    check_tensor_types(facts)
    if facts.text("general.architecture") != base.architecture:
        facts.fail(
            "general.architecture",
            f"it is for {quoted(facts.architecture)} models, but this one is {base.architecture!r}",
        )
    facts.number("adapter.lora.alpha", -1e6, 1e6)
    facts.array("adapter.alora.invocation_tokens", "u32")
    _check_pairs(facts, base)
    return info


def bare_header(info: GgufInfo) -> GgufInfo:
    """Return what a model's adapters are compared with: its header without the long arrays."""
    key = "general.architecture"
    keys = {key: info.keys[key]} if key in info.keys else {}
    return replace(info, keys=keys, value_types={}, parts=())


def _check_pairs(facts: Facts, base: GgufInfo) -> None:
    targets = {tensor.name: tensor for tensor in base.tensors}
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for tensor in facts.info.tensors:
        suffix = tensor.name[-7:]
        if suffix in _LOW_RANK:
            pairs.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
        elif not tensor.name.endswith("_norm.weight"):
            facts.fail(tensor.name, f"{quoted(tensor.name)} does not belong in a LoRA adapter")
    if not pairs:
        facts.fail("n_tensors", "it does not change any tensor")
    for name, pair in pairs.items():
        if len(pair) != 2:
            facts.fail(name, f"one half of the pair for {quoted(name)} is missing")
        if name not in targets:
            facts.fail(name, f"it changes {quoted(name)}, which this model does not have")
        if name == _EMBEDDINGS and "output.weight" not in targets:
            facts.fail(
                name,
                f"it changes {quoted(name)}, which this model also uses for its output: llama.cpp "
                "cannot change a tensor with two uses; convert the adapter without it",
            )
        _check_shapes(facts, targets[name], *(_padded_shape(pair[half]) for half in _LOW_RANK))


def _check_shapes(
    facts: Facts, target: TensorInfo, down: tuple[int, ...], up: tuple[int, ...]
) -> None:
    """Compare with the changed tensor; llama.cpp would read past a wrong third dimension."""
    shape = _padded_shape(target)
    if target.name.endswith("token_embd.weight"):  # looked up, not multiplied: A is transposed
        expected = (up[1], down[1])
        ranks = (down[0], up[0])
    else:
        expected = (down[0], up[1])
        ranks = (down[1], up[0])
    if shape[:2] != expected or ranks[0] != ranks[1] or not shape[2:] == down[2:] == up[2:]:
        facts.fail(
            target.name,
            f"shapes {down} and {up} do not fit {quoted(target.name)} of shape {target.shape}",
        )


def _padded_shape(tensor: TensorInfo) -> tuple[int, ...]:
    return tensor.shape + (1,) * (4 - len(tensor.shape))
