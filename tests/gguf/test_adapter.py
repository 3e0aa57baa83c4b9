"""An adapter merged while converting, either way and from either kind of file, gives W + s B A."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phial.errors import ArgumentError, PhialError
from phial.gguf.adapter import Merge
from phial.gguf.container import read_gguf
from phial.gguf.convert import gguf_to_hf, hf_to_gguf, model_config

torch = pytest.importorskip("torch", reason="torch and transformers write the tiny models")
from tests.engine.tiny_models import tiny_llama, tiny_phi3  # noqa: E402
from tests.lora_adapters import merged_file, random_adapter, write_adapter_gguf, write_peft  # noqa: E402


@pytest.mark.parametrize("make", [tiny_llama, tiny_phi3])
def test_a_merged_model_is_the_model_with_the_product_added(make: object, tmp_path: Path) -> None:
    file, model = make(tmp_path)  # type: ignore[operator]
    adapter = random_adapter(model)
    peft, gguf = write_peft(tmp_path / "a", adapter), write_adapter_gguf(tmp_path / "a.gguf", adapter)
    gguf_to_hf(file, tmp_path / "base")
    hf_to_gguf(tmp_path / "base", tmp_path / "from-folder.gguf", "f32", adapter=peft)
    gguf_to_hf(file, tmp_path / "merged", adapter=gguf)
    hf_to_gguf(tmp_path / "merged", tmp_path / "from-file.gguf", "f32")
    expected = merged_file(file, tmp_path / "expected.gguf", [(adapter, 1.0)])
    with read_gguf(expected) as truth, read_gguf(file) as base:
        moved = [np.abs(truth.dequantized(n) - base.dequantized(n)).max() for n in truth.tensors if "attn_" in n]
        assert sorted(moved)[-4] > 0.1
        for name in ("from-folder.gguf", "from-file.gguf"):
            with read_gguf(tmp_path / name) as found:
                assert set(found.tensors) == set(truth.tensors)
                for tensor in truth.tensors:
                    np.testing.assert_allclose(found.dequantized(tensor), truth.dequantized(tensor), atol=2e-6)


def test_what_cannot_be_merged_is_said(tmp_path: Path) -> None:
    file, model = tiny_llama(tmp_path)
    with read_gguf(file) as gguf:
        tied = replace(model_config(gguf), tie_embeddings=True)
    adapter = write_peft(tmp_path / "a", random_adapter(model, chosen=lambda name: name == "lm_head"))
    with pytest.raises(ArgumentError, match="changes the output matrix, which in this model is the embedding"):
        Merge(adapter, tied)
    with pytest.raises(PhialError, match="there is no adapter"):
        gguf_to_hf(file, tmp_path / "out", adapter=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
