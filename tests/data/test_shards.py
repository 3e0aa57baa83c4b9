"""Token shards: windows are what a plain concatenation gives, and damage is found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phial.data.shards import INDEX, ShardReader, ShardWriter, document_key, token_type, write_index
from phial.errors import ArgumentError, FormatError

TOKENIZER = {"fingerprint": "f" * 64, "n_vocab": 1000, "eos_id": 0}
DOCUMENT = st.lists(st.integers(1, 999), max_size=12).map(lambda ids: [*ids, 0])
SHARDS = st.lists(st.lists(DOCUMENT, max_size=5), min_size=1, max_size=5)


def write(folder: Path, shards: list[list[list[int]]], n_vocab: int = 1000) -> None:
    entries, number = [], 0
    for place, documents in enumerate(shards):
        writer = ShardWriter(folder, f"{place:05}", n_vocab)
        for ids in documents:
            writer.add(ids, document_key(f"document {number}"))
            number += 1
        entries.append(writer.close(source=f"source {place}"))
    write_index(folder, entries, {**TOKENIZER, "n_vocab": n_vocab})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, [[[5, 6, 0], [7, 0]], [], [[8, 9, 10, 0]]])
    return tmp_path


@given(shards=SHARDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_is_the_slice_of_all_shards_put_together(shards: list[list[list[int]]], data: st.DataObject) -> None:
    flat = [ids for documents in shards for ids in documents]
    tokens = [token for ids in flat for token in ids]
    numbers = [number for number, ids in enumerate(flat) for _ in ids]
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), shards)
        reader = ShardReader(Path(name), verify=True)
        assert (reader.n_tokens, reader.n_documents) == (len(tokens), len(flat))
        for number, ids in enumerate(flat):
            assert reader.document(number).tolist() == ids
            assert reader.key(number) == document_key(f"document {number}")
        if len(tokens) < 2:
            return
        n = data.draw(st.integers(1, len(tokens) - 1))
        position = data.draw(st.integers(0, len(tokens) - n - 1))
        window = reader.window(position, n)
        assert window.tokens.tolist() == tokens[position : position + n + 1]
        assert window.documents.tolist() == numbers[position : position + n + 1]


def test_a_training_that_resumes_sees_the_windows_it_would_have_seen(folder: Path) -> None:
    whole = [ShardReader(folder).window(position, 2).tokens.tolist() for position in range(0, 7, 2)]
    assert whole == [[5, 6, 0], [0, 7, 0], [0, 8, 9], [9, 10, 0]]
    resumed = ShardReader(folder)  # a new process knows the position alone
    assert [resumed.window(position, 2).tokens.tolist() for position in range(4, 7, 2)] == whole[2:]


def test_a_window_outside_is_an_error_with_the_last_position(folder: Path) -> None:
    reader = ShardReader(folder)
    assert reader.window(6, 2).tokens.tolist() == [9, 10, 0]
    for position, n in ((7, 2), (-1, 2), (0, 9)):
        with pytest.raises(ArgumentError, match="9 tokens"):
            reader.window(position, n)
    with pytest.raises(ArgumentError, match="0 \\+ 1 tokens"):
        reader.window(0, 0)
    for number in (-1, 3):
        with pytest.raises(ArgumentError, match="3 documents"):
            reader.document(number)


@pytest.mark.parametrize("part", ["tokens", "starts", "keys"])
def test_a_truncated_shard_is_found_at_once(folder: Path, part: str) -> None:
    path = folder / f"00002.{part}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=rf"00002\.{part} has \d+ bytes"):
        ShardReader(folder)
    path.unlink()
    with pytest.raises(FormatError, match=rf"00002\.{part} is missing"):
        ShardReader(folder)


@pytest.mark.parametrize("part", ["tokens", "starts", "keys"])
def test_an_altered_shard_is_found_on_request(folder: Path, part: str) -> None:
    path = folder / f"00000.{part}"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    ShardReader(folder)
    with pytest.raises(FormatError, match=rf"00000\.{part} was altered"):
        ShardReader(folder, verify=True)


def test_a_folder_without_a_good_index_is_refused(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    for change in ({"version": 2}, {"shards": [{"name": "00000"}]}, {"tokenizer": None}):
        (folder / INDEX).write_text(json.dumps({**index, **change}))
        with pytest.raises(FormatError, match=r"index\.json"):
            ShardReader(folder)
    (folder / INDEX).unlink()
    with pytest.raises(FormatError, match=r"index\.json"):
        ShardReader(folder)


def test_one_sources_shards_can_be_read_alone(folder: Path) -> None:
    assert ShardReader(folder, source="source 2").window(0, 3).tokens.tolist() == [8, 9, 10, 0]
    with pytest.raises(ArgumentError, match="source 0, source 1, source 2"):
        ShardReader(folder, source="web")


@pytest.mark.parametrize(("n_vocab", "width"), [(65_536, 2), (65_537, 4)])
def test_the_width_follows_from_the_vocabulary(tmp_path: Path, n_vocab: int, width: int) -> None:
    write(tmp_path, [[[n_vocab - 1, 0]]], n_vocab)
    assert token_type(n_vocab).itemsize == width
    assert (tmp_path / "00000.tokens").stat().st_size == 2 * width
    assert ShardReader(tmp_path).window(0, 1).tokens.tolist() == [n_vocab - 1, 0]


def test_ids_outside_the_vocabulary_are_refused_and_nothing_bears_the_name(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "00000", 10)
    for ids in ([10], [-1], []):
        with pytest.raises(ArgumentError, match="the vocabulary has 10"):
            writer.add(ids, 0)
    writer.add(np.array([1, 2]), 0)
    assert not (tmp_path / "00000.tokens").exists()
    writer.close()
    assert (tmp_path / "00000.tokens").read_bytes() == b"\1\0\2\0"
