"""The names of the parts of a model that is split over several files.

llama.cpp finds the parts by name: ``model-00001-of-00003.gguf`` and so on, in one folder.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["part_names"]

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str]:
    """The names of all parts, given the name of one; a file that is no part is alone."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
