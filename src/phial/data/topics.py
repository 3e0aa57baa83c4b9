"""What synthetic text is about: a tree of topics, and the grid topic × audience × style that prompts are drawn from.

Diversity decides what synthetic text is worth (phi-1, section 2.2; phi-1.5, section 2.2): the teacher answers
alike when asked alike, so no cell of the grid is asked twice for a kind. Draws go through all topics before any topic
comes again, in an order that depends on the seed and the names alone: a longer draw begins with the shorter one, and a
topic added to the tree leaves the order of the others as it was.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from phial.config_file import read_toml
from phial.errors import PhialError

_BUILT_IN = Path(__file__).with_name("topics.toml")


class Topic(NamedTuple):
    """A leaf: its path from the root, and whether it can be set as a Python exercise."""

    path: tuple[str, ...]
    python: bool

    def __str__(self) -> str:
        return " / ".join(self.path)


class Cell(NamedTuple):
    """One cell of the grid."""

    topic: Topic
    audience: str
    style: str


@dataclass(frozen=True)
class TopicTree:
    """The three axes of the grid."""

    topics: tuple[Topic, ...]
    audiences: tuple[str, ...]
    styles: tuple[str, ...]

    def cells(self, seed: int, kind: str) -> Iterator[Cell]:
        """Every cell once, topics evenly; only topics marked `python` for the kind "python"."""
        topics = [topic for topic in self.topics if topic.python or kind != "python"]
        topics.sort(key=lambda topic: _rank(seed, kind, *topic.path))
        ways = list(itertools.product(self.audiences, self.styles))
        orders = [sorted(ways, key=lambda way: _rank(seed, kind, *topic.path, *way)) for topic in topics]
        for turn in range(len(ways)):
            for topic, order in zip(topics, orders, strict=True):
                yield Cell(topic, *order[turn])

    def draw(self, count: int, seed: int, kind: str) -> list[Cell]:
        """The first `count` cells. Raises PhialError where the grid has fewer."""
        cells = list(itertools.islice(self.cells(seed, kind), count))
        if len(cells) < count:
            raise PhialError(
                f"{count} requests of kind {kind}, but the grid has {len(cells)} cells",
                "ask for fewer, or add topics, audiences or styles",
            )
        return cells


def _rank(seed: int, *names: str) -> bytes:
    return hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=16).digest()


def load_topics(path: Path | None = None) -> TopicTree:
    """The tree of a TOML file (the built-in one without a path). Raises PhialError where it is none."""
    own = read_toml(_BUILT_IN, "topic tree")
    tree = own if path is None else read_toml(path, "topic tree")
    name = "the built-in tree" if path is None else str(path)
    audiences = _strings(tree.pop("audiences", own["audiences"]), f"{name}: audiences")
    styles = _strings(tree.pop("styles", own["styles"]), f"{name}: styles")
    topics = tuple(_leaves(tree, (), False, name))
    if not topics:
        raise PhialError(f"{name} has no topics", 'a table of it needs topics = ["…", …]')
    paths = [topic.path for topic in topics]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise PhialError(f"{name} has the topic {' / '.join(twice[0])} twice", "remove one")
    return TopicTree(topics, audiences, styles)


def _leaves(table: dict[str, Any], path: tuple[str, ...], python: bool, name: str) -> Iterator[Topic]:
    here = f"{name}: [{'.'.join(path)}]"
    marked = table.get("python", python)
    if not isinstance(marked, bool):
        raise PhialError(f"{here} python is {marked!r}", "true or false")
    for key, value in table.items():
        if key == "topics":
            yield from (Topic((*path, leaf), marked) for leaf in _strings(value, f"{here} topics"))
        elif isinstance(value, dict):
            yield from _leaves(value, (*path, key), marked, name)
        elif key != "python":
            raise PhialError(f"{here} has an unknown key {key}", "tables, topics and python are known")


def _strings(value: Any, where: str) -> tuple[str, ...]:
    good = isinstance(value, list) and value and all(isinstance(item, str) and item.strip() for item in value)
    if not good:
        raise PhialError(f"{where} is no list of texts", 'write it as ["…", "…"]')
    items: Sequence[str] = value
    if len(set(items)) < len(items):
        raise PhialError(f"{where} names something twice", "remove one")
    return tuple(items)
