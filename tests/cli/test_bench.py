"""`phial bench`: the rows it prints, and the bytes its memory fraction counts."""

from __future__ import annotations

import json

import pytest

from phial.cli import bench as bench_module
from phial.engine.engine import Engine
from phial.gguf.container import read_gguf

QUICK = ["--prefill", "4,8", "--depth", "0,16", "--decode", "2", "--repeat", "1"]


def test_json_has_one_row_per_length_and_depth(invoke, tiny) -> None:
    done = invoke("bench", "-m", tiny, *QUICK, "--json")
    rows = json.loads(done.out)
    assert [row["name"] for row in rows] == ["prefill 4", "prefill 8", "decode 2 at 0", "decode 2 at 16"]
    assert all(row["ours"] > 0 and {"peer", "ratio", "limit_fraction", "kernels"} <= set(row) for row in rows)
    assert [row["limit_fraction"] is None for row in rows[:2]] == [True, True]


def test_text_has_the_same_rows_and_the_setting_on_stderr(invoke, tiny) -> None:
    done = invoke("bench", "-m", tiny, *QUICK)
    assert len(done.out.splitlines()) == 5
    assert "kernels, memory" in done.err


def test_decoding_reads_every_weight_but_an_untied_embedding_and_the_cache(tiny) -> None:
    with Engine.open(tiny) as engine, read_gguf(tiny) as file:
        expected = sum(info.n_bytes for name, info in file.tensors.items() if name != "token_embd.weight")
        per_token = 2 * 2 * 2 * 64 * 2  # layers, key and value, heads, dimensions, bytes of f16
        assert bench_module._bytes_per_token(engine, 0, "f16") == expected
        assert bench_module._bytes_per_token(engine, 10, "f16") == expected + 10 * per_token


@pytest.mark.parametrize("value", ["", "a", "1,", "-5", "1;2"])
def test_a_list_that_is_none_is_refused(invoke, tiny, value) -> None:
    done = invoke("bench", "-m", tiny, "--depth", value)
    assert (done.status, done.out) == (2, "") and "--depth" in done.err


def test_an_unknown_kernel_set_is_refused_with_those_there_are(invoke, tiny) -> None:
    done = invoke("bench", "-m", tiny, *QUICK, "--kernels", "abacus")
    assert (done.status, done.out) == (2, "") and "abacus" in done.err
