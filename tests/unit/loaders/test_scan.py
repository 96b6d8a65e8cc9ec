"""The native scans over a header agree with plain Python, and never leave the header."""

from __future__ import annotations

import math
import re
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_runner._core import (
    StringArray,
    find_int32,
    find_nan,
    template_shape,
)
from tests.gguf_files import text

# Few letters, so that the same string comes up again; NUL and [EMPTY_n] are special to llama.cpp.
# Strings are hashed in pieces of 7 bytes and looked at 14 bytes at a time.
STRINGS = st.lists(
    st.one_of(
        st.binary(max_size=3),
        st.text("ab\0 ", max_size=20).map(str.encode),
        st.sampled_from([6, 7, 8, 13, 14, 15, 16, 21, 22, 28]).flatmap(
            lambda n: st.text("a\0 ", min_size=n, max_size=n).map(str.encode)
        ),
        st.integers(0, 5).map(lambda n: b"[EMPTY_%d]" % n),
    ),
    max_size=40,
)
# What RWKV's tokens are written with.
ESCAPES = st.lists(
    st.lists(st.sampled_from(["\\", "n", "t", "r", "x", "0", "4", "a", "f", "z"]), max_size=6).map(
        lambda pieces: "".join(pieces).encode()
    ),
    max_size=20,
)


def header_of(strings: list[bytes], before: bytes = b"") -> bytes:
    return before + b"".join(map(text, strings))


def array_of(strings: list[bytes], after: bytes = b"") -> StringArray:
    array = StringArray(4)
    array.read(header_of(strings, b"head") + after, len(strings))
    return array


def as_token(index: int, string: bytes) -> bytes:
    return string.partition(b"\0")[0] or b"[EMPTY_%d]" % index


@given(STRINGS)
def test_an_array_is_its_strings(strings: list[bytes]) -> None:
    array = array_of(strings)
    assert list(array) == strings
    assert len(array) == len(strings)
    assert array.longest == max(map(len, strings), default=0)
    for index in (-1, len(strings)):
        with pytest.raises(IndexError):
            array[index]


@given(STRINGS)
@example([b"", b"[EMPTY_0]"])
@example([b"a\0b", b"a\0c"])
def test_the_first_duplicate_is_found(strings: list[bytes]) -> None:
    tokens = [as_token(index, string) for index, string in enumerate(strings)]
    duplicates = [index for index, token in enumerate(tokens) if token in tokens[:index]]
    assert array_of(strings).find_duplicate() == (duplicates[0] if duplicates else None)


@pytest.mark.parametrize("length", range(1, 32))
def test_tokens_that_differ_in_one_byte_are_told_apart(length: int) -> None:
    one = bytes(range(1, length + 1))
    others = [one[:i] + b"\xff" + one[i + 1 :] for i in range(length)]
    longer = [one + b"\xff", *([one[:-1]] if length > 1 else [])]
    strings = [one, *others, *longer]
    assert array_of(strings).find_duplicate() is None
    for again in strings:
        for written in (again, again + b"\0", again + b"\0" + bytes(20), again + b"\0tail"):
            assert array_of([*strings, written, b"end"]).find_duplicate() == len(strings)
            # Behind the end of the array there may be anything, or nothing.
            for after in (b"", b"\0", b"x" * 40):
                assert array_of([*strings, written], after).find_duplicate() == len(strings)


@pytest.mark.parametrize("length", range(24))
def test_a_gap_is_looked_for_inside_of_its_string(length: int) -> None:
    for place in range(length):
        string = b"x" * place + b" " + b"x" * (length - place - 1)
        for after in (b"", b" " * 40):
            assert array_of([string], after).find_without_gap() == (None if place else 0)
    # 32 is the length of the next string, and the code of a space.
    assert array_of([b"a b", b"x" * length, b" " * 32]).find_without_gap() == 1


@given(st.lists(st.binary(min_size=5, max_size=40), unique=True), st.data())
def test_a_duplicate_among_long_strings_is_found(strings: list[bytes], data: st.DataObject) -> None:
    strings = [string.replace(b"\0", b"0") for string in strings]
    strings = list(dict.fromkeys(strings))
    assert array_of(strings).find_duplicate() is None
    if strings:
        again = data.draw(st.sampled_from(strings))
        assert array_of([*strings, again]).find_duplicate() == len(strings)


def test_many_strings_that_differ_little_are_told_apart() -> None:
    strings = [b"%08d" % index for index in range(50_000)]
    assert array_of(strings).find_duplicate() is None
    assert array_of([*strings, strings[0]]).find_duplicate() == 50_000


@given(STRINGS)
def test_a_merge_without_a_gap_is_found(strings: list[bytes]) -> None:
    whole = [index for index, string in enumerate(strings) if string.find(b" ", 1) < 0]
    assert array_of(strings).find_without_gap() == (whole[0] if whole else None)


def unescaped(token: bytes) -> bytes:
    """A token of RWKV, as its tokenizer reads it."""
    letters = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}

    def value(digit: int) -> int:
        return digit - ord("a") + 10 if digit >= ord("a") else digit - ord("0")

    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] != b"x":
            return letters.get(code, code)
        digits = code[1:]
        return bytes([(value(digits[0]) * 16 + value(digits[1])) % 256]) if digits[1:] else b""

    return re.sub(rb"\\(x.{0,2}|.|\Z)", replace, token, flags=re.DOTALL)


@given(ESCAPES)
def test_a_start_that_is_no_token_is_found(strings: list[bytes]) -> None:
    texts = {unescaped(as_token(index, string)) for index, string in enumerate(strings)}
    dead = sorted({text[:1] for text in texts if text} - texts)
    assert array_of(strings).find_dead_end() == (dead[0] if dead else None)


@given(STRINGS, st.lists(st.integers(0, 300), max_size=3), st.integers(0, 60))
def test_strings_are_found_as_far_as_they_are_there(
    strings: list[bytes], cuts: list[int], count: int
) -> None:
    """A header may be read in several pieces, each with the earlier ones."""
    whole = header_of(strings)
    array = StringArray(0)
    for size in sorted(min(cut, len(whole)) for cut in cuts):
        array.read(whole[:size], count)
        ends = [len(header_of(strings[: n + 1])) for n in range(len(strings))]
        found = sum(end <= size for end in ends[:count])
        assert list(array) == strings[:found]
        assert array.end == len(header_of(strings[:found]))
    array.read(whole, min(count, len(strings)))
    assert list(array) == strings[:count]


@pytest.mark.parametrize("length", [101, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 8])
def test_a_length_that_lies_leads_nowhere(length: int) -> None:
    array = StringArray(0)
    array.read(text(b"one") + struct.pack("<Q", length) + bytes(100), 9)
    assert list(array) == [b"one"]
    assert array.end == 11


def test_a_header_that_shrinks_is_refused() -> None:
    array = array_of([b"one", b"two"])
    with pytest.raises(ValueError, match="cannot have strings at"):
        array.read(bytes(20), 3)
    assert list(array) == [b"one", b"two"]
    with pytest.raises(ValueError, match="cannot have strings at"):
        StringArray(21).read(bytes(20), 1)
    with pytest.raises(OverflowError):
        StringArray(1 << 32)


@pytest.mark.parametrize("start", [0, 5, 100, (1 << 64) - 1])
def test_numbers_that_are_not_in_the_header_are_refused(start: int) -> None:
    header = bytes(20)
    for find in (
        lambda n: find_nan(header, start, n),
        lambda n: find_int32(header, start, n, 1, 0),
    ):
        with pytest.raises(ValueError, match="reach past 20 bytes"):
            find(6)
        with pytest.raises(ValueError, match="reach past 20 bytes"):
            find(1 << 62)


@given(st.lists(st.integers(-3, 3), max_size=99), st.integers(-5, 5), st.integers(0, 120))
def test_a_number_is_found(numbers: list[int], value: int, first: int) -> None:
    header = b"odd" + struct.pack(f"<{len(numbers)}i", *numbers)
    expected = next((i for i in range(first, len(numbers)) if numbers[i] == value), None)
    assert find_int32(header, 3, len(numbers), value, first) == expected


@given(st.lists(st.floats(width=32), max_size=30))
def test_what_is_not_a_number_is_found(numbers: list[float]) -> None:
    header = b"odd" + struct.pack(f"<{len(numbers)}f", *numbers)
    expected = next((i for i, number in enumerate(numbers) if math.isnan(number)), None)
    assert find_nan(header, 3, len(numbers)) == expected


# ---- chat templates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        ("", (0, 0)),
        ("text ((( {a [ - + } }}", (0, 0)),
        ("{{ a }}", (0, 0)),
        ("{{ a + b - c }}", (0, 2)),
        ("{{ ((a)) }}", (2, 2)),
        ("{{ (a) }}{{ [b] }}", (1, 1)),
        ("{{ {'a': {'b': 1}} }} ((", (2, 2)),
        ("{{ a not in b and c is d or e }}", (0, 5)),
        ("{{ a == b <= c }}", (0, 2)),
        ("{{ 1if 1else 2 }}", (0, 2)),
        ("{{ not_an_operator + android }}", (0, 1)),
        ("{{ '((}}' ~ \"it's }} \" }}(((", (0, 1)),
        (r"{{ '\\' ~ 'it\'s }} (' ~ a }}", (0, 2)),
        ("{# ((( {{ #}{{ (a) }}", (1, 1)),
        ("{{ {1: {}}}}(((", (2, 2)),
        ("{{ (a %} ((( ", (3, 5)),
        ("{{- (a) -}} (((", (1, 1)),
        ("{% if (a) +%} (((", (1, 1)),
        ("{{ {{ (a) }}", (3, 3)),
        ("{{ 2 ** 3 // 4 }}", (0, 2)),
        ("{{ 1e5if 1_0else 0.5or 2 }}", (0, 4)),
        ("{{ a.1.2.3 }}", (0, 3)),
        ("{% raw %}{{ ((( {% endraw %}{{ (a) }}", (1, 1)),
        ("{%- raw -%}{% if {%+ endraw +%}{{ (a) }}", (1, 1)),
        ("{% raw %}{{ (((", (0, 0)),
        ("{% rawer %}{{ (a) }}", (1, 1)),
        ("{% with a = (b) %}{{ (d) }}{% endwith %}", (2, 2)),
        ("{% if a %}{% for b in c %}{{ (d) }}{% endfor %}{% endif %}", (3, 1)),
        ("{% if a %}{% elif b %}{% elif c %}{% endif %}{% if d %}{% endif %}", (3, 0)),
        ("{% if a %}{% endif %}" * 50, (1, 0)),
        ("{% set a = b %}" * 50, (0, 1)),
        ("{% set a %}b{% endset %}" * 50, (1, 0)),
        ("{% set a(b=c) %}" * 3, (3, 2)),
        ("{% set a == b %}" * 3, (3, 1)),
        ("{% macro a(b) %}{% call c() %}{% filter d %}", (3, 1)),
        ("{%- if a -%}{%-if b-%}", (2, 0)),
        ("{{ (", (1, 1)),
        ("{{ '(", (0, 0)),
        ("{% if", (1, 0)),
        ("{#", (0, 0)),
        ("{", (0, 0)),
    ],
)
def test_the_shape_of_a_template(template: str, shape: tuple[int, int]) -> None:
    assert template_shape(template.encode()) == shape


@given(
    st.lists(
        st.sampled_from(
            [
                *"{}%#-'\"\\()=1| \0\xff",
                "{{",
                "}}",
                "{%",
                "%}",
                "{#",
                "#}",
                "if",
                "else",
                "endif",
                "elif",
                "set",
                "not",
            ]
        ),
        max_size=60,
    ),
    st.sampled_from(["", "(", "not "]),
)
def test_any_text_has_a_shape(pieces: list[str], more: str) -> None:
    template = "".join(pieces) + more * 50
    nesting, operators = template_shape(template.encode())
    assert 0 <= nesting <= len(template)
    assert 0 <= operators <= len(template)
