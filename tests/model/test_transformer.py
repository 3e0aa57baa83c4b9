"""The PyTorch decoder against transformers: same random weights, same tokens, logits within 1e-5 in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.tiny_models import Tiny, tiny_llama, tiny_phi3, tiny_qwen2

from phial.config import PRESETS, ROPE_TENSORS, ModelConfig
from phial.errors import ArgumentError
from phial.gguf.container import read_gguf
from phial.model.transformer import Transformer

Make = Callable[[Path], Tiny]
MODELS: dict[str, Make] = {
    "phi3 with as many key heads": lambda folder: tiny_phi3(folder, n_head_kv=4),
    "phi3 grouped": tiny_phi3,
    "phi3 with a window": lambda folder: tiny_phi3(folder, window=7),
    "phi3 longrope": lambda folder: tiny_phi3(folder, long_rope=True),
    "phi3 longrope with a window": lambda folder: tiny_phi3(folder, long_rope=True, window=23),
    "phi-4-mini's shape": lambda folder: tiny_phi3(
        folder, n_embd=96, n_head=6, partial_rotary=0.75, long_rope=True, tie=True
    ),
    "llama": tiny_llama,
    "llama tied": lambda folder: tiny_llama(folder, tie=True, n_head=8, n_head_kv=2),
    "llama with wide heads": lambda folder: tiny_llama(folder, head_dim=32),
    "llama with linear scaling": lambda folder: tiny_llama(folder, rope="linear"),
    "llama 3 frequencies": lambda folder: tiny_llama(folder, rope="llama3"),
    "qwen2": tiny_qwen2,
    "qwen2 tied": lambda folder: tiny_qwen2(folder, tie=True),
}


def config_of(path: Path) -> ModelConfig:
    """The config of a file whose weights are taken from transformers: its Q and K rows are not permuted."""
    with read_gguf(path) as file:
        rope = {name: file.dequantized(name) for name in ROPE_TENSORS if name in file.tensors}
        shapes = {name: info.shape for name, info in file.tensors.items()}
        return replace(ModelConfig.from_gguf(file.metadata, shapes, rope), rope_interleaved=False)


def load(model: Transformer, theirs: torch.nn.Module) -> Transformer:
    """Give a model the weights of a transformers model. Strict: names and shapes must be the same."""
    state = theirs.state_dict()
    if model.config.tie_embeddings:
        state.pop("lm_head.weight")
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def pair(folder: Path, make: Make, **options: Any) -> tuple[Transformer, torch.nn.Module]:
    path, theirs = make(folder)
    return load(Transformer(config_of(path), **options), theirs), theirs


def random_tokens(model: Transformer, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(model.config.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Make:
    return MODELS[request.param]


@pytest.mark.parametrize(
    ("name", "count"),
    [("phi-3-mini-4k", 3_821_079_552), ("phi-3-medium-4k", 13_960_238_080), ("phi-4-mini", 3_836_021_760)],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = Transformer(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_preset_has_the_parameters_its_config_counts() -> None:
    for config in PRESETS.values():
        with torch.device("meta"):
            model = Transformer(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == config.n_params(), config.name


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_logits_equal_those_of_transformers(make: Make, attention: str, tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, make, attention=attention)
    # LongRoPE's original length is 64. Frequencies may differ in the last bit, so differences grow with the position.
    for n in (1, 50, 64, 65, 80):
        tokens = random_tokens(ours, 2, n)
        expected = theirs(tokens).logits
        assert expected.std() > 0.3  # else agreement would mean little
        torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("n", [4095, 4096, 4097, 8192])
def test_logits_equal_those_of_transformers_around_phi3s_own_original_length(tmp_path: Path, n: int) -> None:
    sizes: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_head_kv": 1, "n_ff": 16, "n_layer": 2 if n < 5000 else 1}
    path, theirs = tiny_phi3(tmp_path, long_rope=True, context=16384, original_context=4096, **sizes)
    theirs.set_attn_implementation("sdpa")
    ours = load(Transformer(config_of(path)), theirs)
    tokens = random_tokens(ours, 1, n)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_q_and_k_in_the_order_of_gguf_files_give_the_same_logits(tmp_path: Path) -> None:
    path, theirs = tiny_llama(tmp_path)
    model = load(Transformer(replace(config_of(path), rope_interleaved=True)), theirs)
    tokens = random_tokens(model, 1, 30)
    expected = theirs(tokens).logits
    for layer in model.model.layers:
        for projection, heads in ((layer.self_attn.q_proj, 4), (layer.self_attn.k_proj, 2)):
            rows = torch.arange(len(projection.weight)).view(heads, 2, -1).mT.flatten()
            projection.weight = torch.nn.Parameter(projection.weight[rows])
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_wrong_factor_set_would_be_seen(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, MODELS["phi3 longrope"])
    for n, original in ((64, 63), (65, 65)):  # long one token too early, short one token too late
        other = load(Transformer(replace(ours.config, rope_original_context=original)), theirs)
        tokens = random_tokens(ours, 1, n)
        assert (other(tokens) - theirs(tokens).logits).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_a_short_row_beside_a_long_one_gives_what_it_gives_alone(tmp_path: Path, attention: str) -> None:
    ours, theirs = pair(tmp_path, MODELS["phi3 longrope"], attention=attention)
    tokens = random_tokens(ours, 2, 100)  # beyond the first 20 the first row is padding, of any content
    together = ours(tokens, lengths=[20, 100])
    torch.testing.assert_close(together[0, :20], theirs(tokens[:1, :20]).logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[0, :20], ours(tokens[:1, :20])[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(together[1], theirs(tokens[1:]).logits[0], atol=1e-5, rtol=0)
    one_for_all = ours(tokens)[0, :20]  # what one decision for the whole batch would make of it
    assert (one_for_all - together[0, :20]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize(("window", "n"), [(5, 6), (5, 40), (2047, 2100)])
def test_a_query_sees_exactly_window_keys_itself_included(tmp_path: Path, window: int, n: int, attention: str) -> None:
    sizes: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_head_kv": 1, "n_ff": 16}
    path, theirs = tiny_phi3(tmp_path, window=window, context=4096, **sizes)
    ours = load(Transformer(config_of(path), attention=attention), theirs)
    tokens = random_tokens(ours, 1, n)
    plain = ours(tokens)[0, -1]
    for distance, changes in ((window - 1, True), (window, False)):
        other = tokens.clone()
        other[0, -1 - distance] = (other[0, -1 - distance] + 1) % ours.config.n_vocab
        assert torch.equal(ours(other)[0, -1], plain) is not changes


@pytest.mark.parametrize("fast", ["sdpa", "auto"])
def test_gradients_of_the_fast_paths_equal_those_of_the_plain_one(fast: str, tmp_path: Path) -> None:
    path, theirs = tiny_phi3(tmp_path, window=7, long_rope=True)
    gradients = []
    for attention in (fast, "plain"):
        model = load(Transformer(config_of(path), attention=attention), theirs)
        model.zero_grad()  # assigned weights are theirs, and so are their gradients
        model(random_tokens(model, 2, 70)).logsumexp(-1).mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_a_model_built_on_the_meta_device_and_then_loaded_is_whole(tmp_path: Path) -> None:
    path, theirs = MODELS["phi-4-mini's shape"](tmp_path)
    with torch.device("meta"):
        model = Transformer(config_of(path))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    tokens = random_tokens(model, 1, 80)
    torch.testing.assert_close(load(model, theirs)(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, MODELS["phi3 longrope"])
    tokens = random_tokens(ours, 1, 80)
    exact = ours(tokens)
    rounded = ours.to(torch.bfloat16)(tokens)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).pow(2).mean().sqrt() < 0.05 * exact.std()


def test_dropout_acts_in_training_alone_and_only_where_asked() -> None:
    config = replace(PRESETS["smollm2-135m"], n_vocab=32, n_layer=1)
    model = Transformer(config, dropout=0.2)
    tokens = random_tokens(model, 1, 8)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    for layer in model.train().model.layers:  # what is left is the dropout on the embeddings
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    assert not torch.equal(model(tokens), model(tokens))
    without = Transformer(config).train()
    assert torch.equal(without(tokens), without(tokens))


def test_new_weights_have_the_published_spread() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(PRESETS["qwen2-0.5b"], n_vocab=512, n_layer=1))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
        else:
            assert (parameter == (0 if "bias" in name else 1)).all(), name


@pytest.mark.parametrize(
    ("shape", "lengths", "named"),
    [
        ((), None, "()"),
        ((8,), None, "(8,)"),
        ((1, 0), None, "(1, 0)"),
        ((2, 4), [4], "1 lengths"),
        ((1, 4), [5], "length 5 of row 0"),
    ],
)
def test_tokens_and_lengths_that_do_not_fit_are_refused(
    shape: tuple[int, ...], lengths: list[int] | None, named: str
) -> None:
    model = Transformer(replace(PRESETS["smollm2-135m"], n_vocab=32, n_layer=1))
    with pytest.raises(ArgumentError) as caught:
        model(torch.zeros(shape, dtype=torch.long), lengths)
    assert named in caught.value.message


def test_unknown_attention_paths_and_impossible_dropouts_are_refused() -> None:
    config = replace(PRESETS["smollm2-135m"], n_vocab=32, n_layer=1)
    with pytest.raises(ArgumentError, match="'flash'"):
        Transformer(config, attention="flash")
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(ArgumentError, match="dropout"):
            Transformer(config, dropout=dropout)


@torch.no_grad()
def test_tokens_that_see_both_ways_are_those_of_transformers_and_padding_changes_none(tmp_path: Path) -> None:
    path, theirs = tiny_llama(tmp_path)
    theirs.config.is_causal = False
    model = load(Transformer(replace(config_of(path), causal=False)), theirs)
    tokens, lengths = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(4)), [40, 23]
    logits = model(tokens, lengths)
    assert not torch.allclose(logits, model(tokens), atol=1e-3)  # the second row, where padding would be seen
    for row, n in enumerate(lengths):
        expected = theirs(tokens[row : row + 1, :n]).logits[0]
        torch.testing.assert_close(logits[row, :n], expected, atol=1e-5, rtol=0)
    causal = load(Transformer(config_of(path)), theirs)
    assert not torch.allclose(causal(tokens)[0], logits[0], atol=1e-3)
