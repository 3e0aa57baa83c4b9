"""Whether two short requests ask for the same thing in nearly the same words: what keeps fixing and measuring apart.

Two requests are near when they share most of their content words (what is left without articles, pronouns, question
words and endings), or when every content word of one of four or more stands in the other. It sees words, not meaning: a
paraphrase in other words is not near.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHARE = 0.6  # of the content words of both together
FEWEST = 4  # content words of a request that may be found whole in another
_WORD = re.compile(r"[^\W_]+")
_STOP = frozenset(
    "a about after all am an and any are as ask at be been before but by can could did do does explain for from get "
    "give had has have he her him his how i if in into is it its let me my no not of off on or our out please she show "
    "so some someone tell than that the their them then there these they this those to up us was we were what when "
    "where which who why will with without would write you your".split()
)
_ENDINGS = ("ing", "ed", "es", "s", "e")


class Near(NamedTuple):
    """Two requests that are near each other."""

    first: str
    second: str
    share: float


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say what it is about, in lower case and without English endings."""
    words = (word.lower() for word in _WORD.findall(text))
    return frozenset(_stem(word) for word in words if word not in _STOP)


def near_pairs(first: Iterable[str], second: Sequence[str]) -> list[Near]:
    """Every pair of a request of `first` and one of `second` that are near, in the order of `first`."""
    sets = [content_words(text) for text in second]
    holding: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(sets):
        for word in words:
            holding[word].append(number)
    found = []
    for text in first:
        words = content_words(text)
        shared: dict[int, int] = defaultdict(int)
        for word in words:
            for number in holding.get(word, ()):
                shared[number] += 1
        for number in sorted(shared):
            share = shared[number] / len(words | sets[number])
            smaller = min(len(words), len(sets[number]))
            if share >= SHARE or (smaller >= FEWEST and shared[number] == smaller):
                found.append(Near(text, second[number], share))
    return found


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
