"""Hostile files end in a FormatError that names the field and both numbers, at once and in little memory."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from pathlib import Path

import pytest
from tests.gguf import craft
from tests.gguf.hostile import CASES, Case

from phial.errors import FormatError
from phial.gguf import layout
from phial.gguf.container import read_gguf


def refused(path: Path) -> FormatError:
    """The error of reading `path`, after checking that it came soon and cheaply."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(FormatError) as caught:
            read_gguf(path)
        elapsed, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert elapsed < 2
    assert peak < 1 << 20, f"{peak} bytes allocated for a file of {path.stat().st_size}"
    return caught.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_file_is_refused_by_field_and_numbers(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(case.content)
    error = refused(path)
    assert [part for part in case.says if part not in error.message.replace(str(path), "")] == []
    assert error.hint and "\n" not in error.message


def test_the_43_byte_cases_have_43_bytes() -> None:
    named = [case for case in CASES if case.name.startswith("43 bytes")]
    assert len(named) == 3 and {len(case.content) for case in named} == {43}


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_cut_at_any_byte_is_refused_with_two_numbers(tmp_path: Path, version: int) -> None:
    whole = craft.valid(version)
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError) as caught:
            read_gguf(path)
        assert len(re.findall(r"\d+", caught.value.message.replace(str(path), ""))) >= 2


@pytest.mark.parametrize(
    ("count", "entry", "field"),
    [
        (layout.MAX_KEYS + 1, None, "key count"),
        (layout.MAX_TENSORS + 1, None, "tensor count"),
        (layout.MAX_ARRAY_LENGTH + 1, craft.ARRAY, "length of 'k'"),
        (layout.MAX_STRING_BYTES + 1, craft.STRING, "'k' length"),
    ],
)
def test_caps_hold_even_where_the_file_is_large_enough(
    tmp_path: Path, count: int, entry: int | None, field: str
) -> None:
    """A sparse file of 8 GiB costs an attacker nothing; its zeros are plausible lengths."""
    path = tmp_path / "sparse.gguf"
    if entry is None:
        n_tensors, n_keys = (0, count) if field == "key count" else (count, 0)
        head = b"GGUF" + craft.u32(3) + craft.u64(n_tensors) + craft.u64(n_keys)
    else:
        value = craft.array(craft.STRING, count, b"") if entry == craft.ARRAY else craft.u64(count)
        head = b"GGUF" + craft.u32(3) + craft.u64(0) + craft.u64(1) + craft.key(b"k", entry, value)
    path.write_bytes(head)
    os.truncate(path, 8 << 30)
    message = refused(path).message
    assert field in message and str(count) in message and str(count - 1) in message


def test_the_string_cap_holds_inside_arrays(tmp_path: Path) -> None:
    path, length = tmp_path / "sparse.gguf", layout.MAX_STRING_BYTES + 1
    words = craft.array(craft.STRING, 2, craft.text(b"a") + craft.u64(length))
    path.write_bytes(b"GGUF" + craft.u32(3) + craft.u64(0) + craft.u64(1) + craft.key(b"k", craft.ARRAY, words))
    os.truncate(path, 64 << 20)
    message = refused(path).message
    assert "'k'[1] length" in message and str(length) in message and str(length - 1) in message


def test_a_header_beyond_its_cap_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 4096)
    path = tmp_path / "long.gguf"
    words = craft.array(craft.STRING, 1000, craft.text(b"word") * 1000)
    path.write_bytes(craft.build([craft.key(b"k", craft.ARRAY, words)], []))
    message = refused(path).message
    assert "4096" in message and "'k'[" in message
    numbers = craft.array(craft.U8, 5000, bytes(5000))
    path.write_bytes(craft.build([craft.key(b"k", craft.ARRAY, numbers)], []))
    assert "4096" in refused(path).message
