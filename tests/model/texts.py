"""Prose to test with, of any length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

SENTENCES = [
    "The ferry left the harbour an hour before sunrise, with eleven passengers and a crate of "
    "oranges on deck.",
    "Nobody spoke, because the engine was loud and the wind was cold.",
    "Mara had drawn the map herself, in pencil, on the back of an old invoice.",
    "It showed two islands, a lighthouse that was no longer lit, and a line of shallow water "
    "between them.",
    "Her brother said that the line was wrong by at least half a mile.",
    "He had sailed there twice, once in fog and once in the heat of August, and both times the "
    "keel had touched sand.",
    "In the cabin the radio repeated the forecast: rain in the north, then clearing, then a "
    "steady breeze from the west.",
    "The captain wrote the numbers into a notebook and underlined the last of them.",
    "At noon they passed a buoy painted green and white, on which a cormorant dried its wings.",
    "A child asked how deep the sea was here, and was told that a church would fit under the "
    "boat, tower and all.",
    "By evening the first island rose out of the haze like the back of a sleeping animal.",
    "They anchored in a bay where the water was so clear that the chain could be followed down "
    "to the stones.",
    "Someone cut the oranges; someone else found salt, bread and a bottle of dark vinegar.",
    "The old man who owned the only house on the shore came down with a lamp and asked for news.",
    "He wanted to know the price of wool, the name of the new mayor, and whether the bridge at "
    "Calder had been mended.",
    "Mara answered what she could, and promised to send a newspaper with the next boat.",
]


def prose() -> Iterator[str]:
    """Sentences without end: each round begins elsewhere and has a heading of its own."""
    for chapter in itertools.count(1):
        start = 5 * chapter % len(SENTENCES)
        yield f"\n\nChapter {chapter}.\n\n"
        for sentence in SENTENCES[start:] + SENTENCES[:start]:
            yield sentence + " "


def text_of(n_characters: int) -> str:
    """The beginning of the prose."""
    text = ""
    for sentence in prose():
        text += sentence
        if len(text) >= n_characters:
            return text[:n_characters]
    raise AssertionError("prose() never ends")
