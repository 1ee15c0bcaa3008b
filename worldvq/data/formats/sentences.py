"""Sentences for a voice to read: drawn from a small grammar that was written for this, so nobody owns them."""

from __future__ import annotations

import re

import numpy as np

_LISTS = {
    "adjective": "old, young, quiet, bright, heavy, yellow, frozen, hungry, clever, rusty, thick, gentle, purple, "
    "narrow, lazy, famous, empty, golden, foolish, shy, huge, cheap, rough, smooth, joyful, weary, usual",
    "person": "captain, teacher, farmer, doctor, painter, child, neighbour, judge, sailor, baker, thief, queen, "
    "musician, stranger, uncle, engineer, poet, lawyer, shepherd, nurse",
    "animal": "fox, horse, pigeon, whale, spider, zebra, donkey, mouse, lion, thrush, goose, beetle",
    "thing": "bottle, letter, bridge, window, hammer, violin, jar, treasure, basket, machine, lamp, coin, feather, "
    "book, cheese, boat, garden, mirror, chair, oyster, wheel, ring, engine, shovel, clock",
    "verb": "carried, found, painted, measured, watched, dropped, repaired, borrowed, described, ignored, remembered, "
    "moved, joined, hid, chose, brought, counted, sold, washed, pushed",
    "went": "walked, travelled, sailed, hurried, returned, wandered, climbed, rushed, marched, jumped",
    "saw": "noticed, heard, thought, believed, said, hoped, knew, guessed, feared",
    "place": "harbour, village, market, forest, castle, kitchen, valley, island, church, theatre, station, mountain, "
    "beach, school, river, tower, desert, yard, cave",
    "near": "near, behind, above, under, beyond, inside, beside, across, around, towards, through",
    "time": "yesterday, this morning, on Thursday, last winter, before dawn, after the storm, in July, every evening, "
    "at noon, twice a year, long ago, with a sigh",
    "manner": "slowly, quietly, with pleasure, carefully, at once, badly, without a sound, together",
    "number": "two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirty, forty",
    "whose": "the, the, a, my, your, their, his, our, this, another",
    "someone": "{whose} {person}, {whose} {adjective} {person}, {whose} {animal}, {whose} {adjective} {animal}",
    "something": "{whose} {thing}, {whose} {adjective} {thing}, {number} {thing}s, {number} {adjective} {thing}s",
    "where": "{near} the {place}, {near} {whose} {adjective} {place}",
}
_OPTIONS = {name: tuple(text.split(", ")) for name, text in _LISTS.items()}
_FORMS = (
    "{someone} {verb} {something} {where}.",
    "{someone} {verb} {something} {where} {time}.",
    "{someone} {went} {where}, and {someone} {verb} {something}.",
    "{time}, {someone} {verb} {something}.",
    "{someone} {saw} that {someone} {verb} {something}.",
    "{someone} {went} {manner} {where} {time}.",
    "{something} stood {where}, but {someone} {verb} {something}.",
    "how did {someone} get {where}, {manner} or {manner}?",
)
"""What a sentence looks like; for a name in braces one of its options stands."""


def sentence(seed: int, number: int) -> str:
    """Return sentence ``number`` of a seed: letters, spaces and commas, and a full stop or question mark."""
    rng = np.random.default_rng([seed, number])

    def drawn(options: tuple[str, ...]) -> str:
        form = options[int(rng.integers(len(options)))]
        return re.sub(r"\{(\w+)\}", lambda name: drawn(_OPTIONS[name[1]]), form)

    text = re.sub(r"\ba (?=[aeio])", "an ", drawn(_FORMS))
    return text[0].upper() + text[1:]
