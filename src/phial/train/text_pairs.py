"""Texts that belong together, from rows of data: pairs with hard negatives, single texts, pairs with a score.

    {"query": "...", "positive": "...", "negative": "..." or "negatives": ["...", ...]}     negatives may be left out
    {"text": "..."}                                                                         its own positive
    {"sentence1": "...", "sentence2": "...", "score": 0.8}                                  to measure on only

A row of another shape is an error with its file and number. What it says besides (an id, a source) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from phial.errors import PhialError
from phial.train.rows import Row, read_rows

_MOST = 1e300  # of a score; NaN is not less
_SHAPES = (
    "{'query': ..., 'positive': ..., 'negatives': [...]}, {'text': ...} or, to measure on, "
    "{'sentence1': ..., 'sentence2': ..., 'score': ...}"
)


class TextPair(NamedTuple):
    """A query, a document that answers it and documents that do not; `where` it stands, for messages."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    where: str

    @property
    def single(self) -> bool:
        """Whether it is one text, which only dropout makes two of."""
        return self.query == self.positive


class ScoredPair(NamedTuple):
    """Two texts and how alike people find them, on any scale."""

    first: str
    second: str
    score: float
    where: str


def read_pairs(paths: Iterable[Path]) -> Iterator[TextPair]:
    """The pairs of files, in order. Raises PhialError with file and row for what is none, scored pairs among them."""
    for path in paths:
        for row in read_rows(path):
            found = pair_of(row)
            if isinstance(found, ScoredPair):
                raise PhialError(f"{found.where} is a scored pair", "they are measured on, not learnt: --validation")
            yield found


def read_held_out(paths: Iterable[Path]) -> tuple[list[TextPair], list[ScoredPair]]:
    """What is measured on: pairs for retrieval and scored pairs.

    Raises PhialError with file and row for what is neither, and for a single text, which nothing can be measured on.
    """
    pairs, scored = list[TextPair](), list[ScoredPair]()
    for path in paths:
        for row in read_rows(path):
            found = pair_of(row)
            if isinstance(found, ScoredPair):
                scored.append(found)
            elif found.single:
                raise PhialError(
                    f"{found.where} is one text", "to measure on, give a query and another text that answers it"
                )
            else:
                pairs.append(found)
    return pairs, scored


def pair_of(row: Row) -> TextPair | ScoredPair:
    """The pair of a row. Raises PhialError as read_pairs()."""
    value = row.value
    shapes = [key for key in ("query", "text", "sentence1") if value.get(key) is not None]
    if len(shapes) != 1:
        what = f"both {shapes[0]} and {shapes[1]}" if shapes else f"only {', '.join(value) or 'nothing'}"
        raise PhialError(f"{row.where} has {what}", f"a row is one of {_SHAPES}")
    if shapes == ["sentence1"]:
        return _scored(row)
    if shapes == ["text"]:
        if extra := [key for key in ("positive", "negative", "negatives") if value.get(key)]:
            raise PhialError(f"{row.where} has text and {extra[0]}", "name the text query")
        text = _text(row, value, "text")
        return TextPair(text, text, (), row.where)
    query, positive = _text(row, value, "query"), _text(row, value, "positive")
    negatives = _negatives(row)
    if positive in negatives:
        raise PhialError(f"{row.where} has its positive among its negatives", "remove it from one of them")
    return TextPair(query, positive, negatives, row.where)


def _negatives(row: Row) -> tuple[str, ...]:
    one, many = ([] if text in (None, "") else text for text in map(row.value.get, ("negative", "negatives")))
    if one and many:
        raise PhialError(f"{row.where} has both negative and negatives", "put all of them into negatives")
    given = [one] if isinstance(one, str) else many if one == [] else one
    if not isinstance(given, list):
        raise PhialError(f"{row.where}: negatives is {given!r:.60}", "it is a list of texts")
    return tuple(_text(row, {"a negative": text}, "a negative") for text in given)


def _scored(row: Row) -> ScoredPair:
    score = row.value.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= _MOST:
        raise PhialError(f"{row.where}: score is {score!r:.60}", "it is a number: the higher, the more alike")
    return ScoredPair(_text(row, row.value, "sentence1"), _text(row, row.value, "sentence2"), float(score), row.where)


def _text(row: Row, value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise PhialError(f"{row.where}: {key} is {text!r:.60}", "it is a text that is not empty")
    return text
