"""phi-3-small against a second forward in numpy, written here from its description, position by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from phial.config import ModelConfig
from phial.errors import ArgumentError
from phial.model.phi3_small import DUMMY_IDS, PHI_3_SMALL_8K, Phi3Small, Phi3SmallConfig, gegelu
from phial.model.sparse import BlockPattern

SHAPE = replace(
    PHI_3_SMALL_8K.shape, n_vocab=40, n_embd=32, n_layer=3, n_head=8, n_head_kv=2, head_dim=6, n_ff=20, rope_dim=6
)
TINY = Phi3SmallConfig(SHAPE, BlockPattern(n_head=8, block=4, local_blocks=2), dummy_ids=(7, 39), gegelu_limit=2.0)


@pytest.fixture
def model() -> Phi3Small:
    """Weights large enough for clamps, scales and rotations to matter."""
    torch.manual_seed(0)
    model = Phi3Small(TINY).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        norm_weight = "norm" in name and "weight" in name
        parameter.data = noise / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3 * noise + norm_weight
    return model


def layer_norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def rotated(x: np.ndarray, position: int) -> np.ndarray:
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 1e6 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def written_out(config: Phi3SmallConfig, state: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits of every position, in float64 and loops."""
    shape, pattern = config.shape, config.pattern
    c, group = shape.head_dim, shape.n_head // shape.n_head_kv
    stream = [10.0 * state["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(shape.n_layer):
        at = f"model.layers.{layer}"

        def linear(x: np.ndarray, name: str, at: str = at) -> np.ndarray:
            return state[f"{at}.{name}.weight"] @ x + state[f"{at}.{name}.bias"]

        normed = [layer_norm(x, state, f"{at}.input_layernorm") for x in stream]
        qkv = [linear(x, "self_attn.query_key_value").reshape(shape.n_head_kv, group + 2, c) for x in normed]
        for t in range(len(tokens)):
            heads = []
            for h in range(shape.n_head):
                g = h // group
                q = rotated(qkv[t][g, h % group], t)
                keys = []
                for s in range(t + 1):
                    i, j = t // pattern.block, s // pattern.block
                    if layer % 2 == 1 or i - j < pattern.local_blocks or (j + h + 1) % 8 == 0:
                        keys.append(s)
                scores = np.array([q @ rotated(qkv[s][g, group], s) / c for s in keys])
                weights = np.exp(scores - scores.max())
                heads.append(sum(w * qkv[s][g, group + 1] for w, s in zip(weights / weights.sum(), keys, strict=True)))
            stream[t] = stream[t] + linear(np.concatenate(heads), "self_attn.dense")
            up = linear(layer_norm(stream[t], state, f"{at}.post_attention_layernorm"), "mlp.up_proj")
            a, b = np.minimum(up[0::2], config.gegelu_limit), np.clip(up[1::2], -config.gegelu_limit, 2.0)
            stream[t] = stream[t] + linear(a / (1 + np.exp(-1.702 * a)) * (b + 1), "mlp.down_proj")
    final = [layer_norm(x, state, "model.final_layernorm") for x in stream]
    return np.array(final) @ state["model.embed_tokens.weight"].T / 8.0


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_logits_equal_those_written_out(model: Phi3Small, attention: str) -> None:
    ours = Phi3Small(TINY, attention=attention).eval()
    ours.load_state_dict(model.state_dict())
    tokens = torch.randint(40, (50,), generator=torch.Generator().manual_seed(1))
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    expected = written_out(TINY, state, tokens.tolist())
    used = [i for i in range(40) if i not in TINY.dummy_ids]
    assert expected[:, used].std() > 0.05
    np.testing.assert_allclose(ours(tokens[None])[0, :, used], expected[:, used], atol=1e-5, rtol=0)


def test_the_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = Phi3Small(PHI_3_SMALL_8K)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_392_272_384


def test_gegelu_clamps_large_activations() -> None:
    x = torch.tensor([50.0, 50.0, 50.0, -50.0, -50.0, 50.0, 20.0, 20.0])  # a and b in turn
    sigmoid = torch.sigmoid(torch.tensor(-1.702 * 50))
    expected = torch.stack([torch.tensor(420.0), torch.tensor(-380.0), -50 * sigmoid * 21, torch.tensor(420.0)])
    torch.testing.assert_close(gegelu(x, 20.0), expected)


@torch.no_grad()
def test_a_dummy_id_never_wins(model: Phi3Small) -> None:
    for unused in TINY.dummy_ids:
        model.model.embed_tokens.weight[unused] *= 1000  # else by far the largest logits, of either sign
    logits = model(torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(1)))
    assert (logits[..., list(TINY.dummy_ids)] == -torch.inf).all()
    assert logits.isfinite().sum() == 2 * 30 * 38
    assert not set(logits.argmax(-1).flatten().tolist()) & set(TINY.dummy_ids)


def test_the_dummy_ids_are_the_unused_ones() -> None:
    used = {*range(100256), 100257, 100258, 100259, 100260, 100261, 100262, 100263, 100266, 100276}
    assert set(DUMMY_IDS) == set(range(100352)) - used
    assert len(DUMMY_IDS) == len(set(DUMMY_IDS))


def test_layers_are_sparse_and_dense_in_turn(model: Phi3Small) -> None:
    assert [layer.self_attn.is_dense for layer in model.model.layers] == [False, True, False]
    assert sum(PHI_3_SMALL_8K.is_dense(layer) for layer in range(32)) == 16


@torch.no_grad()
def test_scores_are_divided_by_the_head_width_itself(model: Phi3Small) -> None:
    assert [layer.self_attn.scale for layer in model.model.layers] == [1 / 6] * 3
    with torch.device("meta"):
        assert Phi3Small(replace(PHI_3_SMALL_8K, shape=replace(PHI_3_SMALL_8K.shape, n_layer=1))).model.layers[
            0
        ].self_attn.scale == pytest.approx(1 / 128)


@torch.no_grad()
def test_padding_does_not_reach_a_shorter_row(model: Phi3Small) -> None:
    tokens = torch.randint(40, (2, 50), generator=torch.Generator().manual_seed(1))
    together = model(tokens, lengths=[13, 50])
    torch.testing.assert_close(together[:1, :13], model(tokens[:1, :13]), atol=2e-6, rtol=0)


def change(**fields: object) -> ModelConfig:
    return replace(SHAPE, **fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"pattern": BlockPattern(n_head=4)}, "4 heads"),
        ({"dense_every": 0}, "dense_every is 0"),
        ({"dummy_ids": (40,)}, "dummy id 40"),
        ({"shape": change(sliding_window=5)}, "sliding window"),
        ({"shape": change(tie_embeddings=False)}, "tied"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        replace(TINY, **fields)
