"""Model files: reading, validating, describing, naming and fetching them.

Names are loaded on first use, so that reading a header does not pay for pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalogue import (
        CatalogueEntry,
        list_models,
        verify,
    )
    from .download import pull, remove
    from .estimate import MemoryEstimate, estimate_memory
    from .gguf import GgufInfo, TensorInfo
    from .header import GgufArray
    from .lora import validate_lora
    from .metadata import ModelMetadata, SamplingDefaults, load_model
    from .projector import validate_mmproj
    from .reading import read_gguf
    from .resolve import default_model, default_name, find_model, resolve_model
    from .validation import ValidationReport, validate_model

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
    "CatalogueEntry": "catalogue",
    "GgufArray": "header",
    "GgufInfo": "gguf",
    "MemoryEstimate": "estimate",
    "ModelMetadata": "metadata",
    "SamplingDefaults": "metadata",
    "TensorInfo": "gguf",
    "ValidationReport": "validation",
    "default_model": "resolve",
    "default_name": "resolve",
    "estimate_memory": "estimate",
    "find_model": "resolve",
    "list_models": "catalogue",
    "load_model": "metadata",
    "pull": "download",
    "read_gguf": "reading",
    "remove": "download",
    "resolve_model": "resolve",
    "validate_lora": "lora",
    "validate_mmproj": "projector",
    "validate_model": "validation",
    "verify": "catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
