"""Model files: reading, validating, describing, naming and fetching them.

Names are loaded on first use, so that reading a header does not pay for pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_runner.loaders.catalogue.catalogue import (
        CatalogueEntry,
        list_models,
        verify,
    )
    from llama_runner.loaders.catalogue.description import (
        ModelMetadata,
        SamplingDefaults,
        load_model,
    )
    from llama_runner.loaders.catalogue.resolve import (
        default_model,
        default_name,
        find_model,
        resolve_model,
    )
    from llama_runner.loaders.checks.lora import validate_lora
    from llama_runner.loaders.checks.projector import validate_mmproj
    from llama_runner.loaders.checks.validate import ValidationReport, validate_model
    from llama_runner.loaders.estimate import MemoryEstimate, estimate_memory
    from llama_runner.loaders.fetch.pull import pull, remove
    from llama_runner.loaders.gguf.header import GgufArray
    from llama_runner.loaders.gguf.info import GgufInfo, TensorInfo
    from llama_runner.loaders.gguf.read import read_gguf

__all__ = [
    "CatalogueEntry",
    "GgufArray",
    "GgufInfo",
    "MemoryEstimate",
    "ModelMetadata",
    "SamplingDefaults",
    "TensorInfo",
    "ValidationReport",
    "default_model",
    "default_name",
    "estimate_memory",
    "find_model",
    "list_models",
    "load_model",
    "pull",
    "read_gguf",
    "remove",
    "resolve_model",
    "validate_lora",
    "validate_mmproj",
    "validate_model",
    "verify",
]

_HOME = {
    "CatalogueEntry": "catalogue.catalogue",
    "GgufArray": "gguf.header",
    "GgufInfo": "gguf.info",
    "MemoryEstimate": "estimate",
    "ModelMetadata": "catalogue.description",
    "SamplingDefaults": "catalogue.description",
    "TensorInfo": "gguf.info",
    "ValidationReport": "checks.validate",
    "default_model": "catalogue.resolve",
    "default_name": "catalogue.resolve",
    "estimate_memory": "estimate",
    "find_model": "catalogue.resolve",
    "list_models": "catalogue.catalogue",
    "load_model": "catalogue.description",
    "pull": "fetch.pull",
    "read_gguf": "gguf.read",
    "remove": "fetch.pull",
    "resolve_model": "catalogue.resolve",
    "validate_lora": "checks.lora",
    "validate_mmproj": "checks.projector",
    "validate_model": "checks.validate",
    "verify": "catalogue.catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
