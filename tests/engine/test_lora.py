"""LoRA adapters at run time against the same adapters merged into the weights, in every architecture and backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.engine import native_backend
from phial.engine import session as session_module
from phial.engine.adapters import LoadedAdapter
from phial.engine.backend import Step, Want
from phial.engine.engine import Engine
from phial.engine.reference import ReferenceCache, ReferenceModel
from phial.engine.sampling import SamplingParams
from phial.errors import ArgumentError, PhialError
from phial.gguf.adapter import read_adapter
from phial.gguf.blocks import GGMLType
from phial.gguf.container import read_gguf

torch = pytest.importorskip("torch", reason="torch and transformers write the tiny models")
from tests.engine.tiny_models import Tiny, tiny_llama, tiny_phi3, tiny_qwen2  # noqa: E402
from tests.lora_adapters import (  # noqa: E402
    RandomAdapter,
    merge_into,
    merged_file,
    random_adapter,
    write_adapter_gguf,
    write_peft,
)

FAMILIES: dict[str, Callable[..., Tiny]] = {
    "phi3 longrope window": lambda folder, **kw: tiny_phi3(folder, long_rope=True, window=23, **kw),
    "phi4 partial rotary tied": lambda folder, **kw: tiny_phi3(
        folder, partial_rotary=0.75, long_rope=True, tie=True, **kw
    ),
    "llama": tiny_llama,
    "llama wide heads tied": lambda folder, **kw: tiny_llama(folder, head_dim=32, tie=True, **kw),
    "qwen2": tiny_qwen2,
}
needs_native = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
GREEDY = SamplingParams(temperature=0)


Scaled = Sequence[tuple[int, float]]  # indices of a case's adapters with their scales


@dataclass
class Case:
    """A model, adapters of ranks 4 (everything, the output matrix too), 20 (attention) and 1 (feed-forward)."""

    base: Path
    model: Any
    adapters: list[RandomAdapter]
    folders: list[Path]


def make(folder: Path, family: str = "llama", **options: Any) -> Case:
    base, model = FAMILIES[family](folder, **options)
    tied = model.config.tie_word_embeddings
    adapters = [
        random_adapter(model, 4, 1, lambda name: not (tied and name == "lm_head")),
        random_adapter(model, 20, 2, lambda name: "attn" in name),
        random_adapter(model, 1, 3, lambda name: "mlp" in name),
    ]
    folders = [write_peft(folder / f"adapter{i}", adapter) for i, adapter in enumerate(adapters)]
    return Case(base, model, adapters, folders)


def tokens_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 400, n).tolist()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Rms difference over the spread of b."""
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp("case"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LongRoPE beyond 64 tokens, window of 23, fused matrices, GQA."""
    return make(tmp_path_factory.mktemp("one"), "phi3 longrope window")


def open_with(case: Case, **options: Any) -> tuple[Engine, list[LoadedAdapter]]:
    engine = Engine.open(case.base, **options)
    return engine, [engine.load_adapter(folder) for folder in case.folders]


def choose(loaded: list[LoadedAdapter], scaled: Scaled) -> list[tuple[LoadedAdapter, float]]:
    return [(loaded[i], scale) for i, scale in scaled]


def logits(case: Case, scaled: Scaled, tokens: list[int], **options: Any) -> np.ndarray:
    """Logits of all tokens in a fresh engine and session."""
    engine, loaded = open_with(case, **options)
    with engine:
        return engine.session(256, choose(loaded, scaled)).eval(tokens, all_logits=True)


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_the_reference_equals_transformers_with_merged_weights(case: Case, form: str, tmp_path: Path) -> None:
    import copy

    adapter, tokens = case.adapters[0], np.array(tokens_of(90))
    merged = copy.deepcopy(case.model)
    merge_into(merged, adapter, 0.5)
    with torch.no_grad():
        plain, expected = (model(torch.from_numpy(tokens)[None]).logits[0].numpy() for model in (case.model, merged))
    assert relative(expected, plain) > 0.3  # else agreement would mean little
    path = case.folders[0] if form == "peft" else write_adapter_gguf(tmp_path / "adapter.gguf", adapter)
    with read_gguf(case.base) as file:
        model = ReferenceModel.from_gguf(file)
        adapted = model.with_adapters([(read_adapter(path, model.config), 0.5)])
        cache, long = ReferenceCache(model.config), model.config.uses_long(len(tokens))
        parts = [adapted.forward(part, cache, long, all_logits=True) for part in (tokens[:40], tokens[40:89])]
        last = adapted.forward(tokens[89:], cache, long)
    np.testing.assert_allclose(np.concatenate([*parts, last[None]]), expected, atol=1e-4, rtol=0)


EVERYTHING: Scaled = [(0, 1.0)]
SEVERAL: Scaled = [(0, 0.3), (1, 0.5), (2, -1.5)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scaled", [EVERYTHING, SEVERAL], ids=["one", "several"])
def test_adapters_equal_a_file_with_merged_weights(case: Case, backend: str, scaled: Scaled, tmp_path: Path) -> None:
    """Prefill, and then token by token. Both sides round keys to f16, so a few land on the neighbouring value."""
    merged = merged_file(case.base, tmp_path / "merged.gguf", [(case.adapters[i], scale) for i, scale in scaled])
    tokens, more = tokens_of(90), tokens_of(6, seed=5)
    engine, loaded = open_with(case, backend=backend)
    with engine, Engine.open(merged, backend=backend) as other:
        ours, theirs = engine.session(256, choose(loaded, scaled)), other.session(256)
        results = [(s.eval(tokens, all_logits=True), np.stack([s.eval([t]) for t in more])) for s in (ours, theirs)]
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 3e-4
        assert np.median(np.abs(a - b)) < 1e-4


@needs_native
@pytest.mark.parametrize("n", [1, 3, 70])
@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q6_K], ids=lambda kind: kind.name)
def test_the_core_agrees_with_the_reference_over_quantised_weights(tmp_path: Path, kind: GGMLType, n: int) -> None:
    from tests.engine.test_native import NOISE

    case = make(tmp_path, "llama", type=kind, n_embd=256, n_ff=256)
    ours, theirs = (logits(case, SEVERAL, tokens_of(n), backend=backend) for backend in ("native", "reference"))
    assert relative(ours, theirs) < NOISE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_of_zero_and_an_adapter_nobody_uses_change_no_bit(one: Case, backend: str) -> None:
    tokens = tokens_of(70)
    with Engine.open(one.base, backend=backend) as engine:
        base = engine.session(128).eval(tokens, all_logits=True)
    for scaled in ([], [(0, 0.0)], [(0, 0.0), (1, 0)]):
        np.testing.assert_array_equal(logits(one, scaled, tokens, backend=backend), base)


@needs_native
def test_threads_and_the_order_of_adapters_change_no_bit_kernel_sets_only_the_last(one: Case) -> None:
    from phial import _native

    tokens, before = tokens_of(80), _native.current_kernels()
    expected = logits(one, SEVERAL, tokens, n_threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(logits(one, SEVERAL[::-1], tokens, n_threads=threads), expected)
    try:
        for name in _native.kernel_sets():
            assert relative(logits(one, SEVERAL, tokens, kernels=name), expected) < 2e-4
    finally:
        _native.use_kernels(before)


@needs_native
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_results_do_not_depend_on_how_a_prompt_is_cut(one: Case, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(70)
    whole = logits(one, SEVERAL, tokens)
    monkeypatch.setattr(session_module, "BATCH_TOKENS", batch)
    np.testing.assert_array_equal(logits(one, SEVERAL, tokens), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("want", [Want.LAST, Want.ALL, Want.HIDDEN])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 1, 9, 2)], ids=str)
def test_sequences_with_different_adapters_in_one_step_equal_each_alone(
    one: Case, backend: str, want: Want, lengths: tuple[int, ...]
) -> None:
    mixes: list[Scaled] = [SEVERAL, [], [(1, 2.0)], [(0, -1.0), (1, 0.1)]]
    engine, loaded = open_with(one, backend=backend, prefix_bytes=0)
    with engine:
        steps, alone = [], []
        sessions = [engine.session(128, choose(loaded, mixes[i])) for i in range(len(lengths))]
        for i, (session, n) in enumerate(zip(sessions, lengths, strict=True)):
            session.eval(tokens_of(20 + 30 * i, seed=i))
            table = session._table
            table.prepare(n)
            steps.append(Step(tokens_of(n, seed=9), session.n_past, table.long, table.pages, table.adapters.parts))
            alone.append(engine.forward([steps[-1]], want))
        np.testing.assert_array_equal(engine.forward(steps, want), np.concatenate(alone))
        assert relative(alone[0][-1:], alone[1][-1:]) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_of_a_tied_output_matrix_leaves_the_embedding_alone(tmp_path: Path, backend: str) -> None:
    base, model = tiny_llama(tmp_path, tie=True)
    adapter, tokens = random_adapter(model, 4, 1, lambda name: name == "lm_head"), tokens_of(5)
    folder = write_peft(tmp_path / "adapter", adapter)
    with Engine.open(base, backend=backend) as engine:
        ours = engine.session(64, [(engine.load_adapter(folder), 1.0)])
        hidden = ours.hidden(tokens)
        expected = hidden @ (model.lm_head.weight.detach().numpy() + adapter.delta("lm_head")).T
        np.testing.assert_array_equal(hidden, engine.session(64).hidden(tokens))
        np.testing.assert_allclose(ours.eval(tokens, all_logits=True), expected, atol=1e-4)


def test_prefixes_are_shared_between_equal_mixes_only(one: Case) -> None:
    tokens, (engine, loaded) = tokens_of(150), open_with(one)
    mixes = [[], [(0, 1.0)], [(0, 0.5)], [(1, 1.0)], [(0, 1.0), (1, 1.0)]]
    with engine:
        first = []
        for scaled in mixes:
            with engine.session(256, choose(loaded, scaled)) as session:
                assert session.reuse_prefix(tokens) == 0
                first.append(session.eval(tokens[session.n_past :]))
        for scaled, expected in zip(mixes, first, strict=True):
            with engine.session(256, choose(loaded, scaled)[::-1]) as session:
                assert session.reuse_prefix(tokens) == 128
                np.testing.assert_array_equal(session.eval(tokens[128:]), expected)
        assert engine.session(256, [(loaded[0], 0.0)]).reuse_prefix(tokens) == 128  # as good as none


def test_other_adapters_midway_count_from_the_first_token(one: Case) -> None:
    tokens, (engine, loaded) = tokens_of(100), open_with(one)
    with engine:
        session, fresh = engine.session(256), engine.session(256, [(loaded[1], 0.5)])
        before = session.eval(tokens)
        session.set_adapters([(loaded[1], 0.5)])
        assert session.tokens == tokens and str(session.adapters) == "0.5 adapter1"
        np.testing.assert_array_equal(session.eval([7]), fresh.eval([*tokens, 7]))
        np.testing.assert_array_equal(session.hidden(tokens[:9]), fresh.hidden(tokens[:9]))
        session.set_adapters(())
        session.truncate(99)
        np.testing.assert_array_equal(session.eval(tokens[99:]), before)
        text = list(session.generate(tokens, GREEDY, max_tokens=5))
        session.set_adapters([(loaded[0], 1.0)])
        assert list(session.generate(tokens, GREEDY, max_tokens=5)) != text


def test_a_saved_session_goes_on_with_the_same_adapters_only(one: Case) -> None:
    engine, loaded = open_with(one)
    with engine:
        session = engine.session(256, choose(loaded, SEVERAL))
        session.eval(tokens_of(90))
        data, expected = session.save(), session.eval([5])
    with Engine.open(one.base) as engine:
        loaded = [engine.load_adapter(folder) for folder in reversed(one.folders)][::-1]  # other numbers in the engine
        session = engine.session(256, choose(loaded, SEVERAL))
        session.load(data)
        np.testing.assert_array_equal(session.eval([5]), expected)
        for scaled in ([], EVERYTHING, [*SEVERAL[:2], (2, -1.25)]):
            with pytest.raises(PhialError, match="adapters"):
                engine.session(256, choose(loaded, scaled)).load(data)


def test_what_a_session_may_not_ask_for(one: Case) -> None:
    engine, loaded = open_with(one)
    with engine:
        assert engine.load_adapter(one.folders[1]) is loaded[1] and engine.adapters == loaded
        stranger = LoadedAdapter("stranger", "0" * 32, 0)
        for wanted, named in [
            ([(stranger, 1.0)], "stranger"),
            ([("adapter0", 1.0)], "adapter0"),
            ([(loaded[0], 1.0), (loaded[0], 0.5)], "twice"),
            ([(loaded[0], float("nan"))], "nan"),
            ([(loaded[0], 1e39)], "1e"),
            ([(loaded[0], "1")], "'1'"),
        ]:
            with pytest.raises(ArgumentError, match=named):
                engine.session(64, wanted)  # type: ignore[arg-type]
        with pytest.raises(PhialError, match="nowhere"):
            engine.load_adapter(one.base.parent / "nowhere")
