"""What an importance matrix sums: against a hook in transformers, between backends, and without a trace afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from phial.engine import native_backend
from phial.engine.engine import Engine
from phial.gguf.blocks import GGMLType

torch = pytest.importorskip("torch", reason="torch is the independent implementation")
tiny_models = pytest.importorskip("tests.engine.tiny_models", reason="torch and transformers write the tiny models")

BACKENDS = ["reference", *(["native"] if native_backend.is_available() else [])]
TOKENS = np.random.default_rng(5).integers(3, 300, 41).tolist()
FAMILIES = {
    "phi3": lambda folder, **kw: tiny_models.tiny_phi3(folder, **kw),
    "phi3 longrope": lambda folder, **kw: tiny_models.tiny_phi3(folder, long_rope=True, original_context=32, **kw),
    "llama": lambda folder, **kw: tiny_models.tiny_llama(folder, **kw),
    "qwen2 tied": lambda folder, **kw: tiny_models.tiny_qwen2(folder, tie=True, **kw),
}


def hooked(model, tokens: list[int]) -> dict[str, np.ndarray]:
    """The same sums, by GGUF name, from what reaches every torch.nn.Linear."""
    found = {}

    def hook(name):
        def add(module, inputs):
            found[tiny_models._gguf_name(f"{name}.weight")] = inputs[0].double().square().sum(dim=(0, 1)).numpy()

        return add

    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linear]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    if model.config.tie_word_embeddings:
        found["token_embd.weight"] = found.pop("output.weight")
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sums_are_those_of_a_hook_in_transformers(tmp_path, family: str, backend: str) -> None:
    path, model = FAMILIES[family](tmp_path)
    with Engine.open(path, backend=backend, n_threads=2) as engine:
        ours = engine.input_squares(TOKENS)
    theirs = hooked(model, TOKENS)
    assert ours.keys() == theirs.keys()
    for name, sums in theirs.items():  # keys and values are rounded to float16: 2^-11 each
        np.testing.assert_allclose(ours[name], sums, rtol=5e-3, err_msg=name)


@pytest.mark.skipif("native" not in BACKENDS, reason="the compiled core is not built")
@pytest.mark.parametrize("n", [1, 2, 3, 41])  # one or two tokens are activated on every thread, more are shared out
def test_the_core_sums_what_the_reference_sums_at_any_number_of_tokens_and_threads(tmp_path, n: int) -> None:
    path, _ = tiny_models.tiny_llama(tmp_path, type=GGMLType.Q8_0)
    with Engine.open(path, backend="reference") as engine:
        truth = engine.input_squares(TOKENS[:n])
    sums = []
    for threads in (1, 2):
        with Engine.open(path, backend="native", n_threads=threads) as engine:
            sums.append(engine.input_squares(TOKENS[:n]))
    assert sums[0].keys() == truth.keys()
    for name in truth:
        np.testing.assert_array_equal(sums[0][name], sums[1][name], name)
        scale = truth[name].mean()  # int8 activations: see test_native.py
        np.testing.assert_allclose(sums[0][name] / scale, truth[name] / scale, atol=0.15, rtol=0.15, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_collecting_changes_no_result_and_ends_with_the_call(tmp_path, backend: str) -> None:
    path, _ = tiny_models.tiny_phi3(tmp_path)
    with Engine.open(path, backend=backend, n_threads=1) as engine, engine.session(64) as session:
        before = session.eval(TOKENS)
        first = engine.input_squares(TOKENS)
        session.truncate(0)
        np.testing.assert_array_equal(session.eval(TOKENS), before)
        second = engine.input_squares(TOKENS)  # begins at zero again
    for name, sums in first.items():
        np.testing.assert_array_equal(second[name], sums, name)


@pytest.mark.skipif("native" not in BACKENDS, reason="the compiled core is not built")
def test_the_core_says_when_there_is_nothing_to_read(tmp_path) -> None:
    path, _ = tiny_models.tiny_phi3(tmp_path)
    with Engine.open(path, backend="native", n_threads=1) as engine:
        model = engine._live()._model
        with pytest.raises(ValueError, match="no squares are being collected"):
            model.squares(0, 0)
        model.collect(True)
        with pytest.raises(ValueError, match="no such layer"):
            model.squares(2, 0)
