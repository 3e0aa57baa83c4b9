"""LongRoPE (arXiv 2402.13753) in the engine: the factor set follows from the sequence's length and from nothing else.

A sequence of at most the original context takes the short factors, a longer one the long factors for all its keys.
The independent witness is transformers on the same weights, given the whole text at once. Every claim is tested with
an original context of 64; the slow tests repeat them with Phi-3's 4096 and prompts up to 8192.

Bound against transformers. Both compute in float32; only the cache differs: keys and values are rounded to float16,
half an ulp at most, which is 2^-11 / sqrt(3) / 1.4 = 2e-4 of a value in rms. Scores, and with them attention's output
and the logits, inherit errors of that size a layer; BOUND allows five times it for two layers and sharp attention
(measured: 4.6e-4). The wrong factor set gives errors of the logits' own size, as asserted below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.config import PRESETS
from phial.engine import native_backend
from phial.engine import session as session_module
from phial.engine.backend import Step, Want
from phial.engine.engine import Engine
from phial.engine.sampling import SamplingParams
from phial.gguf.blocks import GGMLType

torch = pytest.importorskip("torch", reason="transformers is the witness")
tiny_models = pytest.importorskip("tests.engine.tiny_models", reason="torch and transformers write the tiny models")

SMALL, PHI3 = 64, 4096  # original contexts
BOUND = 1e-3  # rms difference over the logits' standard deviation
ALIKE = 1e-3  # largest difference of logits that were computed in other pieces
GREEDY = SamplingParams(temperature=0)
no_core = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
CASES = [
    pytest.param(("native", GGMLType.F32, SMALL), id="native-F32-64", marks=no_core),
    pytest.param(("native", GGMLType.F32, SMALL, 0.75), id="native-F32-64-partial", marks=no_core),  # phi-4-mini's kind
    pytest.param(("native", GGMLType.F16, SMALL), id="native-F16-64", marks=no_core),
    pytest.param(("reference", GGMLType.F32, SMALL), id="reference-F32-64"),
    pytest.param(("native", GGMLType.F32, PHI3), id="native-F32-4096", marks=[no_core, pytest.mark.slow]),
]


@dataclass(frozen=True)
class Case:
    """A two-layer random Phi-3 with LongRoPE, as a file and in transformers."""

    backend: str
    original: int
    path: Path
    model: Any

    def open(self, **options: Any) -> Engine:
        return Engine.open(self.path, backend=self.backend, **options)

    def text(self, n: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, self.model.config.vocab_size, n).tolist()

    def theirs(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        """Logits of the last rows from transformers, which sees all tokens at once."""
        with torch.inference_mode():
            out = self.model(torch.tensor(tokens)[None], logits_to_keep=rows, use_cache=False)
        return np.asarray(out.logits[0].numpy())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp("model"), *request.param)


def make(folder: Path, backend: str, kind: GGMLType, original: int, partial_rotary: float = 1.0) -> Case:
    shape = {"n_embd": 256, "n_ff": 512, "n_head": 4, "n_head_kv": 2}
    rope = {"long_rope": True, "context": 131072, "original_context": original, "partial_rotary": partial_rotary}
    path, model = tiny_models.tiny_phi3(folder, type=kind, **rope, **shape)
    model.set_attn_implementation("sdpa")  # never holds all scores at once
    return Case(backend, original, path, model)


@pytest.fixture
def engine(case: Case) -> Iterator[Engine]:
    """Without a prefix cache: every session computes its own keys."""
    with case.open(prefix_bytes=0) as engine:
        yield engine


def fresh(engine: Engine, tokens: Sequence[int], n_ctx: int | None = None, rows: int = 1) -> np.ndarray:
    """Logits of the last rows of a text evaluated at once in a session of its own, (rows, n_vocab)."""
    with engine.session(n_ctx or len(tokens)) as session:
        if rows == len(tokens):
            return session.eval(tokens, all_logits=True)
        if rows == 1:
            return session.eval(tokens)[None]
        session.eval(tokens[:-rows])
        return session.eval(tokens[-rows:], all_logits=True)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


def around(original: int) -> list[int]:
    return [50, original - 1, original, original + 1, 2 * original]


def test_logits_below_at_and_above_the_original_context_are_those_of_transformers(case: Case, engine: Engine) -> None:
    for n in around(case.original):
        tokens = case.text(n)
        expected = case.theirs(tokens, rows=32)
        assert expected.std() > 0.3  # else agreement would mean little
        assert relative(fresh(engine, tokens, rows=32), expected) < BOUND, n


def test_the_other_factor_set_gives_visibly_other_logits(case: Case, engine: Engine) -> None:
    """What the other tests would catch: one token more or less flips the set, and every row with it."""
    longer = case.text(case.original + 1)
    at_the_end = case.theirs(longer, rows=2)[0]  # position original - 1, computed with the long set
    assert relative(fresh(engine, longer[:-1])[0], at_the_end) > 0.1


def test_incremental_decode_equals_the_full_forward(case: Case, engine: Engine) -> None:
    """One token at a time across the boundary: the logits of a fresh session that sees all at once."""
    tokens, first = case.text(case.original + 4), case.original - 4
    session = engine.session(case.original + 64)
    session.eval(tokens[: first - 1])
    for n in range(first, case.original + 5):
        incremental = session.eval(tokens[n - 1 : n])
        np.testing.assert_allclose(incremental, fresh(engine, tokens[:n])[0], atol=ALIKE, rtol=0)


def test_greedy_generation_across_the_boundary_is_that_of_a_fresh_prefill(case: Case, engine: Engine) -> None:
    prompt = case.text(case.original - 6, seed=3)
    session = engine.session(case.original + 64)
    generated = list(session.generate(prompt, GREEDY, max_tokens=20))
    assert len(generated) == 20
    tokens = list(prompt)
    for token in generated:
        expected = case.theirs(tokens)[0]
        best, second = np.sort(expected)[[-1, -2]]
        assert best - second > 2 * ALIKE, "too close to call: choose another seed"
        assert token == expected.argmax() == fresh(engine, tokens)[0].argmax(), len(tokens)
        tokens.append(token)


@pytest.mark.parametrize("want", [Want.LAST, Want.ALL])
def test_a_short_row_beside_a_long_one_equals_itself_alone(case: Case, engine: Engine, want: Want) -> None:
    """One step over two sequences, short factors and long ones: bit for bit the rows of each alone."""
    texts = [case.text(20 if case.original < 100 else 100), case.text(case.original * 5 // 4, seed=1)]
    sessions = [engine.session(len(tokens)) for tokens in texts]
    steps = []
    for session, tokens in zip(sessions, texts, strict=True):
        table = session._table
        table.long = engine.config.uses_long(len(tokens))
        table.prepare(len(tokens))
        steps.append(Step(tokens, 0, table.long, table.pages))
    assert [step.long for step in steps] == [False, True]
    alone = [engine.forward([step], want) for step in steps]
    np.testing.assert_array_equal(engine.forward(steps, want), np.concatenate(alone))
    assert relative(alone[0][-1], case.theirs(texts[0])[0]) < BOUND
    assert relative(alone[1][-1], case.theirs(texts[1])[0]) < BOUND


def test_the_allocated_context_changes_nothing(case: Case, engine: Engine) -> None:
    """A prompt of 50 tokens and what follows it, in contexts below and far above the original one: the same bits."""
    prompt = case.text(50)
    contexts = [case.original, 4096, 131072]
    results = [fresh(engine, prompt, n_ctx=n, rows=50) for n in contexts]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    texts = [list(engine.session(n).generate(prompt, GREEDY, max_tokens=12)) for n in contexts]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("over", [0, 1, 40])
def test_chunking_changes_nothing(case: Case, engine: Engine, over: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a text is cut into calls, and a call into steps, its factor set is that of its whole length."""
    tokens = case.text(case.original + over)
    whole = fresh(engine, tokens)[0]
    for cuts in ([1], [case.original - 1], [case.original // 2, case.original - 3], [case.original - 20 + over]):
        session = engine.session(len(tokens))
        for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
            logits = session.eval(tokens[start:end])
        np.testing.assert_allclose(logits, whole, atol=ALIKE, rtol=0)
    monkeypatch.setattr(session_module, "BATCH_TOKENS", 48)
    np.testing.assert_allclose(fresh(engine, tokens)[0], whole, atol=ALIKE, rtol=0)


def test_going_back_below_the_boundary_returns_to_the_short_factors(case: Case, engine: Engine) -> None:
    tokens = case.text(case.original + 10)
    session = engine.session(2 * case.original)
    session.eval(tokens)
    session.truncate(case.original - 5)
    shorter = tokens[: case.original - 4]
    np.testing.assert_allclose(session.eval(shorter[-1:]), fresh(engine, shorter)[0], atol=ALIKE, rtol=0)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=no_core), "reference"])
def test_pages_kept_from_the_other_factor_set_are_never_reused(tmp_path: Path, backend: str) -> None:
    """The same 128 tokens begin texts of both sets; sessions of one fill the prefix cache before the other asks."""
    case = make(tmp_path, backend, GGMLType.F32, 160)  # room for two full pages of either set
    short, long = case.text(150), case.text(220)
    assert short[:128] == long[:128]
    for filler, text, reusable in ((long, short, 0), (short, long, 0), (short, short[:140], 128), (long, long, 192)):
        with case.open(prefix_bytes=0) as clean, case.open() as engine:
            expected = fresh(clean, text)[0]
            fresh(engine, filler)  # closes, and leaves its pages behind
            assert len(engine.pool.prefixes) >= 2
            session = engine.session(256)
            assert session.reuse_prefix(text) == reusable
            logits = session.eval(text[reusable:])
        np.testing.assert_allclose(logits, expected, atol=ALIKE, rtol=0)
        assert relative(logits, case.theirs(text)[0]) < BOUND


@pytest.mark.parametrize("backend", [pytest.param("native", marks=no_core), "reference"])
def test_published_factors_give_the_golden_frequencies(tmp_path: Path, backend: str) -> None:
    """Phi-3.5-mini's lists through a file: the values of the specification and of transformers."""
    preset = PRESETS["phi-3.5-mini"]
    assert preset.rope_short_factors and preset.rope_long_factors
    path, model = tiny_models.tiny_phi3(
        tmp_path,
        long_rope=True,
        factors=(preset.rope_short_factors, preset.rope_long_factors),
        context=131072,
        original_context=4096,
        n_embd=192,
        n_head=2,
        n_ff=192,
    )
    with Engine.open(path, backend=backend) as engine:
        config = engine.config
    golden = [0, 1, 12, 24, 47]
    short, long = config.inv_freq(long=False), config.inv_freq(long=True)
    np.testing.assert_allclose(short[golden], [1.0, 0.8092198, 0.0862069, 5.025126e-3, 4.265942e-5], rtol=1e-6)
    np.testing.assert_allclose(long[golden], [0.9259259, 0.7436074, 0.01298701, 1.986492e-4, 1.868488e-6], rtol=1e-6)
    assert config.rope_attn_factor == pytest.approx(1.1902380714, abs=1e-9)
    rotary = model.model.rotary_emb
    assert config.rope_attn_factor == pytest.approx(rotary.attention_scaling, abs=1e-9)
    for n, ours in ((4096, short), (4097, long)):
        rotary(torch.zeros(1), torch.arange(n)[None])
        np.testing.assert_allclose(ours, rotary.inv_freq.numpy(), rtol=3e-7)
