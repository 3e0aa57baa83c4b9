"""Chats from files: three shapes, four packings, and a file and row for everything that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from phial.errors import PhialError
from phial.train.chats import read_chats

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


def _read(tmp_path: Path, *rows: Any, name: str = "chats.jsonl") -> list[list[Any]]:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return [chat.messages for chat in read_chats([path])]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, USER, ANSWER], "id": 7}, [SYSTEM, USER, ANSWER]),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, [USER, ANSWER]),
        (
            {"system": "Be brief.", "conversations": [{"from": "user", "value": "2+2?"},
                                                      {"from": "assistant", "value": "4"}]},
            [SYSTEM, USER, ANSWER],
        ),
        ({"instruction": "2+2?", "input": "", "output": "4"}, [USER, ANSWER]),
        ({"instruction": "2+2?", "output": "4", "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        ({"instruction": "Add.", "input": "2, 2", "output": "4"},
         [{"role": "user", "content": "Add.\n\n2, 2"}, ANSWER]),
    ],
)  # fmt: skip
def test_three_shapes_are_read(row: dict[str, Any], messages: list[Any], tmp_path: Path) -> None:
    assert _read(tmp_path, row, row) == [messages, messages]


def test_every_packing_holds_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER]}]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines + b"\n\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=1), "utf-8")
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [chat.messages for chat in read_chats([path])] == [[SYSTEM, USER, ANSWER], [USER, ANSWER]], path


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "once"}, "a row has only text"),
        ({"messages": [USER, ANSWER], "instruction": "a"}, "both messages and instruction"),
        ({"messages": "2+2?"}, "messages is str"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "message 1 has the role 'bot'"),
        ({"messages": [USER]}, "has no message of the assistant"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "message 2 has the content 4"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "turn 1 is from 'alien'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "turn 1 is from ['gpt']"),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, "message 2, an answer, is empty"),
        ({"instruction": "a", "output": ""}, "message 2, an answer, is empty"),
        ({"conversations": [{"role": "user", "value": "a"}]}, "turn 1 has the field 'role'"),
        ({"conversations": [{"from": "human"}]}, "turn 1 is {'from'"),
        ({"instruction": "a"}, "output is None"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "a row has history"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "has tools"),
        ({"messages": [USER, ANSWER], "system": "a"}, "has system"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "message 2 has the field 'weight'"),
        ({"conversations": [{"from": "gpt", "value": "a", "weight": 1}]}, "turn 1 has the field 'weight'"),
        ([USER], "row 2 is list, not an object"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_row(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PhialError) as error:
        _read(tmp_path, {"messages": [USER, ANSWER]}, row)
    assert said in error.value.message and "chats.jsonl" in error.value.message and "row 2" in error.value.message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    whole = zstandard.compress(json.dumps({"messages": [USER, ANSWER]}).encode() * 9)
    for name, data in {
        "a.jsonl": b"{no json",
        "b.jsonl.gz": b"no gzip",
        "c.jsonl.zst": whole[:-4],
        "d.jsonl.zst": b"no frame",
        "e.parquet": b"no parquet",
        "f.json": b"[{]",
        "g.txt": b"{}",
        "h.jsonl": b"\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PhialError, match=name):
            list(read_chats([tmp_path / name]))
    with pytest.raises(PhialError, match="row 2 is no JSON: .*surrogates"):
        _read(tmp_path, {"messages": [USER, ANSWER]}, {"messages": [{**USER, "content": "\ud800"}, ANSWER]})
    with pytest.raises(PhialError, match="No such file"):
        list(read_chats([tmp_path / "none.jsonl"]))
