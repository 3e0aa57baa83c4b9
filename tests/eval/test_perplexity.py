"""Perplexity and divergence where the answer is known: closed forms, plain numpy, and runs that are cut off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.errors import ArgumentError, FormatError, PhialError
from phial.eval.journal import Header, Journal, tokens_digest
from phial.eval.perplexity import (
    RANGE,
    ModelBase,
    SavedBase,
    comparing,
    decode,
    encode,
    evaluate,
    kl_divergence,
    log_softmax,
    saving,
    scoring,
)
from phial.eval.statistics import PERCENTILES, Tally
from phial.eval.windows import Windows, plan_windows

N_VOCAB = 50


class Model:
    """Logits that a function of (token, the one after it) gives; hands them out in pieces of two rows."""

    def __init__(self, row: Callable[[int, int], Any], n_vocab: int = N_VOCAB) -> None:
        self.row, self.n_vocab, self.calls = row, n_vocab, 0

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        self.calls += 1
        rows = [self.row(a, b) for a, b in zip(tokens[first:], tokens[first + 1 :], strict=False)]
        for start in range(0, len(rows), 2):
            yield np.array(rows[start : start + 2], np.float32)


def random_model(seed: int, scale: float = 3.0) -> Model:
    table = scale * np.random.default_rng(seed).standard_normal((N_VOCAB, N_VOCAB))
    return Model(lambda a, b: table[a])


def ids_of(n: int, seed: int = 7) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


def final(measure: Any, ids: list[int], windows: Windows, journal: Journal | None = None) -> Tally:
    *_, tally = evaluate(measure, ids, windows, journal)
    return tally


def header_of(kind: str, ids: list[int], windows: Windows, /, **changes: Any) -> Header:
    plan = {name: getattr(windows, name) for name in ("size", "step", "first", "count")}
    values = {"kind": kind, "model": "m", "settings": "s", "tokens": tokens_digest(ids), "n_vocab": N_VOCAB, "base": ""}
    return Header(**{**values, **plan, **changes})


# ---- windows ----


def test_windows_are_llama_cpps_bos_first_and_second_half_scored() -> None:
    plan = plan_windows(11, 4, bos=99)
    assert [plan.tokens(range(11), w) for w in range(plan.count)] == [[99, 1, 2, 3], [99, 5, 6, 7]]
    assert [plan.tokens(range(11), w)[plan.first + 1 :] for w in range(plan.count)] == [[3], [7]]
    usual = plan_windows(10_115, 512)
    assert (usual.count, usual.first, usual.scored, usual.bos) == (19, 256, 255, None)


def test_strided_windows_score_every_later_token_once_and_take_no_bos() -> None:
    plan = plan_windows(10, 4, stride=2, bos=99)
    assert [plan.tokens(range(10), w) for w in range(plan.count)] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]
    assert [plan.tokens(range(10), w)[plan.first + 1 :] for w in range(plan.count)] == [[3, 4], [5, 6], [7, 8]]


def test_a_text_that_fills_no_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(PhialError, match=r"511 tokens.*needs 512"):
        plan_windows(511, 512)
    assert plan_windows(512, 512).count == 1
    with pytest.raises(PhialError, match=r"640 tokens.*needs 641"):
        plan_windows(640, 512, stride=256)
    assert plan_windows(641, 512, stride=256).count == 1


@pytest.mark.parametrize("wrong", [{"n_ctx": 3}, {"stride": 9}, {"stride": -1}, {"most": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        plan_windows(100, **{"n_ctx": 8, **wrong})


# ---- closed forms ----


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity() -> None:
    estimate = final(scoring(Model(lambda a, b: np.full(N_VOCAB, 3.0))), ids_of(64), plan_windows(64, 16)).perplexity
    assert estimate.value == pytest.approx(N_VOCAB, rel=1e-12)
    assert estimate.error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("otherwise", [-1e9, -np.inf])
def test_a_model_that_is_certain_and_right_has_perplexity_one(otherwise: float) -> None:
    model = Model(lambda a, b: np.where(np.arange(N_VOCAB) == b, 0.0, otherwise))
    assert tuple(final(scoring(model), ids_of(64), plan_windows(64, 16)).perplexity) == (1.0, 0.0)


def test_two_known_distributions_have_the_divergence_worked_out_by_hand() -> None:
    half, quarter = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert kl_divergence(half, quarter) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)  # 1/2 ln 2 + 1/2 ln 2/3
    ours, base = Model(lambda a, b: quarter, 2), Model(lambda a, b: half, 2)
    found = final(comparing(ours, ModelBase(base)), [0, 1] * 16, plan_windows(32, 8)).comparison()
    assert found.kl.value == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert found.base_perplexity.value == pytest.approx(2, rel=1e-6)
    assert found.same_top == (0.0, 0.0)  # the first of two equals is the base's likeliest


def test_a_model_does_not_differ_from_itself() -> None:
    found = final(
        comparing(random_model(1), ModelBase(random_model(1))), ids_of(256), plan_windows(256, 32)
    ).comparison()
    assert (found.kl, found.kl_max, found.p_rms, found.same_top) == ((0.0, 0.0), 0.0, (0.0, 0.0), (1.0, 0.0))
    assert found.log_ratio.value == 0 and found.log_ratio.error == pytest.approx(0, abs=1e-7)


def test_an_impossible_token_excluded_by_both_counts_nothing() -> None:
    row = np.array([0.0, 0.0, -np.inf])
    assert kl_divergence(log_softmax(row), log_softmax(row)) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("task", [scoring, saving])
def test_logits_without_a_finite_score_are_refused(task: Any, bad: float) -> None:
    model = Model(lambda a, b: np.where(np.arange(N_VOCAB) == 3, bad, 0.0))
    with pytest.raises(PhialError, match="window 1"):
        final(task(model), ids_of(64), plan_windows(64, 16))


def test_a_token_held_for_impossible_by_the_model_alone_is_refused() -> None:
    ours, base = Model(lambda a, b: np.array([0.0, 0.0, -np.inf]), 3), Model(lambda a, b: np.zeros(3), 3)
    with pytest.raises(PhialError, match="no finite score"):
        final(comparing(ours, ModelBase(base)), [0, 1] * 16, plan_windows(32, 8))


# ---- statistics ----


def test_every_figure_equals_plain_numpy_over_all_scored_tokens() -> None:
    ids, ours, noise = ids_of(1024), random_model(1), random_model(2)
    base = Model(lambda a, b: ours.row(a, b) + 0.5 * noise.row(a, b))
    plan = plan_windows(len(ids), 64)
    tally = final(comparing(ours, ModelBase(base)), ids, plan)
    pairs = np.array([(ids[i], ids[i + 1]) for w in range(16) for i in range(64 * w + 32, 64 * w + 63)])
    logits = [np.array([m.row(a, b) for a, b in pairs], np.float32).astype(np.float64) for m in (ours, base)]
    q, p = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits)
    each = np.arange(len(pairs))
    nll, base_nll = -np.log(q[each, pairs[:, 1]]), -np.log(p[each, pairs[:, 1]])
    kl, dp = (p * np.log(p / q)).sum(1), np.exp(-nll) - np.exp(-base_nll)
    same = p.argmax(1) == q.argmax(1)

    def error(x: np.ndarray) -> float:
        return float(x.std(ddof=1) / math.sqrt(len(x)))

    found = tally.comparison()
    assert tally.n_tokens == len(pairs) == 16 * 31
    assert tally.perplexity == pytest.approx((math.exp(nll.mean()), math.exp(nll.mean()) * error(nll)))
    assert found.base_perplexity == pytest.approx(
        (math.exp(base_nll.mean()), math.exp(base_nll.mean()) * error(base_nll))
    )
    assert found.log_ratio == pytest.approx(((nll - base_nll).mean(), error(nll - base_nll)))
    assert found.correlation == pytest.approx(np.corrcoef(nll, base_nll)[0, 1])
    assert found.kl == pytest.approx((kl.mean(), error(kl)))
    assert found.kl_percentiles == pytest.approx(tuple(np.percentile(kl, PERCENTILES)))
    assert found.kl_max == pytest.approx(kl.max())
    assert found.p_mean == pytest.approx((dp.mean(), error(dp)))
    assert found.p_rms.value == pytest.approx(math.sqrt((dp**2).mean()))
    assert found.p_rms.error == pytest.approx(error(dp**2) / (2 * found.p_rms.value))
    assert 0.2 < same.mean() < 0.9
    assert found.same_top == pytest.approx((same.mean(), error(same.astype(float))))


def test_one_scored_token_has_no_error() -> None:
    assert final(scoring(random_model(1)), ids_of(4), plan_windows(4, 4)).perplexity.error == 0.0


# ---- saved bases ----


def test_a_saved_row_is_as_near_as_documented_and_keeps_its_top() -> None:
    rng = np.random.default_rng(3)
    for scale in (0.0, 1e-3, 1.0, 5.0, 50.0):
        for _ in range(20):
            row = log_softmax(scale * rng.standard_normal(1000))
            back = decode(*encode(row))
            near = row > row.max() - RANGE
            assert np.abs(back - row)[near].max() <= RANGE / 65535 + 1000 * math.exp(-RANGE)
            assert back.argmax() == row.argmax()
            assert np.exp(back).sum() == pytest.approx(1)
    near_tie = log_softmax(np.array([1.0, 2.0 - 1e-7, 2.0, -np.inf]))
    assert decode(*encode(near_tie)).argmax() == 2


def saved_base(path: Path, model: Model, ids: list[int], plan: Windows) -> Path:
    with Journal.resume(path, header_of("base", ids, plan)) as journal:
        final(saving(model), ids, plan, journal)
    return path


def test_a_saved_base_gives_the_divergence_of_the_model_itself(tmp_path: Path) -> None:
    ids = ids_of(1024)
    plan = plan_windows(len(ids), 64)
    ours, base = random_model(1), random_model(2)
    with Journal.load(saved_base(tmp_path / "base", base, ids, plan)) as journal:
        found = final(comparing(ours, SavedBase(journal)), ids, plan).comparison()
        itself = final(comparing(base, SavedBase(journal)), ids, plan).comparison()
    expected = final(comparing(ours, ModelBase(base)), ids, plan).comparison()
    assert found.base_perplexity == expected.base_perplexity  # losses are stored exactly
    assert found.same_top == expected.same_top
    assert found.kl.value == pytest.approx(expected.kl.value, abs=1e-5)
    assert found.kl_percentiles == pytest.approx(expected.kl_percentiles, abs=5e-4)
    assert 0 <= itself.kl.value < 1e-7 and itself.same_top.value == 1


# ---- interruption ----


@pytest.mark.parametrize("kind", ["perplexity", "kld", "base"])
def test_a_run_stopped_after_any_window_goes_on_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    ids = ids_of(320)
    plan = plan_windows(len(ids), 64)

    def task(model: Model) -> Any:
        return {"perplexity": scoring, "base": saving}.get(kind, lambda m: comparing(m, ModelBase(random_model(2))))(
            model
        )

    whole = final(task(random_model(1)), ids, plan)
    for stop in range(plan.count):
        path, model = tmp_path / f"{kind}{stop}", random_model(1)
        with Journal.resume(path, header_of(kind, ids, plan)) as journal:
            for tally in evaluate(task(model), ids, plan, journal):
                if tally.n_windows == stop + 1:
                    break
        with Journal.resume(path, header_of(kind, ids, plan)) as journal:
            again = final(task(model), ids, plan, journal)
        assert model.calls == plan.count
        assert again.perplexity == whole.perplexity
        if kind == "kld":
            assert again.comparison() == whole.comparison()


def test_a_record_torn_anywhere_is_dropped_and_made_again(tmp_path: Path) -> None:
    ids = ids_of(48)
    plan = plan_windows(len(ids), 16)
    header, path = header_of("perplexity", ids, plan), tmp_path / "state"
    with Journal.resume(path, header) as journal:
        whole = final(scoring(random_model(1)), ids, plan, journal)
    data = path.read_bytes()
    record = header.record_bytes + 32
    torn = [data[: len(data) - cut] for cut in range(1, record + 1)]
    zeroed = data[: len(data) - record] + bytes(record)  # what a power cut can leave
    for left in [*torn, zeroed]:
        path.write_bytes(left)
        model = random_model(1)
        with Journal.resume(path, header) as journal:
            assert final(scoring(model), ids, plan, journal).perplexity == whole.perplexity
        assert model.calls == 1
        assert path.read_bytes() == data


def test_damage_before_the_last_record_is_one_clear_error(tmp_path: Path) -> None:
    ids = ids_of(48)
    plan = plan_windows(len(ids), 16)
    path = saved_base(tmp_path / "base", random_model(1), ids, plan)
    data = path.read_bytes()
    header_end = len(data) - plan.count * (header_of("base", ids, plan).record_bytes + 32)
    for position in (*range(header_end), header_end, header_end + 500):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(FormatError), Journal.load(path) as journal:
            final(comparing(random_model(2), SavedBase(journal)), ids, plan)
        with pytest.raises(FormatError):
            Journal.resume(path, header_of("base", ids, plan))
    record = (len(data) - header_end) // plan.count
    first, second = data[header_end:][:record], data[header_end:][record : 2 * record]
    path.write_bytes(data[:header_end] + second + first + data[header_end + 2 * record :])
    with pytest.raises(FormatError, match="window 1"), Journal.load(path) as journal:  # records in another order
        journal.read(0)
    for wrong in (data + b"x", *(data[:length] for length in range(header_end))):
        path.write_bytes(wrong)
        with pytest.raises(FormatError):
            Journal.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": "t"}, "another model, cache type or kernel set"),
        ({"tokens": "0"}, "another text"),
        ({"size": 18}, "other windows"),
        ({"kind": "kld"}, "another measurement"),
        ({"base": "b"}, "another base"),
    ],
)
def test_a_journal_of_another_run_is_refused_with_what_differs(tmp_path: Path, change: Any, words: str) -> None:
    ids = ids_of(48)
    plan = plan_windows(len(ids), 16)
    Journal.resume(tmp_path / "state", header_of("perplexity", ids, plan)).close()
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(PhialError, match=words):
        Journal.resume(tmp_path / "state", header_of("perplexity", ids, plan, **change))
    assert (tmp_path / "state").read_bytes() == before


@pytest.mark.parametrize("change", [{"n_vocab": 2**30}, {"n_vocab": 0}, {"first": 15}, {"kind": "x"}, {"count": -1}])
def test_a_forged_header_is_refused(tmp_path: Path, change: Any) -> None:
    ids = ids_of(48)
    from phial.eval import journal

    journal._create(tmp_path / "forged", header_of("base", ids, plan_windows(len(ids), 16), **change))
    with pytest.raises(FormatError):
        Journal.load(tmp_path / "forged")
