"""LoRA adapters against PEFT itself and against llama.cpp, where they are installed (pip install peft; make peers)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.engine.engine import Engine
from phial.engine.reference import ReferenceCache, ReferenceModel
from phial.gguf.adapter import read_adapter
from phial.gguf.container import read_gguf

torch = pytest.importorskip("torch", reason="torch and transformers write the tiny models")
from tests.engine.tiny_models import tiny_llama, tiny_phi3, tiny_qwen2  # noqa: E402
from tests.lora_adapters import random_adapter, write_adapter_gguf  # noqa: E402

pytestmark = pytest.mark.slow
FAMILIES = {
    "phi3": lambda folder, **shape: tiny_phi3(folder, long_rope=True, original_context=256, window=23, **shape),
    "llama": tiny_llama,
    "llama tied": lambda folder, **shape: tiny_llama(folder, tie=True, **shape),
    "qwen2": tiny_qwen2,
}
TRAINED: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear", "r": 8, "lora_alpha": 16},
    "rank-stabilised, patterns": {
        "target_modules": "all-linear", "r": 8, "lora_alpha": 16, "use_rslora": True,
        "rank_pattern": {"o_proj": 2, r"layers\.1\.mlp\..*": 3},
        "alpha_pattern": {"o_proj": 5, "^model.layers.0.mlp.down_proj": 7},
    },
    "with the output matrix": {"target_modules": ["lm_head", "down_proj"], "r": 4, "lora_alpha": 4},
}  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, 400, 50)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_pefts_own(tmp_path: Path, family: str, trained: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    path, model = FAMILIES[family](tmp_path)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **TRAINED[trained])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero until trained
            parameter.data = torch.randn_like(parameter) / (2 * parameter.shape[1] ** 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
        with adapted.disable_adapter():
            plain = adapted(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    assert (expected - plain).std() > 0.2
    with read_gguf(path) as file:
        ours = ReferenceModel.from_gguf(file)
        ours = ours.with_adapters([(read_adapter(tmp_path / "adapter", ours.config), 1.0)])
        logits = ours.forward(TOKENS, ReferenceCache(ours.config), False, all_logits=True)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


LLAMA_CPP = """
import sys, numpy, llama_cpp
model, adapter, scale, tokens, out = sys.argv[1:]
llm = llama_cpp.Llama(model, n_ctx=64, logits_all=True, verbose=False, n_threads=1, lora_path=adapter,
                      lora_scale=float(scale))
llm.eval(numpy.load(tokens).tolist())
numpy.save(out, numpy.array(llm.scores[: llm.n_tokens]))
"""


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("make", [tiny_phi3, tiny_llama, tiny_qwen2])
def test_logits_are_llama_cpps(tmp_path: Path, make: Any, scale: float) -> None:
    """Both keep keys in f16 and llama.cpp rounds other things besides: without an adapter they differ by 2e-4."""
    python = Path(os.environ.get("PHIAL_PEERS") or Path.home() / ".cache" / "phial-peers") / "bin" / "python"
    if not python.is_file():
        pytest.skip("no llama.cpp (make peers)")
    path, model = make(tmp_path, n_embd=256, n_ff=256)
    adapter = write_adapter_gguf(tmp_path / "adapter.gguf", random_adapter(model, 8))
    np.save(tmp_path / "tokens.npy", TOKENS)
    arguments = [path, adapter, scale, tmp_path / "tokens.npy", tmp_path / "theirs.npy"]
    subprocess.run([python, "-c", LLAMA_CPP, *map(str, arguments)], check=True, capture_output=True, timeout=120)
    theirs = np.load(tmp_path / "theirs.npy")
    with Engine.open(path) as engine:
        ours = engine.session(64, [(engine.load_adapter(adapter), scale)]).eval(TOKENS.tolist(), all_logits=True)
    assert np.sqrt(((ours - theirs) ** 2).mean()) < 1e-3 * theirs.std()
