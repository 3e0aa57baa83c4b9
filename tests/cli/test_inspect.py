"""`phial inspect`: what it prints and that a hostile file cannot write to the terminal."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tests.tiny_models import metadata, write_tiny

from phial.engine.memory import memory_estimate
from phial.gguf.blocks import GGMLType
from phial.gguf.container import write_gguf


def test_json_has_metadata_tensors_and_the_memory_of_the_context_asked_for(invoke, tiny) -> None:
    facts = json.loads(invoke("inspect", tiny, "--ctx", "128", "--cache-type", "q8_0", "--json").out)
    estimate = memory_estimate(tiny, 128, "q8_0")
    assert facts["metadata"]["general.name"] == "tiny phi3"
    assert {"name": "blk.0.attn_qkv.weight", "shape": [512, 256], "type": "Q8_0", "bytes": 139264} in facts["tensors"]
    assert facts["memory"]["n_ctx"] == 128
    assert facts["memory"]["total"] == estimate.total and facts["memory"]["cache"] == estimate.cache


def test_the_context_is_the_models_own_unless_asked(invoke, tiny) -> None:
    assert json.loads(invoke("inspect", tiny, "--json").out)["memory"]["n_ctx"] == 512


def test_text_lists_every_tensor_whole_in_a_pipe(invoke, tiny) -> None:
    done = invoke("inspect", tiny)
    assert done.err == "" and "\x1b" not in done.out
    assert re.search(r"^blk\.1\.ffn_down\.weight +256 x 512  Q8_0  139,264$", done.out, re.MULTILINE)
    assert "memory for 512 tokens, f16 cache:" in done.out
    assert all(line == line.rstrip() for line in done.out.splitlines())


def test_a_file_of_another_kind_is_shown_and_said_not_to_run(invoke, tmp_path) -> None:
    path = tmp_path / "other.gguf"
    write_gguf(path, {"general.architecture": "mamba"}, [("w", (4,), GGMLType.F32, np.zeros(16, np.uint8))])
    done = invoke("inspect", str(path))
    assert done.status == 0
    assert "this model cannot be run: " in done.out and "mamba" in done.out


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_escapes_in_metadata_are_shown_not_obeyed(invoke, tmp_path, form) -> None:
    path = write_tiny(tmp_path / "evil.gguf")
    keys = {**metadata("phi3"), "general.name": "evil\x1b]0;owned\x07\x9b2J\u202eend", "x.nan": float("nan")}
    write_gguf(path, keys, [])
    done = invoke("inspect", str(path), *form)
    assert done.status == 0
    assert not set("\x1b\x07\x9b\u202e") & set(done.out)
    assert "evil" in done.out
    if form:
        json.loads(done.out, parse_constant=pytest.fail)
