"""Attacks with the keys of split models; `test_reading.py` has those that need several files."""

from __future__ import annotations

from tests.fuzz.attacks.registry import attack
from tests.gguf_files import STRING, U16, U32, GgufFile
from tests.unit.loaders.model_files import tiny_llama


@attack("split.count")
def one_of_many_parts_without_the_others() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U16, 65535), split__no=(U16, 0))


@attack("split.count")
def split_count_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U32, 3), split__no=(U16, 0))


@attack("split.no")
def split_number_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U16, 3), split__no=(U32, 0))


@attack("split.no")
def split_number_that_is_text() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U16, 3), split__no=(STRING, "0"))


@attack("split.no")
def split_number_that_is_missing() -> GgufFile:
    return tiny_llama().with_keys(split__count=(U16, 3))
