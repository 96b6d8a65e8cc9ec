"""One GGUF file for each known way to attack a reader of them, made here and never downloaded.

``python -m tests.fuzz.attacks DIRECTORY`` writes them out, as seeds for the fuzzer.
"""

from tests.fuzz.attacks import (  # noqa: F401
    hyperparameters,
    splits,
    structure,
    templates,
    tensors,
    vocabulary,
)
from tests.fuzz.attacks.registry import ATTACKS

__all__ = ["ATTACKS"]
