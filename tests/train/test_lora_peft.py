"""An adapter that was trained here, loaded and merged by PEFT itself, where it is installed (pip install peft)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import write_tiny
from transformers import AutoModelForCausalLM

from phial.gguf.convert import gguf_to_hf
from phial.gguf.formats import GGMLType
from phial.train.adapter_files import write_adapter
from phial.train.lora import LoraConfig, adapted, merge
from phial.train.start import open_start

pytestmark = pytest.mark.slow
TOKENS = torch.tensor([[1, 300, 301, 302, 9]])


@pytest.mark.parametrize("architecture", ["phi3", "llama", "qwen2"])
def test_peft_computes_the_same_with_our_adapter(architecture: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.set_num_threads(1)
    file, config = write_tiny(tmp_path / "tiny.gguf", architecture, GGMLType.F32), LoraConfig(rank=3, alpha=7.0)
    gguf_to_hf(file, tmp_path / "folder")
    model = open_start(file, lora=config).model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in adapted(model).values():
            module.lora_B.weight.normal_(std=0.1)
    write_adapter(model, config, tmp_path / "adapter", "tiny")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32, pad_token_id=0).eval()
    with torch.no_grad():
        before = theirs(TOKENS).logits
        loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        expected = loaded(TOKENS).logits
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=0)
        assert (expected - before).abs().max() > 1
        merge(model)
        torch.testing.assert_close(model(TOKENS), loaded.merge_and_unload()(TOKENS).logits, atol=1e-5, rtol=0)
