"""Attacks on the structure of a file: counts, lengths, keys, alignment.

n_kv: CVE-2024-23605, n_tensors: CVE-2024-21836, lengths of strings: CVE-2024-23496, of arrays:
CVE-2024-21825, a header that ends early: CVE-2024-32878.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.fuzz.attacks.registry import MAX64, attack
from tests.gguf_files import ARRAY, STRING, U8, U32, GgufFile, text
from tests.unit.loaders.model_files import tiny_llama


def raw_file(n_tensors: int, n_keys: int, rest: bytes) -> bytes:
    """A file whose parts after the counts are written by hand."""
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_keys) + rest


def raw_key(key: str, type_id: int, value: bytes) -> bytes:
    """One metadata key, written by hand."""
    return text(key) + struct.pack("<I", type_id) + value


@attack("magic")
def empty_file() -> bytes:
    return b""


@attack("magic")
def three_bytes() -> bytes:
    return b"GGU"


@attack("magic")
def another_format() -> bytes:
    return b"PK\x03\x04" + bytes(100)


@attack("header")
def nothing_after_the_magic() -> bytes:
    return b"GGUF"


@attack("version")
def version_one() -> GgufFile:
    return replace(tiny_llama(), version=1)


@attack("version")
def version_of_the_future() -> GgufFile:
    return replace(tiny_llama(), version=4)


@attack("version")
def big_endian() -> GgufFile:
    return replace(tiny_llama(), version=3 << 24)


@attack("n_kv")
def key_count_overflows_an_allocation() -> GgufFile:
    return replace(tiny_llama(), n_keys=(1 << 61) + 1)


@attack("n_kv")
def key_count_is_negative() -> GgufFile:
    return replace(tiny_llama(), n_keys=MAX64)


@attack("n_kv")
def more_keys_than_bytes() -> bytes:
    return raw_file(0, 4000, bytes(1000))


@attack("n_tensors")
def tensor_count_overflows_an_allocation() -> GgufFile:
    return replace(tiny_llama(), n_tensors=(1 << 60) + 1)


@attack("n_tensors")
def more_tensors_than_bytes() -> bytes:
    return raw_file(16000, 0, bytes(1000))


@attack("key 0")
def key_length_overflows() -> bytes:
    return raw_file(0, 1, struct.pack("<Q", MAX64) + bytes(100))


@attack("key 0")
def key_longer_than_the_file() -> bytes:
    return raw_file(0, 1, struct.pack("<Q", 60_000) + bytes(100))


@attack("key 0")
def empty_key() -> bytes:
    return raw_file(0, 1, raw_key("", U32, struct.pack("<I", 1)))


@attack("key 0")
def key_with_a_nul() -> bytes:
    return raw_file(0, 1, raw_key("general\0.name", U32, struct.pack("<I", 1)))


@attack("key 0")
def key_that_is_not_utf8() -> bytes:
    return raw_file(0, 1, text(b"\xff\xfe") + struct.pack("<II", U32, 1))


@attack("general.architecture")
def key_without_a_value() -> bytes:
    return raw_file(0, 1, text("general.architecture"))


@attack("a")
def the_same_key_twice() -> bytes:
    return raw_file(0, 2, 2 * raw_key("a", U32, struct.pack("<I", 1)))


@attack("a")
def unknown_value_type() -> bytes:
    return raw_file(0, 1, raw_key("a", 13, bytes(100)))


@attack("a")
def string_length_overflows() -> bytes:
    return raw_file(0, 1, raw_key("a", STRING, struct.pack("<Q", MAX64) + bytes(100)))


@attack("a")
def string_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", STRING, struct.pack("<Q", 101) + bytes(100)))


@attack("a")
def array_length_overflows_in_bytes() -> bytes:
    value = struct.pack("<IQ", U32, (1 << 62) + 1) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def array_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", U8, 101) + bytes(100)))


@attack("a")
def string_array_longer_than_the_file() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", STRING, 1000) + bytes(100)))


@attack("a")
def string_in_an_array_overflows() -> bytes:
    value = struct.pack("<IQQ", STRING, 2, MAX64 - 7) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def array_of_arrays() -> bytes:
    value = struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1) + bytes(100)
    return raw_file(0, 1, raw_key("a", ARRAY, value))


@attack("a")
def unknown_element_type() -> bytes:
    return raw_file(0, 1, raw_key("a", ARRAY, struct.pack("<IQ", 99, 1) + bytes(100)))


@attack("general.alignment")
def alignment_of_zero() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 0))


@attack("general.alignment")
def alignment_not_a_power_of_two() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 24))


@attack("general.alignment")
def alignment_overflows_the_padding() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(U32, 1 << 31))


@attack("general.alignment")
def alignment_of_another_type() -> GgufFile:
    return tiny_llama().with_keys(general__alignment=(STRING, "32"))


@attack("general.alignment")
def data_that_cannot_be_mapped() -> GgufFile:
    model = replace(tiny_llama().with_keys(general__alignment=(U32, 8)), alignment=8)
    while len(model.header()) % 32 in (0, *range(25, 32)):
        _, name = model.keys["general.name"]
        model = model.with_keys(general__name=(STRING, name + "x"))
    return model
