"""muP by the coordinate check of arXiv 2203.03466 (appendix D.1): activations move alike at every width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.test_loop import TINY

from phial.errors import ArgumentError
from phial.model.checkpoint import load, save
from phial.model.phi3_small import Phi3Small
from phial.model.phi3_small_settings import Phi3SmallConfig
from phial.model.sparse import BlockPattern
from phial.model.transformer import Transformer
from phial.train.mup import scale_initial
from phial.train.objective import NextToken
from phial.train.optim import OptimizerConfig, make_optimizers, parameter_groups

WIDTHS = (32, 64, 128, 256)


def _model(width: int, *, base: int | None, tie: bool = True) -> Transformer:
    torch.manual_seed(0)
    heads = width // 8
    model = Transformer(replace(TINY, n_embd=width, n_head=heads, n_head_kv=heads, n_ff=2 * width, tie_embeddings=tie))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)  # at the base's width a layer adds about what it is given
    if base is not None:
        scale_initial(model, base)
    return model


def _moved(width: int, kind: str, mup: bool, tie: bool) -> dict[str, float]:
    """How far the last hidden states before the norm, and the logits, move in four steps: root mean square."""
    base = WIDTHS[0] if mup else None
    model = _model(width, base=base, tie=tie)
    config = OptimizerConfig(kind=kind, lr=0.01, weight_decay=0.0, base_width=base)  # type: ignore[arg-type]
    optimizers = make_optimizers(model, config)
    tokens = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    model.model.layers[-1].register_forward_hook(lambda _m, _i, out: seen.__setitem__("hidden", out.detach()))

    def look() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"logits": model(tokens), "hidden": seen["hidden"]}

    before = look()
    for _ in range(4):
        NextToken()(model, {"tokens": tokens, "targets": tokens.roll(-1, 1)}).total.div(256).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    after = look()
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_activations_move_alike_at_every_width_with_mup_and_not_without(kind: str, tie: bool) -> None:
    growth = {}
    for mup in (True, False):
        narrow, *_, wide = [_moved(width, kind, mup, tie) for width in (WIDTHS[0], WIDTHS[-1])]
        growth[mup] = {name: wide[name] / narrow[name] for name in narrow}
    assert 0.8 < growth[True]["hidden"] < 1.25 and growth[False]["hidden"] > 10, growth
    # New logits are noise that falls with the width, so they move a little less; what is learnt does not fall.
    assert 0.4 < growth[True]["logits"] < 1.25 and growth[False]["logits"] > 3, growth


def test_at_the_bases_width_nothing_changes() -> None:
    plain, scaled = _model(32, base=None), _model(32, base=32)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)
    one, two = (parameter_groups(plain, OptimizerConfig(base_width=base)) for base in (None, 32))
    assert [(g["role"], g["lr"], g["weight_decay"]) for g in one] == [
        (g["role"], g["lr"], g["weight_decay"]) for g in two
    ]


def test_rates_and_decays_at_four_times_the_width() -> None:
    for kind, slower in (("adamw", 4), ("muon", 2)):
        config = OptimizerConfig(kind=kind, lr=0.08, weight_decay=0.1, base_width=32)  # type: ignore[arg-type]
        groups = {g["role"]: g for g in parameter_groups(_model(128, base=32, tie=False), config)}
        rates = {role: group["peak_lr"] for role, group in groups.items()}
        assert rates == {"hidden": 0.08 / slower, "last norm": 0.02, "embedding": 0.08, "output": 0.08, "vector": 0.08}
        assert groups["hidden"]["lr"] * groups["hidden"]["weight_decay"] == pytest.approx(0.008)


def test_the_exported_model_is_a_plain_one(tmp_path: Path) -> None:
    model = _model(64, base=32)
    tokens = torch.randint(64, (1, 20))
    save(model, tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "model")(tokens), model(tokens), atol=1e-6, rtol=0)


def test_a_model_with_multipliers_of_its_own_is_refused() -> None:
    shape = replace(TINY, architecture="phi3", n_ff=16, qkv_bias=True)
    model = Phi3Small(Phi3SmallConfig(shape, BlockPattern(n_head=4, block=4), dummy_ids=()))
    with pytest.raises(ArgumentError, match="Phi3Small"):
        make_optimizers(model, OptimizerConfig(base_width=16))
