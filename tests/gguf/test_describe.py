"""What `phial inspect` shows: right totals, short arrays, JSON, and nothing a terminal would obey."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from phial.gguf.blocks import GGMLType, random_blocks
from phial.gguf.container import read_gguf, write_gguf
from phial.gguf.describe import SHOWN_CHARACTERS, describe, printable


def test_description_has_the_files_numbers_and_is_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = [
        ("a.weight", (4, 64), GGMLType.Q4_0, random_blocks(GGMLType.Q4_0, (4, 64), rng)),
        ("b.weight", (2, 64), GGMLType.Q4_0, random_blocks(GGMLType.Q4_0, (2, 64), rng)),
        ("norm", (64,), GGMLType.F32, random_blocks(GGMLType.F32, (64,), rng)),
    ]
    metadata = {
        "tokens": [f"t{i}" for i in range(100)],
        "scores": np.array([np.nan, np.inf, 0.5], np.float32),
        "flag": True,
        "epsilon": float("nan"),
        "count": np.uint8(3),
    }
    path = tmp_path / "x.gguf"
    write_gguf(path, metadata, tensors, alignment=64)
    with read_gguf(path) as file:
        shown = describe(file)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert (shown["path"], shown["bytes"], shown["version"], shown["alignment"]) == (
        str(path), path.stat().st_size, 3, 64,
    )  # fmt: skip
    assert shown["metadata"] == {
        "tokens": {"type": "string", "length": 100, "first": [f"t{i}" for i in range(8)]},
        "scores": {"type": "float32", "length": 3, "first": ["nan", "inf", 0.5]},
        "flag": True,
        "epsilon": "nan",
        "count": 3,
        "general.alignment": 64,
    }
    assert shown["tensors"][0] == {"name": "a.weight", "shape": [4, 64], "type": "Q4_0", "bytes": 144}
    assert shown["types"] == {
        "F32": {"tensors": 1, "parameters": 64, "bytes": 256},
        "Q4_0": {"tensors": 2, "parameters": 384, "bytes": 216},
    }
    assert list(shown["types"]) == ["F32", "Q4_0"]  # most bytes first
    assert (shown["n_tensors"], shown["n_parameters"], shown["tensor_bytes"]) == (3, 448, 472)


def test_text_is_escaped_where_a_terminal_would_act_and_cut_where_it_is_long(tmp_path: Path) -> None:
    assert printable("a\x1b[2J\u202e\udcffé😀\n\t") == "a\\x1b[2J\\u202e\\udcffé😀\n\t"
    path = tmp_path / "x.gguf"
    write_gguf(path, {"bad": "\x1b]0;title\x07", "words": ["\udcff"], "long": "x" * (SHOWN_CHARACTERS + 1)}, [])
    with read_gguf(path) as file:
        shown = describe(file)["metadata"]
    assert shown["bad"] == "\\x1b]0;title\\x07"
    assert shown["words"]["first"] == ["\\udcff"]
    assert shown["long"] == {"length": SHOWN_CHARACTERS + 1, "first": "x" * SHOWN_CHARACTERS}


def test_a_real_models_parameters_are_counted_to_the_unit(smollm2: Path) -> None:
    with read_gguf(smollm2) as file:
        shown = describe(file)
    assert shown["n_parameters"] == 134_515_008
    assert shown["types"]["Q4_1"] == {"tensors": 210, "parameters": 106_168_320, "bytes": 66_355_200}
