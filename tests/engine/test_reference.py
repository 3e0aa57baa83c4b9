"""The numpy forward against transformers: same files, same tokens, logits within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.tiny_models import Tiny, tiny_llama, tiny_phi3, tiny_qwen2

from phial.engine.reference import GGUFWeights, ReferenceCache, ReferenceModel
from phial.errors import ArgumentError
from phial.gguf.blocks import GGMLType
from phial.gguf.container import read_gguf

Make = Callable[[Path], Tiny]
MODELS: dict[str, Make] = {
    "phi3 with as many key heads": lambda folder: tiny_phi3(folder, n_head_kv=4),
    "phi3 grouped": lambda folder: tiny_phi3(folder),
    "phi3 with a window": lambda folder: tiny_phi3(folder, window=7),
    "phi3 longrope": lambda folder: tiny_phi3(folder, long_rope=True),
    "phi3 longrope with a window": lambda folder: tiny_phi3(folder, long_rope=True, window=23),
    "phi-4-mini's shape": lambda folder: tiny_phi3(
        folder, n_embd=96, n_head=6, partial_rotary=0.75, long_rope=True, tie=True
    ),
    "llama": lambda folder: tiny_llama(folder),
    "llama tied": lambda folder: tiny_llama(folder, tie=True, n_head=8, n_head_kv=2),
    "llama with wide heads": lambda folder: tiny_llama(folder, head_dim=32),
    "llama with linear scaling": lambda folder: tiny_llama(folder, rope="linear"),
    "llama 3 frequencies": lambda folder: tiny_llama(folder, rope="llama3"),
    "qwen2": lambda folder: tiny_qwen2(folder),
    "qwen2 tied": lambda folder: tiny_qwen2(folder, tie=True),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Tiny:
    return MODELS[request.param](tmp_path)


def tokens_for(model: torch.nn.Module, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, n)


def theirs(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


def ours(model: ReferenceModel, tokens: np.ndarray, cut: int = 0) -> np.ndarray:
    """Logits of every token, run in two steps cut at `cut`."""
    cache, long = ReferenceCache(model.config), model.config.uses_long(len(tokens))
    parts = [part for part in (tokens[:cut], tokens[cut:]) if len(part)]
    return np.concatenate([model.forward(part, cache, long, all_logits=True) for part in parts])


@pytest.mark.parametrize("n", [1, 50, 100])  # LongRoPE's original context is 64
def test_logits_equal_those_of_transformers(case: Tiny, n: int) -> None:
    path, model = case
    tokens = tokens_for(model, n)
    expected = theirs(model, tokens)
    assert expected.std() > 0.3  # else agreement would mean little
    with read_gguf(path) as file:
        np.testing.assert_allclose(ours(ReferenceModel.from_gguf(file), tokens), expected, atol=1e-4, rtol=0)


def test_incremental_decode_equals_the_full_forward(case: Tiny) -> None:
    path, model = case
    tokens = tokens_for(model, 80)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        full, cache = ours(reference, tokens), ReferenceCache(reference.config)
        long = reference.config.uses_long(80)
        np.testing.assert_allclose(ours(reference, tokens, cut=33), full, atol=2e-5, rtol=0)
        one_by_one = [reference.forward([token], cache, long) for token in tokens]
    assert cache.n_past == 80
    np.testing.assert_allclose(one_by_one, full, atol=2e-5, rtol=0)


@pytest.mark.parametrize("n", [63, 64, 65])
def test_the_long_factors_begin_one_token_beyond_the_original_context(tmp_path: Path, n: int) -> None:
    path, model = tiny_phi3(tmp_path, long_rope=True)
    tokens = tokens_for(model, n)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        assert reference.config.uses_long(n) == (n == 65)
        np.testing.assert_allclose(ours(reference, tokens), theirs(model, tokens), atol=1e-4, rtol=0)
        wrong = reference.forward(tokens, ReferenceCache(reference.config), long=n != 65)
    assert np.abs(wrong - theirs(model, tokens)[-1]).max() > 0.01


@pytest.mark.parametrize(("window", "n"), [(5, 40), (2047, 2100)])
def test_a_query_sees_exactly_window_keys_itself_included(tmp_path: Path, window: int, n: int) -> None:
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_head_kv": 1, "n_ff": 16}
    path, model = tiny_phi3(tmp_path, window=window, context=4096, **sizes)
    tokens, q = tokens_for(model, n), n - 1
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        plain = ours(reference, tokens)[q]
        for distance, changes in ((window - 1, True), (window, False)):
            other = tokens.copy()
            other[q - distance] = (other[q - distance] + 1) % reference.config.n_vocab
            assert np.array_equal(ours(reference, other)[q], plain) is not changes
        no_window = ReferenceModel(replace(reference.config, sliding_window=None), reference.weights)
        assert not np.array_equal(ours(no_window, tokens)[q], plain)


@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_1, GGMLType.Q4_K, GGMLType.Q6_K])
def test_quantised_weights_act_as_their_dequantised_values(tmp_path: Path, type: GGMLType) -> None:
    path, model = tiny_llama(tmp_path, type=type, n_embd=256, n_ff=256, n_layer=1)
    tokens = tokens_for(model, 12)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        result = ours(reference, tokens)
        piecewise = ReferenceModel(reference.config, GGUFWeights(file, keep_bytes=0))
        np.testing.assert_array_equal(ours(piecewise, tokens), result)
        as_dict = ReferenceModel(reference.config, {name: file.dequantized(name) for name in file.tensors})
        np.testing.assert_array_equal(ours(as_dict, tokens), result)
    np.testing.assert_allclose(result, theirs(model, tokens), atol=1e-4, rtol=0)


def test_weights_that_do_not_fit_the_budget_are_not_kept(tmp_path: Path) -> None:
    path, _ = tiny_llama(tmp_path, type=GGMLType.Q8_0)
    with read_gguf(path) as file:
        size = 4 * file.tensors["blk.0.ffn_up.weight"].n_bytes // 34 * 32
        weights = GGUFWeights(file, keep_bytes=size)
        first = weights["blk.0.ffn_up.weight"]
        assert weights["blk.0.ffn_up.weight"].base is first.base or weights["blk.0.ffn_up.weight"] is first
        assert not np.shares_memory(weights["blk.1.ffn_up.weight"], weights["blk.1.ffn_up.weight"])
        assert np.shares_memory(weights["blk.0.ffn_up.weight"], first)
        np.testing.assert_array_equal(
            weights.rows("blk.1.ffn_up.weight", np.array([3, 1])), file.dequantized("blk.1.ffn_up.weight")[[3, 1]]
        )


def test_a_matrix_multiplied_in_pieces_gives_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tiny_phi3(tmp_path)
    tokens = tokens_for(model, 9)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        whole = ours(reference, tokens)
        monkeypatch.setattr("phial.engine.reference._PIECE", 64 * 7)  # seven rows at a time
        np.testing.assert_allclose(ours(reference, tokens), whole, atol=1e-5, rtol=0)


def test_lowering_n_past_forgets_the_later_tokens(tmp_path: Path) -> None:
    path, model = tiny_phi3(tmp_path)
    tokens, other = tokens_for(model, 30), tokens_for(model, 30, seed=2)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        cache = ReferenceCache(reference.config)
        reference.forward(np.concatenate([tokens[:20], other]), cache, long=False)
        cache.n_past = 20
        again = reference.forward(tokens[20:], cache, long=False)
        np.testing.assert_allclose(again, ours(reference, tokens)[-1], atol=2e-5, rtol=0)


def test_what_forward_returns(tmp_path: Path) -> None:
    path, model = tiny_qwen2(tmp_path)
    tokens = tokens_for(model, 6)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        every = ours(reference, tokens)
        last = reference.forward(tokens, ReferenceCache(reference.config), long=False)
        hidden = reference.forward(tokens, ReferenceCache(reference.config), long=False, hidden=True)
    assert every.shape == (6, reference.config.n_vocab)
    assert every.dtype == last.dtype == hidden.dtype == np.float32
    np.testing.assert_allclose(last, every[-1], atol=1e-5)
    with torch.no_grad():
        expected = model.model(torch.from_numpy(tokens)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(hidden, expected, atol=1e-4)


@pytest.mark.parametrize("tokens", [[], [-1], [0, 10**6]])
def test_tokens_that_cannot_be_run_are_refused_and_leave_the_cache(tmp_path: Path, tokens: list[int]) -> None:
    path, _ = tiny_phi3(tmp_path)
    with read_gguf(path) as file:
        reference = ReferenceModel.from_gguf(file)
        cache = ReferenceCache(reference.config)
        with pytest.raises(ArgumentError, match="token"):
            reference.forward(tokens, cache, long=False)
        assert cache.n_past == 0
