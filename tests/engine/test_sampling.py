"""The sampler chain against plain implementations, transformers' processors, closed forms and distributions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phial.engine.sampling import Sampler, SamplingParams
from phial.errors import ArgumentError, PhialError

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # every filter off


def logits_of(n: int, seed: int, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def kept(logits: np.ndarray, context: list[int] | None = None, **params: Any) -> list[int]:
    """Ids the sampler would choose among."""
    ids, probabilities = Sampler(SamplingParams(**{**OFF, **params}), len(logits)).distribution(logits, context or [])
    np.testing.assert_allclose(probabilities.sum(), 1)
    return ids.tolist()


# The plain implementations sort everything and cut; each returns ids in rising order.


def plain_top_k(p: np.ndarray, k: int) -> list[int]:
    return sorted(np.argsort(-p, kind="stable")[:k].tolist())


def plain_mass(p: np.ndarray, mass: float, cost: np.ndarray) -> list[int]:
    chosen, total = [], 0.0
    for i in np.argsort(cost, kind="stable").tolist():
        chosen.append(i)
        total += p[i]
        if total >= mass:
            break
    return sorted(chosen)


def plain_top_p(p: np.ndarray, mass: float) -> list[int]:
    return plain_mass(p, mass, -p)


def plain_typical(p: np.ndarray, mass: float) -> list[int]:
    entropy = -(p * np.log(p)).sum()
    return plain_mass(p, mass, np.abs(-np.log(p) - entropy))


def plain_min_p(p: np.ndarray, share: float) -> list[int]:
    return [i for i in range(len(p)) if p[i] >= share * p.max()]


FILTERS = [
    *(("top_k", plain_top_k, k) for k in (1, 2, 7, 40, 299, 300, 5000)),
    *(("top_p", plain_top_p, p) for p in (0.0, 0.1, 0.5, 0.9, 0.999)),
    *(("min_p", plain_min_p, p) for p in (0.001, 0.05, 0.3, 0.999)),
    *(("typical_p", plain_typical, p) for p in (0.0, 0.2, 0.5, 0.9)),
]


@pytest.mark.parametrize("n", [3, 300, 5000])
@pytest.mark.parametrize(("field", "plain", "value"), FILTERS)
def test_each_filter_keeps_what_a_plain_implementation_keeps(field: str, plain: Any, value: Any, n: int) -> None:
    for seed in range(3):
        logits = logits_of(n, seed)
        assert kept(logits, **{field: value}) == plain(softmax(logits), value)


def test_filters_follow_each_other_in_llama_cpp_order_each_on_what_the_last_left() -> None:
    for seed in range(5):
        logits = logits_of(2000, seed, 1.0)
        left = np.array(plain_top_k(softmax(logits), 80))
        for plain, value in ((plain_typical, 0.8), (plain_top_p, 0.7), (plain_min_p, 0.2)):
            left = left[plain(softmax(logits[left]), value)]
        ids, probabilities = Sampler(
            SamplingParams(temperature=1.7, top_k=80, typical_p=0.8, top_p=0.7, min_p=0.2), 2000
        ).distribution(logits, [])
        assert ids.tolist() == left.tolist()
        np.testing.assert_allclose(probabilities, softmax(logits[left].astype(np.float64) / 1.7))


@pytest.mark.parametrize("n", [300, 5000])
@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("top_k", "TopKLogitsWarper", 50),
        ("top_p", "TopPLogitsWarper", 0.8),
        ("min_p", "MinPLogitsWarper", 0.1),
        ("typical_p", "TypicalLogitsWarper", 0.4),
    ],
)
def test_filters_agree_with_transformers(field: str, name: str, value: Any, n: int) -> None:
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    for seed in range(3):
        logits = logits_of(n, seed)
        scores = torch.from_numpy(logits.astype(np.float64))[None]
        theirs = getattr(warpers, name)(value)(torch.zeros((1, 1), dtype=torch.long), scores)[0].numpy()
        assert kept(logits, **{field: value}) == np.flatnonzero(np.isfinite(theirs)).tolist()


def test_the_repetition_penalty_agrees_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits, context = logits_of(100, 1), [3, 3, 50, 99, 0]
    theirs = warpers.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([context]), torch.from_numpy(logits)[None])[0]
    params = SamplingParams(**OFF, repeat_penalty=1.3)
    _, probabilities = Sampler(params, 100).distribution(logits, context)
    np.testing.assert_allclose(probabilities, softmax(theirs.numpy()), rtol=1e-6)


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=400),
    k=st.integers(1, 450),
)
@settings(max_examples=200, deadline=None)
def test_top_k_is_exact_where_many_logits_are_equal_and_prefers_lower_ids(values: list[int], k: int) -> None:
    logits = np.array(values, np.float32)
    assert kept(logits, top_k=k) == plain_top_k(logits, k)


def test_forbidden_tokens_are_never_kept_by_any_filter() -> None:
    logits = np.full(5000, -np.inf, np.float32)
    logits[[7, 4000, 4999]] = [1.0, 2.0, 0.0]
    for field, _, value in FILTERS:
        assert set(kept(logits, **{field: value})) <= {7, 4000, 4999}
    assert kept(logits) == [7, 4000, 4999]
    assert set(kept(logits, mirostat_mode=2, mirostat_tau=1e5)) == {7, 4000, 4999}


def test_temperature_closed_form() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.7])).astype(np.float32)
    for temperature in (0.25, 1.0, 3.0):
        _, p = Sampler(SamplingParams(**{**OFF, "temperature": temperature}), 3).distribution(logits, [])
        np.testing.assert_allclose(
            p,
            np.array([0.1, 0.2, 0.7]) ** (1 / temperature) / (np.array([0.1, 0.2, 0.7]) ** (1 / temperature)).sum(),
            rtol=1e-5,
        )


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e300])
def test_extreme_temperatures_stay_distributions(temperature: float) -> None:
    logits = logits_of(1000, 0)
    ids, p = Sampler(SamplingParams(**{**OFF, "temperature": temperature}), 1000).distribution(logits, [])
    assert np.isfinite(p).all()
    expected = np.eye(1000)[logits.argmax()] if temperature < 1 else np.full(1000, 0.001)
    np.testing.assert_allclose(p, expected, atol=1e-9)
    assert len(ids) == 1000


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_zero_is_greedy_after_bias_and_penalties(temperature: float) -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    take = lambda context, **params: Sampler(  # noqa: E731
        SamplingParams(temperature=temperature, **params), 3
    ).sample(logits, context)
    assert take([]) == 1
    assert take([], logit_bias={0: 5.0}) == 0
    assert take([], logit_bias={1: -math.inf}) == 2
    assert take([1], repeat_penalty=2.0) == 2
    assert take([1], presence_penalty=1.5) == 2
    assert take([1], presence_penalty=0.5) == 1
    assert take([1, 1, 1], frequency_penalty=0.5) == 2
    assert take([1], frequency_penalty=0.5) == 1


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -1.0, 0.5, 4.0], np.float32)
    params = SamplingParams(**OFF, repeat_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    _, p = Sampler(params, 4).distribution(logits, [0, 1, 0])
    np.testing.assert_allclose(p, softmax(np.array([2 / 2 - 2 * 0.5 - 0.25, -1 * 2 - 0.5 - 0.25, 0.5, 4.0])), rtol=1e-6)
    assert logits.tolist() == [2.0, -1.0, 0.5, 4.0]


@pytest.mark.parametrize(("last_n", "expected"), [(0, 1), (2, 1), (3, 0), (64, 0), (-1, 0)])
def test_penalties_look_at_the_last_n_tokens_of_the_context(last_n: int, expected: int) -> None:
    logits = np.array([1.9, 2.0, -5.0], np.float32)
    params = SamplingParams(temperature=0, repeat_penalty=1.5, penalty_last_n=last_n)
    assert Sampler(params, 3).sample(logits, [1, 2, 2]) == expected


def chi_square(counts: Counter[int], p: dict[int, float]) -> float:
    """Chi-square over its expectation in standard deviations (normal approximation, degrees = categories - 1)."""
    n, degrees = sum(counts.values()), len(p) - 1
    assert set(counts) <= set(p)
    value = sum((counts[i] - n * q) ** 2 / (n * q) for i, q in p.items())
    return (value - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"temperature": 0.5, "top_p": 0.9}, {"typical_p": 0.6}])
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    logits = logits_of(12, 3, 1.0)
    sampler = Sampler(SamplingParams(**{**OFF, **params}, seed=11), 12)
    ids, p = sampler.distribution(logits, [])
    counts = Counter(sampler.sample(logits, []) for _ in range(20000))
    assert abs(chi_square(counts, dict(zip(ids.tolist(), p.tolist(), strict=True)))) < 4


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(SamplingParams(**{**OFF, "temperature": 1e-3}), 5)

    class Fixed:
        def random(self) -> float:
            return number

    monkeypatch.setattr(sampler, "_random", Fixed())
    assert sampler.sample(np.array([0, 0, 9, 9, 0], np.float32), []) in (2, 3)


def test_a_seed_fixes_the_draws_and_none_draws_a_fresh_readable_one() -> None:
    logits = logits_of(1000, 0)
    draw = lambda seed: [s.sample(logits, []) for s in [Sampler(SamplingParams(seed=seed), 1000)] for _ in range(50)]  # noqa: E731
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    first, second = Sampler(SamplingParams(), 1000), Sampler(SamplingParams(), 1000)
    assert first.seed != second.seed
    assert [first.sample(logits, []) for _ in range(50)] == draw(first.seed)


def test_seeded_draws_are_the_published_ones() -> None:
    """Golden: PCG64 seeded by the number, one double per token. A change here changes every user's seeded text."""
    sampler = Sampler(SamplingParams(**OFF, seed=42), 1000)
    uniform = np.zeros(1000, np.float32)
    assert [sampler.sample(uniform, []) for _ in range(5)] == [773, 438, 858, 697, 94]


def test_mirostat_holds_the_surprise_of_a_zipf_distribution_at_tau() -> None:
    p = 1 / np.arange(1, 2001)
    p /= p.sum()
    logits = np.log(p).astype(np.float32)
    for tau in (2.0, 4.0, 6.0):
        sampler = Sampler(SamplingParams(mirostat_mode=2, mirostat_tau=tau, temperature=1.0, seed=1), 2000)
        surprises = []
        for _ in range(3000):
            ids, q = sampler.distribution(logits, [])
            token = sampler.sample(logits, [])
            surprises.append(-math.log2(q[ids.tolist().index(token)]))
        assert abs(float(np.mean(surprises[500:])) - tau) < 0.15


def test_mirostat_cuts_at_mu_bits_which_begins_at_twice_tau() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125])  # 1, 2, 3, 3 bits
    sampler = Sampler(SamplingParams(mirostat_mode=2, mirostat_tau=1.25, mirostat_eta=0.5, temperature=1.0, seed=0), 4)
    ids, q = sampler.distribution(np.log(p).astype(np.float32), [])
    assert ids.tolist() == [0, 1]
    np.testing.assert_allclose(q, [2 / 3, 1 / 3], rtol=1e-6)
    token = sampler.sample(np.log(p).astype(np.float32), [])
    np.testing.assert_allclose(sampler._mu, 2.5 - 0.5 * (-math.log2(q[token]) - 1.25), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_an_error_not_a_token(bad: float) -> None:
    logits = np.zeros(500, np.float32)
    logits[123] = bad
    for params in ({}, {"temperature": 0}, {"mirostat_mode": 2}, {"repeat_penalty": 1.5}):
        with pytest.raises(PhialError, match="1 of 500 logits"):
            Sampler(SamplingParams(**params), 500).sample(logits, [5])


def test_forbidding_every_token_is_an_error() -> None:
    with pytest.raises(PhialError, match="every token is forbidden"):
        Sampler(SamplingParams(logit_bias={0: -math.inf, 1: -math.inf}), 2).sample(np.zeros(2, np.float32), [])


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\(3,\)"):
        Sampler(SamplingParams(), 4).sample(np.zeros(3, np.float32), [])


@pytest.mark.parametrize("context", [[-1], [4], [0, 77]])
def test_a_context_outside_the_vocabulary_is_refused_by_the_penalties(context: list[int]) -> None:
    with pytest.raises(ArgumentError, match=str(context[-1])):
        Sampler(SamplingParams(repeat_penalty=2.0), 4).sample(np.zeros(4, np.float32), context)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", v) for v in (math.nan, math.inf, -math.inf, "1", None, True)),
        *(("top_k", v) for v in (1.5, math.nan, None, "40", True)),
        *((name, v) for name in ("top_p", "min_p", "typical_p") for v in (-0.1, 1.1, math.nan, None)),
        *(("repeat_penalty", v) for v in (0.0, -1.0, math.nan, math.inf)),
        *((name, v) for name in ("presence_penalty", "frequency_penalty") for v in (math.nan, math.inf, 1e9, "x")),
        *(("penalty_last_n", v) for v in (-2, 1.0, None)),
        *(("mirostat_mode", v) for v in (1, 3, -1, 2.0)),
        *(("mirostat_tau", v) for v in (0.0, -1.0, math.nan, math.inf)),
        *(("mirostat_eta", v) for v in (0.0, -1.0, 2.0, math.nan)),
        *(("seed", v) for v in (-1, 2**64, 1.5, "7", True)),
        *(("logit_bias", {key: 1.0}) for key in (-1, 1.5, "3")),
        *(("logit_bias", {0: v}) for v in (math.nan, math.inf, "x", 1e31)),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    shown = next(iter(value.values())) if isinstance(value, dict) and list(value) == [0] else value
    shown = next(iter(value)) if isinstance(value, dict) and list(value) != [0] else shown
    with pytest.raises(ArgumentError) as caught:
        SamplingParams(**{field: value})
    assert field in caught.value.message and repr(shown) in caught.value.message and caught.value.hint


def test_a_bias_for_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ArgumentError, match="token 10"):
        Sampler(SamplingParams(logit_bias={10: 1.0}), 10)


def test_logits_are_left_unchanged() -> None:
    logits = logits_of(500, 1)
    before = logits.copy()
    params = SamplingParams(logit_bias={3: 2.0}, repeat_penalty=1.2, presence_penalty=0.1, typical_p=0.9)
    Sampler(params, 500).sample(logits, [1, 2, 3])
    np.testing.assert_array_equal(logits, before)
