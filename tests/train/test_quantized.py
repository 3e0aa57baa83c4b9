"""A frozen base in blocks is the dequantised model: its values bit for bit, its gradients to rounding."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny
from tests.train.test_sft import CHATS

from phial.config_file import checked
from phial.errors import ArgumentError, FormatError
from phial.gguf.blocks import dequantize, random_blocks
from phial.gguf.container import read_gguf
from phial.gguf.convert import gguf_to_hf
from phial.gguf.formats import FORMATS, GGMLType
from phial.gguf.scale_search import encode
from phial.model.transformer import Transformer
from phial.train import quantized
from phial.train.layers import prepared_layers
from phial.train.lora import LoraConfig, adapted, merge
from phial.train.objective import NextToken
from phial.train.quantized import QuantizedLinear, decode
from phial.train.sft import SftConfig, sft
from phial.train.start import open_start

TOKENS = torch.tensor([[1, 300, 301, 302, 44, 300, 7]])


@pytest.mark.parametrize("kind", list(GGMLType), ids=lambda kind: kind.name)
def test_every_type_is_decoded_to_the_bit(kind: GGMLType) -> None:
    shape = (7, 1536) if kind in FORMATS else (7, 96)
    raw = random_blocks(kind, shape, np.random.default_rng(int(kind)))
    expected = dequantize(raw, kind, shape)
    found = decode(torch.from_numpy(raw).view(7, -1), kind).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


def _start(path: Path, base: str, dropout: float = 0.0) -> Transformer:
    """Adapters that are no longer zero upon one of the ways to hold a base."""
    torch.set_num_threads(1)
    lora = LoraConfig.model_validate({"rank": 4, "alpha": 12.0, "base": base, "dropout": dropout})
    model = open_start(path, lora=lora).model
    torch.manual_seed(3)
    with torch.no_grad():
        for module in adapted(model).values():
            module.lora_B.weight.normal_(std=0.1)
    return model


def _gradients(model: Transformer) -> tuple[float, dict[str, torch.Tensor]]:
    objective = NextToken()
    loss = objective(model.train(), {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}).total
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("phi3", GGMLType.Q4_1), ("llama", GGMLType.Q4_0), ("qwen2", GGMLType.Q5_1), ("llama", GGMLType.F16)],
)
def test_losses_and_gradients_are_those_of_the_dequantised_model(
    architecture: str, kind: GGMLType, recompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "_STRIP", 1 << 12)  # several of each matrix
    monkeypatch.setattr(quantized, "_PASS", 1 << 10)
    file = write_tiny(tmp_path / "tiny.gguf", architecture, kind)
    model, plain = _start(file, "file"), _start(file, "float")
    with prepared_layers(model, recompute=recompute, compile=False):
        loss, found = _gradients(model)
    expected_loss, expected = _gradients(plain)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys() and all(".lora_" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=5e-6 * float(gradient.abs().max()))
    held = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(held) == len(adapted(model)) and {module.kind for module in held} == {kind}
    merge(model)
    merge(plain)
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], weight, rtol=0, atol=1e-7)


def test_matrices_that_are_not_adapted_stay_in_blocks_too(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.Q4_0)
    lora = LoraConfig(base="file", targets=("v_proj",))
    model, plain = open_start(file, lora=lora).model, open_start(file).model
    kinds = [type(module).__name__ for module in model.model.layers[0].modules()]
    assert (kinds.count("QuantizedLinear"), kinds.count("LoraLinear")) == (7, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["file", "folder"])
def test_floats_are_quantised_on_the_way_in(source: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.F32)
    plain = open_start(path).model.get_submodule("model.layers.1.self_attn.k_proj")
    if source == "folder":
        gguf_to_hf(path, tmp_path / "folder")
        path = tmp_path / "folder"
    with pytest.raises(ArgumentError, match="holds no blocks") if source == "folder" else nullcontext():
        open_start(path, lora=LoraConfig(base="file"))
    model = open_start(path, lora=LoraConfig(base="q4_0")).model
    found = model.get_submodule("model.layers.1.self_attn.k_proj.base_layer")
    assert isinstance(plain, torch.nn.Linear) and isinstance(found, QuantizedLinear)
    expected = encode(plain.weight.detach().numpy(), GGMLType.Q4_0)
    np.testing.assert_array_equal(found.blocks.numpy().reshape(-1), expected)


def test_bf16_is_near_and_its_gradient_too(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "phi3", GGMLType.Q8_0)
    model, plain = _start(file, "file"), _start(file, "float")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = _gradients(model), _gradients(plain)
    assert found[0] == pytest.approx(expected[0], rel=2e-2)
    for name, gradient in expected[1].items():
        cosine = torch.cosine_similarity(found[1][name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.Q4_0)
    with read_gguf(file) as gguf:
        at = gguf.tensors["blk.0.attn_q.weight"].offset
    raw = bytearray(file.read_bytes())
    raw[at : at + 2] = b"\x00\x7c"  # infinity
    file.write_bytes(raw)
    with pytest.raises(FormatError, match="attn_q.weight holds NaN or infinity"):
        open_start(file, lora=LoraConfig(base="file"))


def test_a_run_on_blocks_stops_and_goes_on_only_upon_the_same_blocks(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.Q4_0)
    settings = {"sequence": 96, "lora": {"rank": 2, "base": "file"}, "loop": {"optimizer": {"lr": 0.01}}}
    config = checked(SftConfig, settings, "test.toml")
    made = sft(config, open_start(file, lora=config.lora), CHATS, {}, tmp_path / "run", lambda text: None)
    assert set(made) >= {"adapter", "data"} and "model" not in made
    with read_gguf(file) as gguf:
        code = gguf.tensors["blk.0.attn_q.weight"].offset + 2  # behind the scale
    raw, other = bytearray(file.read_bytes()), tmp_path / "other.gguf"
    raw[code] ^= 1
    other.write_bytes(raw)
    with pytest.raises(Exception, match="has frozen ="):
        sft(config, open_start(other, lora=config.lora), CHATS, {}, tmp_path / "run", lambda text: None)
