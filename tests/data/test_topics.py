"""The topic tree and the grid: every cell once, topics evenly, the same for a seed, stable when the tree grows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from phial.data.topics import Topic, TopicTree, load_topics
from phial.errors import PhialError


def small() -> TopicTree:
    topics = tuple(Topic(("field", f"topic {n}"), python=n % 2 == 0) for n in range(6))
    return TopicTree(topics, ("child", "adult"), ("plain", "playful", "strict"))


def test_the_built_in_tree_is_a_few_hundred_leaves_over_the_subjects_it_names() -> None:
    tree = load_topics()
    assert len(tree.topics) >= 300
    subjects = {topic.path[0] for topic in tree.topics}
    assert {"science", "mathematics", "programming", "everyday_reasoning", "history", "language"} <= subjects
    assert {topic.path[0] for topic in tree.topics if topic.python} == {"programming"}


def test_every_cell_comes_once_and_topics_come_evenly() -> None:
    cells = list(small().cells(seed=1, kind="qa"))
    assert len(cells) == len(set(cells)) == 6 * 2 * 3
    for turn in range(6):
        assert len({cell.topic for cell in cells[6 * turn : 6 * turn + 6]}) == 6
    assert len({(cell.audience, cell.style) for cell in cells[:6]}) > 1  # not one way for all topics
    assert set(Counter(cell.topic for cell in islice(cells, 20)).values()) == {3, 4}


def test_a_draw_depends_on_seed_and_kind_and_begins_every_longer_draw() -> None:
    tree = small()
    assert tree.draw(10, 1, "qa") == tree.draw(36, 1, "qa")[:10]
    assert tree.draw(10, 1, "qa") != tree.draw(10, 2, "qa")
    assert tree.draw(10, 1, "qa") != tree.draw(10, 1, "dialogue")


def test_a_new_topic_leaves_the_order_of_the_others() -> None:
    tree = small()
    grown = replace(tree, topics=(Topic(("field", "new"), False), *tree.topics))
    order = [cell for cell in grown.cells(1, "qa") if cell.topic.path[-1] != "new"]
    assert order == list(tree.cells(1, "qa"))


def test_python_exercises_are_set_on_marked_topics_only() -> None:
    assert {cell.topic.path[-1] for cell in small().cells(1, "python")} == {"topic 0", "topic 2", "topic 4"}


def test_more_than_the_grid_is_refused() -> None:
    with pytest.raises(PhialError, match="37 requests of kind qa, but the grid has 36 cells"):
        small().draw(37, 1, "qa")


def test_a_tree_of_ones_own_takes_the_axes_it_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "tree.toml"
    path.write_text(
        'styles = ["short"]\n[law]\ntopics = ["contracts"]\n[law.code]\npython = true\ntopics = ["parsers"]\n'
    )
    tree = load_topics(path)
    assert tree.topics == (Topic(("law", "contracts"), False), Topic(("law", "code", "parsers"), True))
    assert tree.styles == ("short",)
    assert tree.audiences == load_topics().audiences


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ntopics = []", "is no list of texts"),
        ("[a]\ntopic = ['x']", "has an unknown key topic"),
        ("[a]\npython = 'yes'\ntopics = ['x']", "python is 'yes'"),
        ("[a]\ntopics = ['x', 'x']", "names something twice"),
        ("styles = ['x']", "has no topics"),
        ("[a", "is no topic tree"),
    ],
)
def test_a_tree_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tree.toml"
    path.write_text(text)
    with pytest.raises(PhialError, match=message):
        load_topics(path)
