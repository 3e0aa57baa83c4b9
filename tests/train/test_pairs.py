"""Preference pairs from files: every shape, and a file and row for everything that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phial.errors import PhialError
from phial.train.pairs import Pair, read_pairs

SYSTEM = {"role": "system", "content": "Be brief."}
USER, AGAIN = {"role": "user", "content": "2+2?"}, {"role": "user", "content": "Sure?"}
GOOD, BAD = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
TALK = "\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant:"


def _read(tmp_path: Path, *rows: Any) -> list[Pair]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return list(read_pairs([path]))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD], "score": 3}, [SYSTEM, USER]),
        ({"prompt": [USER, GOOD, AGAIN], "chosen": "4", "rejected": "5"}, [USER, GOOD, AGAIN]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": "2+2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, [USER]),
        ({"system": "Be brief.", "prompt": "2+2?", "chosen": "4", "rejected": "5"}, [SYSTEM, USER]),
        ({"chosen": f"{TALK} 4", "rejected": f"{TALK} 5"}, [USER, GOOD, AGAIN]),
        ({"prompt": TALK, "chosen": " 4", "rejected": " 5"}, [USER, GOOD, AGAIN]),
    ],
)
def test_every_shape_is_read(row: dict[str, Any], prompt: list[Any], tmp_path: Path) -> None:
    first, second = _read(tmp_path, row, row)
    assert (first.chosen, first.rejected, first.fault) == ([*prompt, GOOD], [*prompt, BAD], "")
    assert second.where.endswith("pairs.jsonl, row 2")


@pytest.mark.parametrize(
    ("chosen", "rejected", "fault"),
    [
        ([USER, GOOD], [USER, GOOD], "the two answers are the same"),
        ([USER, GOOD], [AGAIN, BAD], "the conversations differ before"),
        ([USER, {**GOOD, "content": " "}], [USER, BAD], "the chosen answer is empty"),
        ([GOOD], [BAD], "there is no prompt"),
        ([USER, GOOD], [USER, {**BAD, "content": ""}], ""),  # to say nothing can be the worse answer
    ],
)
def test_a_pair_that_teaches_nothing_says_why(chosen: Any, rejected: Any, fault: str, tmp_path: Path) -> None:
    (pair,) = _read(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert pair.fault.startswith(fault) and bool(pair.fault) == bool(fault)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "and no rejected"),
        ({"messages": [USER, GOOD]}, "has messages and no chosen"),
        ({"chosen": "b", "rejected": "c"}, "chosen is 'b'"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt is 3"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected is 3"),
        ({"prompt": [USER], "chosen": [AGAIN], "rejected": [BAD]}, "chosen ends with the user"),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "chosen has 2 messages"),
        ({"prompt": "a", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "no message of chosen is the prompt"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "chosen is []"),
        ({"chosen": [USER, {**GOOD, "weight": 0}], "rejected": [USER, BAD]}, "message 2 has the field 'weight'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{}]}, "has tools"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "system": "s"}, "has system"),
        ({"chosen": f"{TALK} 4", "rejected": "\n\nHuman: 5"}, "rejected ends with the user"),
        ([USER], "row 2 is list, not an object"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_row(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PhialError) as error:
        _read(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    assert said in error.value.message and "pairs.jsonl, row 2" in error.value.message
