"""Speculation changes no token, no state and no random number, whoever guesses; and it stops where it does not pay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.toy_backend import N_VOCAB, ORIGINAL_CONTEXT, ToyBackend, logits_of, toy_engine
from tests.tiny_models import write_tiny

from phial.engine import native_backend
from phial.engine.draft_model import DraftModel, check_same_vocabulary
from phial.engine.engine import Engine
from phial.engine.lookup import Lookup
from phial.engine.sampling import Sampler, SamplingParams
from phial.engine.session import Session
from phial.engine.speculation import MOST_DRAFTS, PassCosts, Speculation
from phial.errors import ArgumentError

GREEDY = SamplingParams(temperature=0)
LOOSE: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
PARAMS = {
    "greedy": {"temperature": 0},
    "default": {},
    "loose": LOOSE,
    "penalties": {**LOOSE, "repeat_penalty": 1.3, "frequency_penalty": 0.5, "penalty_last_n": -1},
    "mirostat": {"mirostat_mode": 2, "mirostat_tau": 3.0},
    "bias": {"logit_bias": {3: 4.0, 5: -float("inf")}, "typical_p": 0.7},
}
needs_native = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")


def text(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


class Scripted:
    """Guesses the true continuation, each token right with the given chance."""

    seconds = 0.0

    def __init__(self, truth: Sequence[int], right: float, n_vocab: int = N_VOCAB, seed: int = 0) -> None:
        self.truth, self.right, self.n_vocab = list(truth), right, n_vocab
        self.rng, self.length = np.random.default_rng(seed), 0

    def begin(self, tokens: Sequence[int]) -> None:
        self.length = len(tokens)

    def extend(self, token: int) -> None:
        self.length += 1

    def chances(self, most: int) -> list[float]:
        return [0.9] * most

    def draft(self, n: int) -> list[int]:
        true = self.truth[self.length : self.length + n]
        wrong = [(t + 1 + int(self.rng.integers(self.n_vocab - 1))) % self.n_vocab for t in true]
        return [t if self.rng.random() < self.right else w for t, w in zip(true, wrong, strict=True)]


def plain(session: Session, prompt: list[int], params: SamplingParams, **options: Any) -> list[int]:
    return list(session.generate(prompt, params, speculate="off", **options))


@pytest.mark.parametrize("right", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("n", [1, 4, MOST_DRAFTS])
@pytest.mark.parametrize("kind", PARAMS)
def test_the_same_seed_gives_the_same_tokens_whatever_is_guessed(kind: str, n: int, right: float) -> None:
    for seed, prompt in enumerate([text(ORIGINAL_CONTEXT - 6), text(30)]):
        params = SamplingParams(**PARAMS[kind], seed=seed)
        first, second = toy_engine().session(44), toy_engine().session(44)
        expected = plain(first, prompt, params)  # to the end of the context, across the switch of the factor set
        drafter = Scripted(prompt + expected, right)
        assert list(second.generate(prompt, params, speculate=n, drafter=drafter)) == expected
        assert second.tokens == first.tokens
        assert second.speculation is not None
        counts = second.speculation.statistics
        assert counts.passes + counts.accepted == len(expected) - 1  # the first token is the prompt's
        if right == 1.0:
            assert counts.accepted == counts.drafted > 0
        if right == 0.0:
            assert counts.accepted == 0 < counts.drafted


def test_stop_ids_and_max_tokens_end_the_text_where_they_would() -> None:
    prompt = text(5)
    follow = plain(toy_engine().session(60), prompt, GREEDY, max_tokens=20)
    stop = next(i for i in range(6, 20) if follow[i] not in follow[:i])
    for options in ({"stop_ids": {follow[stop]}}, {"max_tokens": 7}, {"max_tokens": 1}, {"max_tokens": 0}):
        first, second = toy_engine().session(60), toy_engine().session(60)
        expected = plain(first, prompt, GREEDY, **options)
        drafter = Scripted(prompt + follow, 1.0)
        assert list(second.generate(prompt, GREEDY, speculate=9, drafter=drafter, **options)) == expected
        assert second.tokens == first.tokens


def test_at_every_token_the_session_is_what_it_is_without_speculation() -> None:
    prompt, params = text(10), SamplingParams(**LOOSE, seed=4)
    expected = plain(toy_engine().session(60), prompt, params, max_tokens=30)
    for n in range(1, 30, 3):
        first, second = toy_engine().session(60), toy_engine().session(60)
        plainly = first.generate(prompt, params, speculate="off")
        guessing = second.generate(prompt, params, speculate=6, drafter=Scripted(prompt + expected, 0.8))
        for _ in range(n):
            assert next(plainly) == next(guessing)
        assert second.n_past == first.n_past and second.tokens == first.tokens
        follow, loaded = prompt + expected[:n], toy_engine().session(60)
        loaded.load(second.save())
        assert loaded.tokens == first.tokens
        np.testing.assert_array_equal(loaded.eval([follow[-1]]), logits_of(follow, len(follow) > ORIGINAL_CONTEXT))
        np.testing.assert_array_equal(second.eval([follow[-1]]), logits_of(follow, len(follow) > ORIGINAL_CONTEXT))
        assert next(plainly) is not None and next(guessing) is not None  # neither minds the call in between


def test_a_pass_that_is_interrupted_leaves_tokens_and_keys_as_they_were() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session = engine.session(60)
    session.eval(text(9))
    session.eval([1], drafts=[2, 3, 4])
    session.eval([2])
    backend.fail_after = 0
    with pytest.raises(KeyboardInterrupt):
        session.eval([7], drafts=[8, 9])
    assert session.tokens == [*text(9), 1, 2] and session.n_foreseen == 0
    np.testing.assert_array_equal(session.eval([7]), logits_of([*text(9), 1, 2, 7], long=False))


def test_drafts_are_evaluated_once_taken_in_order_and_forgotten_by_any_other_call() -> None:
    engine = toy_engine()
    backend: Any = engine._backend
    session = engine.session(60)
    session.eval(text(6))
    before = backend.tokens_run
    session.eval([1], drafts=[2, 3, 4])
    assert backend.tokens_run == before + 4 and session.n_foreseen == 3 and session.n_past == 7
    assert session.foresees(2) and not session.foresees(3)
    np.testing.assert_array_equal(session.eval([2]), logits_of([*text(6), 1, 2], long=False))
    rows = session.eval([3], all_logits=True)
    np.testing.assert_array_equal(rows, [logits_of([*text(6), 1, 2, 3], long=False)])
    assert backend.tokens_run == before + 4
    np.testing.assert_array_equal(session.eval([9]), logits_of([*text(6), 1, 2, 3, 9], long=False))
    assert backend.tokens_run == before + 5 and session.n_foreseen == 0
    calls: list[Callable[[], Any]] = [
        lambda: session.eval([2, 3]), session.save, lambda: session.truncate(8), lambda: session.set_adapters(()),
        lambda: session.reuse_prefix(text(6)), lambda: session.load(session.save()),
    ]  # fmt: skip
    for call in calls:
        session.eval([1], drafts=[2, 3])
        call()
        assert session.n_foreseen == 0
        tokens = session.tokens
        np.testing.assert_array_equal(session.eval([2]), logits_of([*tokens, 2], long=False))


def test_drafts_stay_within_the_context_and_the_factor_set_and_out_of_prompts() -> None:
    session = toy_engine().session(60)
    session.eval(text(20))
    session.eval([1], drafts=[2] * 9)
    assert session.n_foreseen == ORIGINAL_CONTEXT - 21
    session.eval(text(30), drafts=[2] * 9)
    assert session.n_foreseen == 0
    session.eval(text(6))
    session.eval([1], drafts=[2] * 9)
    assert session.n_past == 58 and session.n_foreseen == 2
    session.truncate(56)
    session.eval(text(4), drafts=[2] * 9)
    assert session.n_past == 60 and session.n_foreseen == 0


def test_the_crossing_of_the_original_context_itself_guesses_nothing() -> None:
    engine = toy_engine(prefix_pages=0)
    backend: Any = engine._backend
    session = engine.session(60)
    session.eval(text(ORIGINAL_CONTEXT))
    backend.steps.clear()
    session.eval([1], drafts=[2, 3])
    assert backend.steps == [25] and session.n_foreseen == 0


@pytest.mark.parametrize("bad", [[-1], [3, N_VOCAB]])
def test_drafts_outside_the_vocabulary_are_refused(bad: list[int]) -> None:
    session = toy_engine().session(16)
    session.eval([1, 2, 3])
    with pytest.raises(ArgumentError, match=f"token id {bad[-1]}"):
        session.eval([4], drafts=bad)
    assert session.tokens == [1, 2, 3]


@pytest.mark.parametrize("bad", [0, -1, MOST_DRAFTS + 1, True, 1.5, "on", None])
def test_a_bad_wish_is_refused_with_its_value(bad: Any) -> None:
    with pytest.raises(ArgumentError, match=f"speculate is {bad!r}"):
        toy_engine().session(16).generate([1], GREEDY, speculate=bad)


def test_a_backend_whose_logits_depend_on_the_batch_does_not_speculate() -> None:
    engine = toy_engine()
    engine.batch_invariant = False
    session = engine.session(16)
    session.generate([1], GREEDY)
    assert session.speculation is None
    for wish in ({"speculate": 3}, {"drafter": Lookup()}):
        with pytest.raises(ArgumentError, match="toy backend cannot speculate"):
            session.generate([1], GREEDY, **wish)


def test_the_second_token_has_the_models_distribution() -> None:
    params: dict[str, Any] = {"temperature": 1.0, "top_k": 4, "top_p": 1.0, "min_p": 0.0}
    prompt, runs = text(4), 600
    chance = np.zeros(N_VOCAB)
    sampler = Sampler(SamplingParams(**params), N_VOCAB)
    firsts = sampler.distribution(logits_of(prompt, False), prompt)
    for first, p in zip(*firsts, strict=True):
        seconds, q = sampler.distribution(logits_of([*prompt, int(first)], False), prompt)
        chance[seconds] += p * q
    impossible = next(i for i in range(N_VOCAB) if i not in firsts[0])
    session, counts, accepted = toy_engine().session(60), np.zeros(N_VOCAB), 0
    for seed in range(runs):
        drafter = Scripted([*prompt, impossible, int(chance.argmax())], 1.0)
        drawn = session.generate(
            prompt, SamplingParams(**params, seed=seed), max_tokens=3, speculate=1, drafter=drafter
        )
        next(drawn)
        counts[next(drawn)] += 1
        next(drawn)
        assert session.speculation is not None
        accepted += session.speculation.statistics.accepted
    assert runs * chance.max() * 0.7 < accepted < runs * chance.max() * 1.3
    possible = chance > 0
    assert not counts[~possible].any()
    chi_square = float((np.square(counts - runs * chance)[possible] / (runs * chance[possible])).sum())
    assert chi_square < 2.5 * possible.sum()  # its mean is the number of outcomes less one


# What decides how much to guess, with a clock that goes by the tokens a pass has.


class TimedBackend(ToyBackend):
    """A pass of n tokens takes cost(n) seconds of `now`."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        super().__init__()
        self.cost, self.now = cost, 0.0

    def forward(self, steps: Any, want: Any) -> np.ndarray:
        self.now += self.cost(sum(len(step.tokens) for step in steps))
        return super().forward(steps, want)


def timed(cost: Callable[[int], float], right: float, drafter: Any = None, n: int = 400) -> tuple[Speculation, float]:
    """Evaluate n tokens of which a drafter guesses each right with this chance; and the seconds that took."""
    engine = toy_engine(n_ctx_train=4096, rope_long_factors=None, rope_short_factors=None)
    backend = TimedBackend(cost)
    engine._backend, engine._pool = backend, type(engine.pool)(backend.store, 0)
    tokens, session = text(n, 1), engine.session(n)
    speculation = Speculation(session, drafter or Scripted(tokens, right), PassCosts(), clock=lambda: backend.now)
    for token in tokens:
        speculation.eval([token])
    return speculation, backend.now


def test_cheap_passes_and_good_guesses_take_long_drafts() -> None:
    speculation, seconds = timed(lambda n: 1 + 0.02 * n, right=1.0)
    assert seconds < 400 / 6 and speculation.statistics.passes < 50


def test_guesses_stop_within_a_few_passes_where_every_token_costs_a_pass() -> None:
    speculation, seconds = timed(lambda n: n, right=0.9)
    assert speculation.statistics.drafted <= 3 * MOST_DRAFTS
    assert seconds < 400 * 1.08


def test_the_length_of_a_draft_keeps_to_what_passes_cost() -> None:
    def steep_after_four(n: int) -> float:
        return 1 + 0.05 * (n - 1) if n <= 4 else float(n)

    speculation, seconds = timed(steep_after_four, right=1.0)
    assert seconds < 400 / 4 * 1.15 + MOST_DRAFTS * 3
    assert speculation.statistics.drafted / speculation.statistics.passes == pytest.approx(3, abs=0.5)


def test_a_disturbed_measurement_is_mended() -> None:
    costs = PassCosts()
    for n, seconds in ((1, 1.0), (4, 50.0), (8, 2.0), (1, 30.0), (1, 1.0)):
        costs.observe(n, seconds)
    relative = costs.relative()
    assert relative == sorted(relative) and relative[0] == 1.0
    assert relative[3] <= relative[7] <= 2.0
    assert len(relative) == MOST_DRAFTS + 1 and PassCosts().relative()[0] == 1.0


def test_a_lookup_that_is_always_wrong_is_not_followed() -> None:
    class AlwaysWrong(Lookup):
        def draft(self, n: int) -> list[int]:
            return [(t + 1) % N_VOCAB for t in super().draft(n)]

    speculation, seconds = timed(lambda n: 1 + 0.05 * (n - 1), right=0.0, drafter=AlwaysWrong())
    assert seconds < 400 * 1.03
    assert speculation.statistics.passes == 400


# Real models.


@pytest.fixture(scope="module", params=["phi3", "llama", "qwen2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / f"{request.param}.gguf", request.param)
    with Engine.open(path, n_threads=1) as opened:
        yield opened


@needs_native
@pytest.mark.parametrize("kind", ["greedy", "penalties"])
def test_lookup_changes_no_token_of_a_model(engine: Engine, kind: str) -> None:
    prompt = engine.tokenizer.encode("once upon a time the time upon a time the once upon " * 3)
    for seed, wish in enumerate(("auto", 2, MOST_DRAFTS)):
        params = SamplingParams(**PARAMS[kind], seed=seed)
        first, second = engine.session(256), engine.session(256)
        expected = plain(first, prompt, params, max_tokens=40)
        assert list(second.generate(prompt, params, max_tokens=40, speculate=wish)) == expected  # type: ignore[arg-type]
        assert second.tokens == first.tokens
        np.testing.assert_array_equal(second.eval([5]), first.eval([5]))


@needs_native
def test_a_draft_model_changes_no_token_and_a_twin_is_always_right(tmp_path: Path) -> None:
    large, other = write_tiny(tmp_path / "large.gguf", "phi3"), write_tiny(tmp_path / "draft.gguf", "llama", seed=9)
    with Engine.open(large, n_threads=1) as engine, Engine.open(other, n_threads=1) as small:
        prompt = engine.tokenizer.encode("once upon a time")
        check_same_vocabulary(engine, small)
        for drafting, wish in ((small, 4), (small, "auto"), (engine, 4)):
            for params in (GREEDY, SamplingParams(**LOOSE, seed=2)):
                first, second = engine.session(48), engine.session(48)
                expected = plain(first, prompt, params)
                drafter = DraftModel(drafting, 48)
                assert list(second.generate(prompt, params, speculate=wish, drafter=drafter)) == expected  # type: ignore[arg-type]
                assert second.tokens == first.tokens
                assert second.speculation is not None
                counts = second.speculation.statistics
                if drafting is engine and params is GREEDY:
                    assert counts.accepted == counts.drafted > len(expected) / 2 - 2


def test_models_of_different_vocabularies_do_not_draft_for_each_other() -> None:
    first, second = toy_engine(), toy_engine(n_vocab=40)
    with pytest.raises(ArgumentError, match=r"vocabularies differ \(40 and 32 tokens\)"):
        check_same_vocabulary(first, second)
    second = toy_engine()
    first.metadata["tokenizer.ggml.tokens"], second.metadata["tokenizer.ggml.tokens"] = ["a"], ["b"]
    with pytest.raises(ArgumentError, match="vocabularies differ"):
        check_same_vocabulary(first, second)


def test_a_draft_model_follows_a_text_that_goes_another_way_and_back() -> None:
    drafter, reader = DraftModel(toy_engine(), 64), toy_engine().session(64)

    def expected(tokens: list[int], n: int) -> list[int]:
        follow = plain(reader, tokens, GREEDY, max_tokens=n)
        return follow

    tokens = text(10)
    drafter.begin(tokens)
    for wanted in (3, 3, 5):
        drafts = drafter.draft(wanted)
        assert drafts == expected(tokens, wanted)[: len(drafts)] and drafts
        for token in (*drafts[:1], 7):
            tokens.append(token)
            drafter.extend(token)
    drafter.begin(text(4))
    assert drafter.draft(1) == expected(text(4), 1)


def test_a_draft_model_that_is_never_right_is_asked_ever_less_and_later_again() -> None:
    drafter = DraftModel(toy_engine(), 1000)
    drafter.begin([1])
    for _ in range(30):
        drafter.draft(1)
        drafter.extend((drafter._open[0] + 1) % N_VOCAB)
    low = drafter.chances(1)[0]
    assert low < 0.1
    for _ in range(100):
        drafter.extend(3)
    assert drafter.chances(1)[0] > 0.3


@needs_native
@pytest.mark.slow
def test_speculation_changes_no_token_of_smollm2_with_any_kernels(smollm2: Path) -> None:
    from phial import _native

    said, before = "The quick brown fox jumps over the lazy dog, said the fox. ", _native.current_kernels()
    try:
        for kernels in _native.kernel_sets():
            fast = kernels == before
            with Engine.open(smollm2, kernels=kernels, n_threads=1) as engine:
                prompt = engine.tokenizer.encode(f"Say it again: {said * (18 if fast else 3)}\n\n{said[:30]}")
                for params in (GREEDY, SamplingParams(seed=1)):
                    first, second = engine.session(512), engine.session(512)
                    expected = plain(first, prompt, params, max_tokens=40 if fast else 16)
                    for wish in (MOST_DRAFTS, 2):
                        again = second.generate(prompt, params, max_tokens=len(expected), speculate=wish)
                        assert list(again) == expected
                        assert second.speculation is not None and second.speculation.statistics.accepted > 0
    finally:
        _native.use_kernels(before)
