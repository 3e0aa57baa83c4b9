"""Sessions over a toy model whose logits depend on everything the pages hold (toy_backend.py)."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.engine.toy_backend import N_EMBD, N_VOCAB, ORIGINAL_CONTEXT, logits_of, toy_engine

from phial.engine import session as session_module
from phial.engine.sampling import SamplingParams
from phial.engine.session import Session
from phial.errors import ArgumentError, ContextLimitError, FormatError, PhialError

GREEDY = SamplingParams(temperature=0)


def expected(tokens: list[int]) -> np.ndarray:
    return logits_of(tokens, len(tokens) > ORIGINAL_CONTEXT)


def text(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "BATCH_TOKENS", 6)


STEP_TOKENS = session_module.BATCH_TOKENS


class SessionMachine(RuleBasedStateMachine):
    """Three sessions, any calls in any order, some interrupted: logits always those of a fresh run of the tokens."""

    @initialize()
    def begin(self) -> None:
        session_module.BATCH_TOKENS = 6
        self.engine = toy_engine(prefix_pages=6)
        self.backend: Any = self.engine._backend
        self.sessions = [self.engine.session(40) for _ in range(3)]
        self.tokens: list[list[int]] = [[], [], []]

    def teardown(self) -> None:
        session_module.BATCH_TOKENS = STEP_TOKENS

    which = st.integers(0, 2)
    ids = st.lists(st.integers(0, 2), min_size=1, max_size=20)

    @rule(which=which, new=ids | ids.map(lambda ids: ids[:1]), everything=st.booleans(), drafts=ids | st.just([]))
    def evaluate(self, which: int, new: list[int], everything: bool, drafts: list[int]) -> None:
        session, tokens = self.sessions[which], self.tokens[which]
        if len(tokens) + len(new) > 40:
            with pytest.raises(ContextLimitError):
                session.eval(new)
            return
        logits = session.eval(new, all_logits=everything, drafts=drafts)
        tokens += new
        long = len(tokens) > ORIGINAL_CONTEXT
        rows = [logits_of(tokens[: len(tokens) - len(new) + i + 1], long) for i in range(len(new))]
        np.testing.assert_array_equal(logits, rows if everything else rows[-1])

    @rule(which=which, new=ids, steps=st.integers(0, 3))
    def be_interrupted(self, which: int, new: list[int], steps: int) -> None:
        session, tokens = self.sessions[which], self.tokens[which]
        if len(tokens) + len(new) > 40:
            return
        self.backend.fail_after = steps
        try:
            session.eval(new)
            tokens += new
        except KeyboardInterrupt:
            pass
        self.backend.fail_after = None

    @rule(which=which, part=st.floats(0, 1))
    def truncate(self, which: int, part: float) -> None:
        n = round(part * len(self.tokens[which]))
        self.sessions[which].truncate(n)
        del self.tokens[which][n:]

    @rule(which=which, other=which, more=ids)
    def reuse(self, which: int, other: int, more: list[int]) -> None:
        wanted = [*self.tokens[other], *more][:40]
        n = self.sessions[which].reuse_prefix(wanted)
        assert 0 <= n < len(wanted)
        self.tokens[which] = wanted[:n]
        np.testing.assert_array_equal(self.sessions[which].eval(wanted[n:]), expected(wanted))
        self.tokens[which] = wanted

    @rule(which=which, kind=st.sampled_from(["close", "drop", "save"]))
    def renew(self, which: int, kind: str) -> None:
        data = self.sessions[which].save()
        if kind == "drop":
            del self.sessions[which]
            gc.collect()
            self.sessions.insert(which, self.engine.session(40))
        elif kind == "close":
            self.sessions[which].close()
            self.sessions[which] = self.engine.session(40)
        if kind == "save":
            self.sessions[which].load(data)
        else:
            self.tokens[which] = []

    @rule(which=which, ids=ids)
    def embed(self, which: int, ids: list[int]) -> None:
        hidden = self.sessions[which].hidden(ids)
        np.testing.assert_array_equal(hidden, [logits_of(ids[: i + 1], False, N_EMBD) for i in range(len(ids))])

    @precondition(lambda self: hasattr(self, "sessions"))
    @invariant()
    def tokens_are_what_was_evaluated_and_pages_add_up(self) -> None:
        held = 0
        for session, tokens in zip(self.sessions, self.tokens, strict=True):
            assert session.tokens == tokens and session.n_past == len(tokens)
            held += len(session._table.pages)
        assert self.engine.pool.n_pages <= held + 6
        assert self.engine.pool.promised == 3 * 10


SessionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_calls_in_any_order_give_the_logits_of_a_fresh_run = SessionMachine.TestCase


@pytest.mark.parametrize("cuts", [[30], [1] * 30, [24, 6], [25, 5], [7, 11, 12]])
def test_results_do_not_depend_on_how_a_text_is_cut_into_calls(cuts: list[int]) -> None:
    tokens, session = text(30), toy_engine().session(64)
    at = 0
    for n in cuts:
        logits = session.eval(tokens[at : at + n])
        at += n
        np.testing.assert_array_equal(logits, expected(tokens[:at]))


def test_results_do_not_depend_on_n_ctx() -> None:
    tokens = text(20)
    for n_ctx in (20, 100, 4096):
        np.testing.assert_array_equal(toy_engine().session(n_ctx).eval(tokens), logits_of(tokens, long=False))


def test_passing_the_original_context_runs_everything_again_with_the_long_set_once() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session, tokens = engine.session(64), text(40)
    session.eval(tokens[:ORIGINAL_CONTEXT])
    assert backend.tokens_run == ORIGINAL_CONTEXT
    np.testing.assert_array_equal(session.eval(tokens[24:25]), logits_of(tokens[:25], long=True))
    assert backend.tokens_run == 24 + 25
    session.eval(tokens[25:26])
    assert backend.tokens_run == 24 + 25 + 1


def test_falling_below_the_original_context_goes_back_to_the_short_set_lazily() -> None:
    engine = toy_engine(prefix_pages=0)
    backend: Any = engine._backend
    session, tokens = engine.session(64), text(30)
    session.eval(tokens)
    before = backend.tokens_run
    session.truncate(10)
    assert backend.tokens_run == before
    np.testing.assert_array_equal(session.eval(tokens[10:12]), logits_of(tokens[:12], long=False))
    assert backend.tokens_run == before + 12


def test_the_whole_prompt_decides_the_factor_set_not_its_first_step() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    np.testing.assert_array_equal(engine.session(64).eval(text(30)), logits_of(text(30), long=True))
    assert backend.tokens_run == 30
    assert max(backend.steps) == 6


def test_a_new_session_takes_over_the_pages_of_an_ended_one() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    tokens = text(18)
    with engine.session(64) as first:
        first.eval(tokens)
    before = backend.tokens_run
    second = engine.session(64)
    assert second.reuse_prefix(tokens) == 16  # four full pages
    assert second.tokens == tokens[:16]
    np.testing.assert_array_equal(second.eval(tokens[16:]), expected(tokens))
    assert backend.tokens_run == before + 2


def test_a_kept_prefix_always_leaves_something_to_compute() -> None:
    engine = toy_engine()
    with engine.session(64) as first:
        first.eval(text(8))
    second = engine.session(64)
    assert second.reuse_prefix(text(8)) == 4  # both pages are known, but the last token's logits are wanted
    with engine.session(64) as first:
        first.eval(text(32))
    session = engine.session(64)
    session.eval(text(32)[:20])
    rows = session.eval(text(32)[20:], all_logits=True)  # switches to kept pages of the long set: 12 rows all the same
    np.testing.assert_array_equal(rows, [logits_of(text(32)[: i + 1], long=True) for i in range(20, 32)])


def test_reuse_keeps_at_most_all_but_the_last_token_and_forgets_the_rest() -> None:
    session = toy_engine().session(64)
    session.eval([1, 2, 3, 4, 5])
    assert session.reuse_prefix([1, 2, 3, 4, 5]) == 4
    session.eval([5, 6])
    assert session.reuse_prefix([1, 2, 9, 9]) == 2
    assert session.tokens == [1, 2]
    assert session.reuse_prefix([7]) == 0


def test_an_interrupted_prompt_leaves_the_session_as_it_was_and_its_pages_reusable() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session, tokens = engine.session(64), text(22)
    session.eval(tokens[:2])
    backend.fail_after = 3
    with pytest.raises(KeyboardInterrupt):
        session.eval(tokens[2:])
    assert session.tokens == tokens[:2]
    before = backend.tokens_run
    assert session.reuse_prefix(tokens) == 20
    np.testing.assert_array_equal(session.eval(tokens[20:]), expected(tokens))
    assert backend.tokens_run == before + 2


def test_an_interrupt_while_switching_factor_sets_loses_no_token() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session, tokens = engine.session(64), text(26)
    session.eval(tokens[:24])
    backend.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        session.eval(tokens[24:25])
    assert session.tokens == tokens[:24]
    np.testing.assert_array_equal(session.eval(tokens[24:25]), logits_of(tokens[:25], long=True))


def test_the_context_limit_names_tokens_past_and_context() -> None:
    session = toy_engine().session(16)
    session.eval(text(10))
    with pytest.raises(ContextLimitError, match="7 tokens after 10 make 17, but the context holds 16"):
        session.eval(text(7))
    assert session.n_past == 10
    session.eval(text(6))
    with pytest.raises(ContextLimitError, match="17 tokens, but the context holds 16"):
        session.hidden(text(17))


@pytest.mark.parametrize("bad", [[], [-1], [N_VOCAB], [3, 99]])
def test_bad_tokens_are_refused_with_their_value(bad: list[int]) -> None:
    session = toy_engine().session(16)
    for call in (session.eval, session.hidden, session.reuse_prefix):
        with pytest.raises(ArgumentError, match=str(bad[-1]) if bad else "no tokens"):
            call(bad)
    assert session.tokens == []


@pytest.mark.parametrize("n", [-1, 4])
def test_truncate_outside_the_session_is_refused(n: int) -> None:
    session = toy_engine().session(16)
    session.eval([1, 2, 3])
    with pytest.raises(ArgumentError, match=f"{n} tokens"):
        session.truncate(n)


def greedy(prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(expected(tokens).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [5, 20, 30])
def test_greedy_generation_equals_a_fresh_prefill_at_each_step_across_the_switch(length: int) -> None:
    session = toy_engine().session(64)
    assert list(session.generate(text(length), GREEDY, max_tokens=10)) == greedy(text(length), 10)


def test_generation_stops_before_a_stop_id_at_max_tokens_and_at_the_end_of_the_context() -> None:
    follow = greedy(text(5), 15)
    session = toy_engine().session(20)
    stop = next(i for i in range(2, 15) if follow[i] not in follow[:i])
    assert list(session.generate(text(5), GREEDY, stop_ids={follow[stop]})) == follow[:stop]
    assert list(session.generate(text(5), GREEDY, max_tokens=3)) == follow[:3]
    assert list(session.generate(text(5), GREEDY, max_tokens=0)) == []
    assert list(session.generate(text(5), GREEDY)) == follow
    assert list(session.generate(text(5), GREEDY, max_tokens=99)) == follow


def test_generation_reuses_the_prompt_it_shares_with_the_last_one() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session = engine.session(64)
    first = [*text(9), *session.generate(text(9), GREEDY, max_tokens=3)]
    before = backend.tokens_run
    next(session.generate([*first, 7], GREEDY))
    assert backend.tokens_run == before + 2  # the last token of the answer was never evaluated, and the new one


def test_bad_generation_arguments_are_refused_before_the_first_token() -> None:
    session = toy_engine().session(16)
    with pytest.raises(ContextLimitError, match="16 tokens and leaves no room in a context of 16"):
        session.generate(text(16), GREEDY)
    with pytest.raises(ArgumentError, match="max_tokens is -2"):
        session.generate(text(3), GREEDY, max_tokens=-2)
    with pytest.raises(ArgumentError, match="token 40"):
        session.generate(text(3), SamplingParams(logit_bias={40: 1.0}))


def test_the_same_seed_gives_the_same_text() -> None:
    params = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    texts = [list(toy_engine().session(64).generate(text(5), params, max_tokens=30)) for _ in range(2)]
    assert texts[0] == texts[1]
    other = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=6)
    assert list(toy_engine().session(64).generate(text(5), other, max_tokens=30)) != texts[0]


def test_progress_counts_every_token_that_is_run() -> None:
    seen: list[tuple[int, int]] = []
    session = toy_engine().session(64)
    session.eval(text(24))
    session.eval(text(1), progress=lambda done, todo: seen.append((done, todo)))
    assert seen == [(6, 25), (12, 25), (18, 25), (24, 25), (25, 25)]


def test_a_saved_session_continues_elsewhere_with_equal_logits() -> None:
    for length in (0, 3, 8, 22, 30):
        first = toy_engine().session(64)
        if length:
            first.eval(text(length))
        engine = toy_engine()
        second = engine.session(64)
        second.eval([1, 2, 3, 4, 5])
        second.load(first.save())
        assert second.tokens == text(length)[:length]
        before = engine._backend.tokens_run  # type: ignore[union-attr]
        np.testing.assert_array_equal(second.eval([9]), expected([*text(length), 9]))
        assert engine._backend.tokens_run == before + 1  # type: ignore[union-attr]


def test_every_flipped_byte_of_a_saved_session_is_refused() -> None:
    session = toy_engine().session(64)
    session.eval(text(6))
    data = session.save()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(FormatError):
            session.load(bytes(damaged))
    for n in (0, 7, 11, 40, len(data) - 1):
        with pytest.raises(FormatError):
            session.load(data[:n])
    with pytest.raises(FormatError):
        session.load(data + b"\0")
    assert session.tokens == text(6)


def resealed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The data with a change of the header of equal length and a checksum that fits it."""
    import hashlib

    assert data.count(old) == 1 and len(old) == len(new)
    body = data[:-32].replace(old, new)
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"tokens": 6', b'"tokens": 7'),
        (b'"cached": 6', b'"cached": 9'),
        (b'"cached": 6', b'"cached":-6'),
        (b'"tokens": 6', b'"tokens":-6'),
        (b'"tokens": 6', b'"tokens": x'),
        (b'"page_tokens": 4', b'"page_tokens": 0'),
        (b'"page_bytes": 48', b'"page_bytes": 16'),
    ],
)
def test_a_sealed_but_inconsistent_saved_session_is_refused(old: bytes, new: bytes) -> None:
    session = toy_engine().session(64)
    session.eval(text(6))
    with pytest.raises(PhialError):
        session.load(resealed(session.save(), old, new))
    assert session.tokens == text(6)


def test_a_saved_session_of_another_model_or_a_larger_context_is_refused() -> None:
    session = toy_engine().session(64)
    session.eval(text(20))
    with pytest.raises(PhialError, match="model 'toy', not 'other'"):
        toy_engine(model="other").session(64).load(session.save())
    with pytest.raises(ContextLimitError, match="20 tokens, but the context holds 16"):
        toy_engine().session(16).load(session.save())


def test_closed_sessions_and_engines_say_so_and_free_their_pages() -> None:
    engine = toy_engine(prefix_pages=0)
    session, other = engine.session(16), engine.session(16)
    session.eval(text(9))
    session.close()
    session.close()
    assert engine.pool.n_pages == 0 and engine.pool.promised == 4
    with pytest.raises(PhialError, match="session is closed"):
        session.eval([1])
    other.eval(text(9))
    engine.close()
    engine.close()
    for call in (lambda: other.eval([1]), lambda: engine.session(8), lambda: engine.kernel_set):
        with pytest.raises(PhialError, match="closed"):
            call()


def test_a_session_nobody_refers_to_gives_its_pages_back() -> None:
    engine = toy_engine(prefix_pages=0)
    session: Session | None = engine.session(16)
    assert session is not None
    session.eval(text(9))
    session = None
    gc.collect()
    engine.session(16)
    assert engine.pool.n_pages == 0


@pytest.mark.parametrize("n_ctx", [0, -5, 1.5, True, 2**31, "8"])
def test_a_bad_context_size_is_refused(n_ctx: Any) -> None:
    with pytest.raises(ArgumentError, match="n_ctx is"):
        toy_engine().session(n_ctx)


def test_a_context_beyond_the_trained_one_is_said_once_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    engine = toy_engine()
    engine.session(128)
    assert capsys.readouterr().err == ""
    engine.session(129)
    engine.session(500)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("129") == 1 and "128" in shown.err and "500" not in shown.err


def test_sessions_of_several_threads_do_not_disturb_each_other() -> None:
    engine, wrong = toy_engine(prefix_pages=3), list[int]()

    def work(seed: int) -> None:
        for turn in range(15):
            tokens = text(20, seed % 2) + text(turn % 3 + 1, seed)
            with engine.session(64) as session:
                n = session.reuse_prefix(tokens)
                if not np.array_equal(session.eval(tokens[n:]), expected(tokens)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert engine.pool.n_pages <= 3
