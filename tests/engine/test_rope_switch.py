"""rope_switch="rerotate": what turned keys are worth, and that nothing else ever sees them.

The books are tested over the toy backend, whose pages count how often they were turned; the numbers over small random
models. There keys of the first layer are as good as computed ones; deeper ones are not, which is the price of the
switch. Its size in a model is bench/rope_switch.py's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant, precondition
from tests.engine.test_session import SessionMachine, text
from tests.engine.toy_backend import ORIGINAL_CONTEXT, PAGE_TOKENS, logits_of, toy_engine

from phial.engine import native_backend
from phial.engine import session as session_module
from phial.engine.engine import Engine
from phial.engine.rope_switch import turns
from phial.engine.sampling import SamplingParams
from phial.engine.session import Session
from phial.errors import ArgumentError, PhialError

no_core = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
backends = pytest.mark.parametrize("backend", [pytest.param("native", marks=no_core), "reference"])
LONG = ORIGINAL_CONTEXT + 2
GREEDY = SamplingParams(temperature=0)


def turned(engine: Engine, pages: Any) -> int:
    """How often the most turned position of these toy pages was turned."""
    store: Any = engine.pool.store
    return max((int(store.pages[page][:, 2].max()) for page in pages), default=0)


def tokens_run(engine: Engine) -> int:
    backend: Any = engine._backend
    return int(backend.tokens_run)


# ---- the books, over the toy ----------------------------------------------------------------------------------------


class RerotatingMachine(SessionMachine):
    """Any calls in any order: one factor set a sequence, and no kept page was ever turned."""

    @initialize()
    def begin(self) -> None:
        session_module.BATCH_TOKENS = 6
        self.engine = toy_engine(prefix_pages=6, rope_switch="rerotate")
        self.backend: Any = self.engine._backend
        self.sessions = [self.engine.session(40) for _ in range(3)]
        self.tokens: list[list[int]] = [[], [], []]

    @precondition(lambda self: hasattr(self, "sessions"))
    @invariant()
    def kept_pages_are_exact_and_tables_know_whether_theirs_are(self) -> None:
        assert turned(self.engine, self.engine.pool.prefixes._pages.values()) == 0
        for session in self.sessions:
            table = session._table
            if table.exact:
                assert turned(self.engine, table.pages[: -(-table.n_tokens // PAGE_TOKENS)]) == 0


RerotatingMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
test_turned_pages_stay_with_their_sequence = RerotatingMachine.TestCase


def test_crossing_turns_what_is_cached_and_computes_only_what_is_new() -> None:
    for rope_switch, computed in (("rerotate", 3), ("reprefill", LONG)):
        engine = toy_engine(rope_switch=rope_switch)
        session = engine.session(64)
        session.eval(text(LONG - 3))
        before = tokens_run(engine)
        np.testing.assert_array_equal(session.eval(text(LONG)[-3:]), logits_of(text(LONG), True))
        assert tokens_run(engine) - before == computed
        assert turned(engine, session._table.pages) == (rope_switch == "rerotate")


def test_going_back_below_the_boundary_turns_back() -> None:
    engine = toy_engine(rope_switch="rerotate")
    session = engine.session(64)
    session.eval(text(LONG - 6))
    session.eval(text(LONG)[-6:])
    session.truncate(8)
    before = tokens_run(engine)
    np.testing.assert_array_equal(session.eval([5]), logits_of([*text(LONG)[:8], 5], False))
    assert tokens_run(engine) - before == 1 and turned(engine, session._table.pages) == 2
    session.truncate(0)
    session.eval(text(8))
    assert turned(engine, session._table.pages) == 0  # begun anew: exact again


def test_a_prompt_that_is_long_at_once_is_exact() -> None:
    engine = toy_engine(rope_switch="rerotate")
    with engine.session(64) as session:
        session.eval(text(LONG))
        assert session._table.exact
    assert engine.session(64).reuse_prefix(text(LONG)) == ORIGINAL_CONTEXT


def test_neighbours_of_a_crossing_sequence_keep_their_keys_and_find_the_exact_ones() -> None:
    engine = toy_engine(rope_switch="rerotate")
    shared = text(ORIGINAL_CONTEXT - 4)
    with engine.session(64) as first:
        first.eval(shared)
    crossing, neighbour = engine.session(64), engine.session(64)
    for session in (crossing, neighbour):
        session.eval(shared[session.reuse_prefix(shared) :])
    assert set(crossing._table.pages) & set(neighbour._table.pages)  # until one writes
    crossing.eval(text(10))
    assert turned(engine, crossing._table.pages) == 1 and turned(engine, neighbour._table.pages) == 0
    np.testing.assert_array_equal(neighbour.eval([3]), logits_of([*shared, 3], False))
    crossing.close()
    again = engine.session(64)
    assert again.reuse_prefix([*shared, 3]) == ORIGINAL_CONTEXT - 4
    assert again.reuse_prefix([*shared, *text(10), 1]) == ORIGINAL_CONTEXT - 4  # its own, turned
    with engine.session(64) as fresh:
        assert fresh.reuse_prefix([*shared, *text(10), 1]) == 0


def test_a_sequence_of_turned_keys_takes_no_kept_pages() -> None:
    """What it answers depends on its own past, not on what others happened to leave."""
    engine = toy_engine(rope_switch="rerotate")
    with engine.session(64) as other:
        other.eval(text(40))
    session = engine.session(64)
    session.eval(text(40)[: LONG - 6])
    assert session.reuse_prefix(text(40)) == LONG - 6
    assert engine.session(64).reuse_prefix(text(40)) == 36


def test_interrupted_half_way_the_keys_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy_engine(rope_switch="rerotate")
    store: Any = engine.pool.store
    session, rotate, calls = engine.session(64), store.rotate_keys, []

    def interrupted(page: int, cos: np.ndarray, sin: np.ndarray) -> None:
        calls.append(page)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rotate(page, cos, sin)

    session.eval(text(LONG - 3))
    monkeypatch.setattr(store, "rotate_keys", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.eval(text(LONG)[-3:])
    monkeypatch.undo()
    assert session.tokens == text(LONG - 3)
    np.testing.assert_array_equal(session.eval(text(LONG)[-3:]), logits_of(text(LONG), True))
    assert session._table.exact and turned(engine, session._table.pages) == 0


def test_a_saved_session_says_that_its_keys_were_turned() -> None:
    session = toy_engine(rope_switch="rerotate").session(64)
    session.eval(text(LONG - 3))
    session.eval(text(LONG)[-3:])
    data = session.save()
    for rope_switch, computed in (("rerotate", 1), ("reprefill", LONG + 1)):  # who asks for exact keys computes them
        engine = toy_engine(rope_switch=rope_switch)
        loaded = engine.session(64)
        loaded.load(data)
        assert loaded.tokens == text(LONG)
        np.testing.assert_array_equal(loaded.eval([1]), logits_of([*text(LONG), 1], True))
        assert tokens_run(engine) == computed
        assert loaded._table.exact == (rope_switch == "reprefill")
        loaded.close()
        assert turned(engine, engine.pool.prefixes._pages.values()) == 0


# ---- the numbers, over small models ---------------------------------------------------------------------------------


def test_turns_lead_from_one_set_to_the_other() -> None:
    config = toy_engine().config
    (cos, sin), (back_cos, back_sin) = turns(config, True, 8, 4), turns(config, False, 8, 4)
    expected = np.arange(8, 12)[:, None] * (config.inv_freq(True).astype(float) - config.inv_freq(False))
    np.testing.assert_allclose(cos + 1j * sin, np.exp(1j * expected), atol=1e-6)
    np.testing.assert_allclose((cos + 1j * sin) * (back_cos + 1j * back_sin), 1, atol=1e-6)


def open_tiny(
    folder: Path, backend: str, rope_switch: str, cache_type: str = "f16", **shape: Any
) -> tuple[Engine, Any]:
    pytest.importorskip("torch", reason="transformers writes the tiny models and is the witness")
    from tests.engine.tiny_models import tiny_phi3

    path, model = tiny_phi3(folder, long_rope=True, context=131072, partial_rotary=0.75, n_embd=256, **shape)
    engine = Engine.open(path, backend=backend, cache_type=cache_type, rope_switch=rope_switch, prefix_bytes=0)
    return engine, model


def across(session: Session, tokens: list[int], first: int) -> np.ndarray:
    session.eval(tokens[:first])
    return session.eval(tokens[first:])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


@backends
@pytest.mark.parametrize(("cache_type", "bound"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_in_one_layer_turned_keys_are_as_good_as_computed_ones(
    tmp_path: Path, backend: str, cache_type: str, bound: float
) -> None:
    """Keys and values of a first layer depend on the tokens alone: what is left is rounding. Above 64 and back."""
    import torch

    engine, model = open_tiny(tmp_path, backend, "rerotate", cache_type, n_layer=1)
    tokens = np.random.default_rng(0).integers(0, engine.config.n_vocab, 90).tolist()
    with engine, torch.inference_mode():
        session = engine.session(128)
        for n, logits in (
            (90, across(session, tokens, 60)),
            (51, (session.truncate(50), session.eval([tokens[50]]))[1]),
        ):
            assert not session._table.exact
            expected = model(torch.tensor(tokens[:n])[None]).logits[0, -1].numpy()
            assert relative(logits, expected) < bound, n
    with Engine.open(engine.path, backend=backend, prefix_bytes=0) as plain:  # the other set would have shown
        session = plain.session(128)
        session.eval(tokens[:60])
        session._table.long = True
        assert (
            relative(session.eval(tokens[60:]), model(torch.tensor(tokens)[None]).logits[0, -1].detach().numpy()) > 0.1
        )


@backends
def test_across_the_boundary_rerotating_stays_near_reprefill_which_stays_exact(tmp_path: Path, backend: str) -> None:
    """Two layers: the divergence is real, and a fraction of that of keys left in the other set."""
    divergences = []
    rng = np.random.default_rng(1)
    turning, _ = open_tiny(tmp_path, backend, "rerotate")
    with turning, Engine.open(turning.path, backend=backend, prefix_bytes=0) as exact:
        for _ in range(6):
            tokens = rng.integers(0, exact.config.n_vocab, 80).tolist()
            truth = exact.session(128).eval(tokens)
            np.testing.assert_array_equal(across(exact.session(128), tokens, 60), truth)
            left = exact.session(128)
            left.eval(tokens[:60])
            left._table.long = True  # keys of the short set, queries of the long one
            divergences.append([kl(truth, across(turning.session(128), tokens, 60)), kl(truth, left.eval(tokens[60:]))])
    rerotated, mixed = np.mean(divergences, axis=0)
    assert 0 < rerotated < mixed / 2


@no_core
def test_speculation_changes_nothing_across_a_boundary_where_keys_turn(tmp_path: Path) -> None:
    """Drafts end at the boundary, so the same keys turn at the same moment; the ids are those without drafts."""
    engine, _ = open_tiny(tmp_path, "native", "rerotate")
    prompt = np.random.default_rng(2).integers(0, engine.config.n_vocab, 13).tolist() * 4
    with engine:
        texts = []
        for speculate in ("off", 3, "auto"):
            session = engine.session(128)
            texts.append(list(session.generate(prompt, GREEDY, max_tokens=40, speculate=speculate)))
            assert not session._table.exact
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 40


def kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    p, q = (x.astype(float) - np.logaddexp.reduce(x.astype(float)) for x in (p_logits, q_logits))
    return float((np.exp(p) * (p - q)).sum())


def test_an_unknown_way_to_switch_is_refused_and_one_without_effect_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny_models import write_tiny

    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    with pytest.raises(ArgumentError, match="rope_switch is 'rotate'\nhint: use one of: reprefill, rerotate"):
        Engine.open(path, rope_switch="rotate")
    capfd.readouterr()
    Engine.open(path, rope_switch="rerotate").close()
    assert "rope_switch='rerotate' has no effect" in capfd.readouterr().err


def test_rotation_without_memory_is_an_error_and_the_session_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy_engine(rope_switch="rerotate")
    store: Any = engine.pool.store
    session = engine.session(64)
    session.eval(text(LONG - 3))

    def exhausted() -> int:
        raise MemoryError

    monkeypatch.setattr(store, "new_page", exhausted)  # kept pages are shared: turning needs copies
    with pytest.raises(PhialError, match="no memory for cache page"):
        session.eval(text(LONG)[-3:])
    monkeypatch.undo()
    np.testing.assert_array_equal(session.eval(text(LONG)[-3:]), logits_of(text(LONG), True))
