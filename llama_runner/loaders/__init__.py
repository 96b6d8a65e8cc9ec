"""Model files: reading, validating, describing, naming and fetching them.

Names are loaded on first use, so that reading a header does not pay for pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
