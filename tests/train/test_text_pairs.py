"""Pairs from files and as batches: what a row may say, and that every pair is read as often as it should be."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from phial.errors import PhialError
from phial.train.text_batches import Pair, PairBatches, Text, packed_texts, stacked_pairs
from phial.train.text_pairs import ScoredPair, TextPair, read_held_out, read_pairs


def _file(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_every_shape(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "a.jsonl",
        {"query": "q", "positive": "p", "id": 3},
        {"query": "q", "positive": "p", "negative": "n", "negatives": None},
        {"query": "q", "positive": "p", "negatives": ["n", "m"]},
        {"text": "t", "query": None},
    )
    found = [pair._replace(where="") for pair in read_pairs([path, path])]
    expected = [("q", "p", ()), ("q", "p", ("n",)), ("q", "p", ("n", "m")), ("t", "t", ())]
    assert found == [TextPair(*values, "") for values in expected] * 2


def test_held_out_rows_are_for_retrieval_or_have_a_score(tmp_path: Path) -> None:
    rows = {"query": "q", "positive": "p"}, {"sentence1": "a", "sentence2": "b", "score": 3}
    path = _file(tmp_path / "a.jsonl", *rows)
    assert read_held_out([path]) == (
        [TextPair("q", "p", (), f"{path}, row 1")],
        [ScoredPair("a", "b", 3.0, f"{path}, row 2")],
    )
    with pytest.raises(PhialError, match="row 2 is a scored pair"):
        list(read_pairs([path]))
    with pytest.raises(PhialError, match="row 1 is one text"):
        read_held_out([_file(tmp_path / "b.jsonl", {"text": "t"})])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 1 has only nothing"),
        ({"anchor": "a", "positive": "p"}, "only anchor, positive"),
        ({"query": "q", "text": "t"}, "both query and text"),
        ({"query": "q"}, "positive is None"),
        ({"query": " ", "positive": "p"}, "query is ' '"),
        ({"query": "q", "positive": 3}, "positive is 3"),
        ({"query": "q", "positive": "p", "negative": 0}, "negatives is 0"),
        ({"query": "q", "positive": "p", "negatives": 0}, "negatives is 0"),
        ({"query": "q", "positive": "p", "negatives": "n"}, "negatives is 'n'"),
        ({"query": "q", "positive": "p", "negatives": ["n", ""]}, "a negative is ''"),
        ({"query": "q", "positive": "p", "negative": "p"}, "its positive among its negatives"),
        ({"query": "q", "positive": "p", "negative": "n", "negatives": ["m"]}, "both negative and negatives"),
        ({"text": "t", "positive": "p"}, "text and positive"),
        ({"sentence1": "a", "sentence2": "b"}, "score is None"),
        ({"sentence1": "a", "sentence2": "b", "score": True}, "score is True"),
        ({"sentence1": "a", "sentence2": "b", "score": 10**400}, "score is 1000"),
        ({"sentence1": "a", "sentence2": "b", "score": float("nan")}, "score is nan"),
    ],
)
def test_a_row_of_another_shape_is_an_error_with_its_place(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PhialError, match=message) as caught:
        read_held_out([_file(tmp_path / "a.jsonl", row)])
    assert "a.jsonl, row 1" in caught.value.message


def _pairs(n: int) -> list[Pair]:
    """Pair i has a query of i + 1 tokens i, a positive of two, and the odd ones a negative."""

    def text(i: int, length: int, key: int) -> Text:
        return Text(np.full(length, i, np.int32), key)

    return [Pair(text(i, i + 1, 3 * i), text(i, 2, 3 * i + 1), (text(i, 3, 3 * i + 2),) * (i % 2)) for i in range(n)]


def test_an_epoch_reads_every_pair_once_in_another_order_and_ranks_share_a_step() -> None:
    data = PairBatches(_pairs(23), batch=6, micro=2, epochs=2.0, seed=1)
    assert data.steps == 8

    def read(step: int, rank: int, world: int) -> list[int]:
        pieces = data.micro_batches(step, rank, world)
        return [
            int(key) // 3
            for piece in pieces
            for key in piece["keys"][: (len(piece["keys"]) - len(piece["owners"])) // 2]
        ]

    alone = [read(step, 0, 1) for step in range(8)]
    assert {len(step) for step in alone} <= {5, 6}
    order = [i for step in alone for i in step]
    assert Counter(order) == dict.fromkeys(range(23), 2) and order[:23] != order[23:]
    assert [read(step, 0, 2) + read(step, 1, 2) for step in range(8)] == alone
    assert [len(piece["keys"]) > 0 for piece in data.micro_batches(0)] == [True] * 3
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.micro_batches(3)[0]["tokens"], data.micro_batches(3)[0]["tokens"])
    assert len(PairBatches(_pairs(10), 4, 4, epochs=0.5).micro_batches(0)[0]["keys"]) > 0
    assert PairBatches(_pairs(10), 4, 4, epochs=0.5).visits == 5


def test_texts_are_packed_whole_side_by_side_and_in_their_order_by_number() -> None:
    batch = stacked_pairs(_pairs(12))
    lengths = [*range(1, 13), *[2] * 12, *[3] * 6]
    assert batch["owners"].tolist() == [1, 3, 5, 7, 9, 11]
    assert batch["keys"].tolist() == [*range(0, 36, 3), *range(1, 36, 3), *range(5, 36, 6)]
    for number, length in enumerate(lengths):
        rows, places = (batch["texts"] == number).nonzero(as_tuple=True)
        assert len(set(rows.tolist())) == 1 and places.tolist() == list(range(places[0], places[0] + length))
    assert batch["tokens"].shape[1] <= 128
    *others, last = _pairs(4)
    assert stacked_pairs([*others, last._replace(negatives=last.negatives * 2)])["owners"].tolist() == [1, 3, 3]
    wide = packed_texts([np.arange(300), np.arange(5)])
    assert wide["texts"].shape == (2, 300) and int((wide["texts"] < 0).sum()) == 295
