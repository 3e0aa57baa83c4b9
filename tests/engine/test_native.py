"""The compiled core against the numpy reference, and against itself: threads, kernel sets, chunks, prefixes, batches.

Bound for quantised weights. The core rounds activations to int8 in blocks of 32 with the step d = max|x| / 127 and then
multiplies exactly in integers, so against exact arithmetic every activation has an error uniform in ±d/2, rms
d / sqrt(12). For 32 roughly normal values max|x| is 2.4 times their rms, so each product's relative rms error is
e = 2.4 / (127 * sqrt(12)) = 0.55 %. A model of L layers rounds 4L + 1 times; the errors are independent and add as
squares: e * sqrt(4L + 1), 1.6 % of the logits' spread for two layers. NOISE allows twice that, for heavier tails after
SwiGLU and the gain of attention; a wrong scale, sign or index gives 10 % and more. Float weights know only the rounding
of float32. The same rounding done by numpy (RoundedReference) leaves only float32 order for a single token.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.engine import session as session_module
from phial.engine.backend import Step, Want
from phial.engine.engine import Engine
from phial.engine.reference import ReferenceModel
from phial.engine.sampling import SamplingParams
from phial.gguf.blocks import GGMLType

_native = pytest.importorskip("phial._native", reason="the compiled core is not built", exc_type=ImportError)
tiny_models = pytest.importorskip("tests.engine.tiny_models", reason="torch and transformers write the tiny models")

FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
NOISE = 2 * 2.4 / (127 * math.sqrt(12)) * math.sqrt(4 * 2 + 1)
FAMILIES = {
    "phi3": lambda folder, **kw: tiny_models.tiny_phi3(folder, **kw),
    "phi3 longrope window": lambda folder, **kw: tiny_models.tiny_phi3(folder, long_rope=True, window=23, **kw),
    "phi4 partial rotary tied": lambda folder, **kw: tiny_models.tiny_phi3(
        folder, partial_rotary=0.75, long_rope=True, tie=True, **kw
    ),
    "llama": lambda folder, **kw: tiny_models.tiny_llama(folder, **kw),
    "qwen2 tied": lambda folder, **kw: tiny_models.tiny_qwen2(folder, tie=True, **kw),
}
EVERY_TYPE = [(family, kind) for family in ("phi3 longrope window", "llama") for kind in GGMLType]
FEW_TYPES = [
    (family, kind)
    for family in ("phi3", "phi4 partial rotary tied", "qwen2 tied")
    for kind in (GGMLType.F32, GGMLType.Q4_0, GGMLType.Q6_K)
]
GREEDY = SamplingParams(temperature=0)


def ids(case: tuple[str, GGMLType]) -> str:
    return f"{case[0]} {case[1].name}"


def make(folder: Path, family: str = "phi3", kind: GGMLType = GGMLType.Q4_0, **shape: Any) -> Path:
    return FAMILIES[family](folder, type=kind, n_embd=256, n_ff=512, **shape)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LongRoPE beyond 64 tokens, window of 23, Q4_0."""
    return make(tmp_path_factory.mktemp("model"), "phi3 longrope window")


@pytest.fixture(autouse=True)
def same_kernels_afterwards() -> Iterator[None]:
    before = _native.current_kernels()
    yield
    _native.use_kernels(before)


def tokens_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 400, n).tolist()


def logits(path: Path, tokens: list[int], **options: Any) -> np.ndarray:
    """Logits of all tokens in a fresh engine and session."""
    with Engine.open(path, **options) as engine:
        return engine.session(256).eval(tokens, all_logits=True)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Rms difference over the spread of b."""
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


@pytest.mark.parametrize("case", EVERY_TYPE + FEW_TYPES, ids=ids)
def test_logits_agree_with_the_reference_within_the_derived_bound(tmp_path: Path, case: tuple[str, GGMLType]) -> None:
    path, kind = make(tmp_path, *case), case[1]
    tokens = tokens_of(90)  # past the original context of 64 where there are two factor sets
    ours, theirs = logits(path, tokens), logits(path, tokens, backend="reference")
    limit = 2e-4 if kind in FLOATS else NOISE
    assert relative(ours, theirs) < limit
    assert np.abs(ours - theirs).max() < 6 * limit * theirs.std()


class RoundedReference(ReferenceModel):
    """The reference with activations rounded as the core rounds them."""

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        blocks = x.reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        rounded = np.rint(blocks / np.where(step > 0, step, 1)) * step
        return super()._linear(rounded.astype(np.float32).reshape(x.shape), name)


@pytest.mark.parametrize("kind", [kind for kind in GGMLType if kind not in FLOATS], ids=lambda kind: kind.name)
def test_with_equal_rounding_single_tokens_agree_to_float_precision(tmp_path: Path, kind: GGMLType) -> None:
    """The median of many: where float order tips one activation to the next integer, that one differs by a step."""
    path, errors = make(tmp_path, "qwen2 tied", kind), []
    with Engine.open(path) as engine, Engine.open(path, backend="reference") as reference:
        reference._backend._model.__class__ = RoundedReference  # type: ignore[union-attr]
        for token in tokens_of(25, seed=3):
            ours, theirs = (e.session(8).eval([token]) for e in (engine, reference))
            errors.append(np.abs(ours - theirs).max() / theirs.std())
    assert np.median(errors) < 2e-4


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q4_0, GGMLType.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_one_and_two_threads_give_the_same_bits(tmp_path: Path, kind: GGMLType, cache_type: str) -> None:
    path, tokens = make(tmp_path, "phi3 longrope window", kind), tokens_of(100)
    one = logits(path, tokens, n_threads=1, cache_type=cache_type)
    for threads in (2, 3):
        np.testing.assert_array_equal(logits(path, tokens, n_threads=threads, cache_type=cache_type), one)


def text(path: Path, n: int = 30, **options: Any) -> list[int]:
    with Engine.open(path, **options) as engine:
        return list(engine.session(256).generate(tokens_of(50), GREEDY, max_tokens=n))


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_the_same_seed_gives_the_same_text_at_any_thread_count(model: Path, cache_type: str) -> None:
    params = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=4)
    texts = []
    for threads, batch in ((1, 1), (2, 1), (1, 2), (3, 2)):
        with Engine.open(model, n_threads=threads, n_threads_batch=batch, cache_type=cache_type) as engine:
            texts.append(list(engine.session(256).generate(tokens_of(50), params, max_tokens=30)))
    assert texts[0] == texts[1] == texts[2] == texts[3]


def test_every_kernel_set_writes_the_same_greedy_text(model: Path) -> None:
    texts = {name: text(model, kernels=name) for name in _native.kernel_sets()}
    assert len({tuple(written) for written in texts.values()}) == 1, texts


def test_the_environment_chooses_the_kernel_set_and_an_unknown_one_lists_the_usable(model: Path) -> None:
    program = f"from phial import Engine; print(Engine.open({str(model)!r}).kernel_set)"
    for name in ("scalar", _native.kernel_sets()[-1]):
        done = run(program, PHIAL_KERNELS=name)
        assert done.stdout.strip() == name, done.stderr
    done = run(program, PHIAL_KERNELS="abacus")
    assert done.returncode == 1 and "abacus" in done.stderr and "scalar" in done.stderr


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, text=True, capture_output=True, timeout=120
    )


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("batch", [1, 2, 7, 64, 512])
def test_results_do_not_depend_on_how_a_prompt_is_cut_into_steps(
    model: Path, cache_type: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(100)
    whole = logits(model, tokens, cache_type=cache_type)
    monkeypatch.setattr(session_module, "BATCH_TOKENS", batch)
    np.testing.assert_array_equal(logits(model, tokens, cache_type=cache_type), whole)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("length", [63, 64, 65])
def test_token_by_token_equals_one_prefill_around_the_original_context(
    model: Path, length: int, cache_type: str
) -> None:
    tokens = tokens_of(length)
    with Engine.open(model, cache_type=cache_type) as engine:
        whole, session = engine.session(128).eval(tokens), engine.session(128)
        for token in tokens:
            last = session.eval([token])
        np.testing.assert_array_equal(last, whole)


def test_greedy_text_across_the_original_context_equals_a_fresh_prefill_at_each_step(model: Path) -> None:
    with Engine.open(model, prefix_bytes=0) as engine:
        tokens = tokens_of(58)
        written = list(engine.session(128).generate(tokens, GREEDY, max_tokens=20))
        for token in written:
            with engine.session(128) as fresh:
                assert int(fresh.eval(tokens).argmax()) == token
            tokens.append(token)


def test_the_size_of_the_context_changes_nothing(model: Path) -> None:
    with Engine.open(model) as engine:
        np.testing.assert_array_equal(engine.session(60).eval(tokens_of(50)), engine.session(256).eval(tokens_of(50)))


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_a_reused_prefix_gives_the_same_bits(model: Path, cache_type: str) -> None:
    shared, ends = tokens_of(150), [tokens_of(n, seed=n) for n in (5, 40)]
    with Engine.open(model, cache_type=cache_type) as engine:
        with engine.session(256) as first:
            first.eval(shared + ends[0])
        for end in ends:
            fresh, again = engine.session(256), engine.session(256)
            assert again.reuse_prefix(shared + end) >= 128  # two pages of 64
            np.testing.assert_array_equal(again.eval((shared + end)[again.n_past :]), fresh.eval(shared + end))


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_writing_after_a_shared_prefix_leaves_the_other_session_alone(model: Path, cache_type: str) -> None:
    tokens = tokens_of(130)
    with Engine.open(model, cache_type=cache_type) as engine:
        first = engine.session(256)
        first.eval(tokens)
        first.truncate(20)
        first.eval(tokens[20:130])
        second = engine.session(256)
        second.reuse_prefix(tokens)
        second.truncate(30)
        second.eval(tokens_of(50, seed=9))
        with engine.session(256) as fresh:
            np.testing.assert_array_equal(first.eval([7]), fresh.eval([*tokens, 7]))


@pytest.mark.parametrize("cache_type", ["bf16", "q8_0"])
def test_a_smaller_or_coarser_cache_is_close_to_f16_and_not_the_same(model: Path, cache_type: str) -> None:
    tokens = tokens_of(90)
    assert 0 < relative(logits(model, tokens, cache_type=cache_type), logits(model, tokens)) < NOISE


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_the_cache_type_means_the_same_in_the_reference(tmp_path: Path, cache_type: str) -> None:
    path, tokens = make(tmp_path, "llama", GGMLType.F32), tokens_of(90)
    ours = logits(path, tokens, cache_type=cache_type)
    limit = NOISE if cache_type == "q8_0" else 2e-4  # the core rounds queries to int8 too where keys are
    assert relative(ours, logits(path, tokens, cache_type=cache_type, backend="reference")) < limit


@pytest.mark.parametrize("want", [Want.LAST, Want.ALL, Want.HIDDEN])
def test_two_sequences_in_one_step_equal_each_alone(model: Path, want: Want) -> None:
    """Different lengths, different factor sets: row by row as alone (LongRoPE is decided per sequence)."""
    with Engine.open(model, prefix_bytes=0) as engine:
        sessions = [engine.session(128) for _ in range(2)]
        past, new = [tokens_of(20), tokens_of(80, seed=1)], [tokens_of(3, seed=2), tokens_of(5, seed=3)]
        steps, alone = [], []
        for session, before, after in zip(sessions, past, new, strict=True):
            session.eval(before)
            table = session._table
            table.prepare(len(after))
            steps.append(Step(after, len(before), table.long, table.pages))
            alone.append(engine.forward([steps[-1]], want))
        np.testing.assert_array_equal(engine.forward(steps, want), np.concatenate(alone))


def test_hidden_states_times_the_output_matrix_are_the_logits(tmp_path: Path) -> None:
    path = make(tmp_path, "phi3", GGMLType.F32)
    with Engine.open(path) as engine, Engine.open(path, backend="reference") as reference:
        session, tokens = engine.session(64), tokens_of(20)
        output = reference._backend._model.weights["output.weight"]  # type: ignore[union-attr]
        hidden = session.hidden(tokens)
        assert hidden.shape == (20, 256) and session.n_past == 0
        np.testing.assert_allclose(hidden @ output.T, session.eval(tokens, all_logits=True), atol=1e-4)


def test_a_saved_session_goes_on_with_equal_bits_in_another_engine(model: Path) -> None:
    with Engine.open(model) as engine:
        session = engine.session(256)
        session.eval(tokens_of(90))
        data = session.save()
        expected = session.eval([5])
    with Engine.open(model) as engine:
        session = engine.session(256)
        session.load(data)
        np.testing.assert_array_equal(session.eval([5]), expected)


INTERRUPTED = """
    import os, signal, sys, threading, time
    from phial import Engine
    from phial.engine import session as s

    def interrupt():
        print(time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    s.BATCH_TOKENS = 1024  # a step takes seconds: the core itself must hear the signal
    engine = Engine.open(sys.argv[1], n_threads=2)
    session = engine.session(1 << 14)
    first = session.eval([1, 2, 3])
    try:
        threading.Timer(0.3, interrupt).start()  # from within: another process may get no time before the end
        session.eval([5] * 12000)
    except KeyboardInterrupt:
        print(time.time(), session.n_past, flush=True)
    session.truncate(2)
    print((session.eval([3]) == first).all())
"""


def test_ctrl_c_stops_a_long_prefill_at_once_and_leaves_the_session_usable(tmp_path: Path) -> None:
    path = make(tmp_path, "llama", context=1 << 14, n_layer=12)
    program = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(path)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    sent, heard, same = done.stdout.splitlines()
    heard, n_past = heard.split()
    assert float(heard) - float(sent) < 2.0
    assert (n_past, same) == ("3", "True")
