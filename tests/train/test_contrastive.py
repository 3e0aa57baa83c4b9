"""InfoNCE in closed form, pooling by mask, dropout views, and pieces of a step that give the gradient of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.counting import tiny_model
from torch import Tensor

from phial.train import contrastive
from phial.train.contrastive import Contrast, Pooling, Sides, encode, pool
from phial.train.loop import LoopConfig, train
from phial.train.objective import Batch
from phial.train.processes import OneProcess
from phial.train.text_batches import packed_texts


def sides(queries: Tensor, positives: Tensor, negatives: Tensor | None = None, owners: Sequence[int] = ()) -> Sides:
    """All texts different."""
    negatives = queries[:0] if negatives is None else negatives
    keys = torch.arange(2 * len(queries) + len(negatives)).tensor_split([len(queries), 2 * len(queries)])
    return Sides(queries, positives, negatives, torch.tensor(owners, dtype=torch.long), *keys)


def losses(*given: object, contrast: Contrast | None = None) -> Tensor:
    return (contrast or Contrast()).rows(sides(*given))["loss"]  # type: ignore[arg-type]


def test_one_text_has_no_loss_and_identical_ones_ln_n() -> None:
    h = torch.randn(1, 8)
    assert losses(h, torch.randn(1, 8)).tolist() == [0.0]
    torch.testing.assert_close(losses(h.expand(5, 8), h.expand(5, 8)), torch.full((5,), math.log(5)))


def test_orthonormal_texts_have_the_loss_of_the_closed_form() -> None:
    h = torch.eye(64, dtype=torch.float64)
    loss = losses(h, h)
    assert loss.mean().item() == pytest.approx(math.log1p(63 * math.exp(-20)), rel=1e-9)
    assert loss.mean().item() == pytest.approx(1.2985e-7, rel=1e-4)


def test_the_loss_is_that_of_the_definition() -> None:
    """Written out with exponentials: a hard negative is a column for every query, its weight for its own alone."""
    q, p, n = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    n, owners = n[:3], [2, 0, 2]
    got = losses(q, p, n, owners, contrast=Contrast(temperature=0.3, negative_weight=0.7))
    for i in range(4):
        terms = [math.exp(float(torch.cosine_similarity(q[i], d, dim=0)) / 0.3) for d in p]
        terms += [
            math.exp(float(torch.cosine_similarity(q[i], d, dim=0)) / 0.3 + 0.7 * (owner == i))
            for d, owner in zip(n, owners, strict=True)
        ]
        assert got[i].item() == pytest.approx(-math.log(terms[i] / sum(terms)), rel=1e-9)


def test_one_direction_alone() -> None:
    q, p = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(losses(q, p).sum(), losses(p, q).sum(), rtol=1e-3)


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(n, 5, dtype=torch.float64, generator=generator).requires_grad_() for n in (3, 3, 2)]
    contrast = Contrast(temperature=0.2, negative_weight=0.5)
    assert torch.autograd.gradcheck(lambda *h: losses(*h, [0, 2], contrast=contrast), given)


def test_texts_that_answer_as_well_are_no_negatives() -> None:
    """Row 1 repeats row 0's positive, row 2 asks what row 0 asks, the hard negative of row 3 is row 1's positive."""
    h = torch.randn(9, 6, generator=torch.Generator().manual_seed(4))
    keys = [torch.tensor(k) for k in ([0, 1, 0, 3], [10, 10, 12, 13], [10])]
    given = Sides(h[:4], h[4:8], h[8:], torch.tensor([3]), *keys)
    rows = Contrast().rows(given)
    assert rows["masked"].tolist() == [3, 2, 1, 0]
    cosine = torch.cosine_similarity(h[0], h[4:].unsqueeze(0), dim=-1)[0] / 0.05
    assert rows["loss"][0].item() == pytest.approx(float(cosine[[0, 3]].logsumexp(0) - cosine[0]), rel=1e-4)
    kept = Contrast(mask_duplicates=False).rows(given)
    assert kept["masked"].sum() == 0 and kept["loss"][0] > rows["loss"][0]


def test_pieces_joined_are_the_step_as_a_whole() -> None:
    """Negatives come after all positives and stay with their queries."""
    q, p = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(5))
    n = torch.randn(3, 6, generator=torch.Generator().manual_seed(6))
    whole = sides(q, p, n, [1, 2, 4])
    keys = {"query_keys": torch.arange(5), "positive_keys": torch.arange(5, 10), "negative_keys": torch.arange(10, 13)}
    cuts = [(slice(0, 2), slice(0, 1), [1]), (slice(2, 2), slice(1, 1), []), (slice(2, 5), slice(1, 3), [0, 2])]
    parts = [
        Sides(
            q[own], p[own], n[hard], torch.tensor(owners, dtype=torch.long),
            keys["query_keys"][own], keys["positive_keys"][own], keys["negative_keys"][hard],
        )
        for own, hard, owners in cuts
    ]  # fmt: skip
    for ours, theirs in zip(Sides.joined(parts), whole, strict=True):
        assert torch.equal(ours, theirs)


def test_cosines_are_not_rounded_where_the_model_is() -> None:
    q, p = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(7))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses(q, p)
    torch.testing.assert_close(rounded, losses(q, p), rtol=1e-6, atol=0)


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
@pytest.mark.parametrize("padding", ["right", "left", "between"])
def test_pooling_reads_real_tokens_wherever_padding_stands(pooling: Pooling, padding: str) -> None:
    states = [torch.randn(n, 4) for n in (3, 5, 1)]
    noise = torch.full((2, 4), 1e6)
    order = {"right": [0, 1, 2, -1], "left": [-1, 0, 1, 2], "between": [1, -1, 2, 0]}[padding]
    hidden = torch.cat([noise if i < 0 else states[i] for i in order])[None]
    texts = torch.cat([torch.full((len(noise if i < 0 else states[i]),), i) for i in order])[None]
    expected = {"mean": lambda s: s.mean(0), "last": lambda s: s[-1], "first": lambda s: s[0]}[pooling]
    torch.testing.assert_close(pool(hidden, texts, pooling), torch.stack([expected(s) for s in states]))


TEXTS = [torch.randint(64, (n,), generator=torch.Generator().manual_seed(n)).numpy() for n in range(2, 20)]


def piece(queries: Sequence[int], positives: Sequence[int], negatives: Sequence[tuple[int, int]] = ()) -> Batch:
    """A piece of texts by number; negatives as (owner, text)."""
    chosen = [*queries, *positives, *(text for _, text in negatives)]
    owners = torch.tensor([owner for owner, _ in negatives], dtype=torch.long)
    return {**packed_texts([TEXTS[i] for i in chosen]), "owners": owners, "keys": torch.tensor(chosen)}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
def test_packed_texts_have_the_vectors_that_each_has_alone(pooling: Pooling, causal: bool) -> None:
    model = tiny_model(dropout=0.0)
    model.model.config = replace(model.config, causal=causal)
    together = encode(model, piece(range(9), range(9, 18)), pooling)
    for i, ids in enumerate(TEXTS):
        hidden = model(torch.from_numpy(ids)[None], head=lambda states, weight: states)[0]
        expected = {"mean": hidden.mean(0), "last": hidden[-1], "first": hidden[0]}[pooling]
        torch.testing.assert_close(together[i], expected, atol=1e-5, rtol=1e-4)


def test_two_views_of_a_text_differ_by_dropout_alone() -> None:
    twice = piece([3, 4], [3, 4])
    for dropout, same in ((0.1, False), (0.0, True)):
        model = tiny_model(dropout=dropout).train()
        vectors = encode(model, twice, "mean")
        assert torch.allclose(vectors[:2], vectors[2:], atol=1e-6) is same
        again = encode(model.eval(), twice, "mean")
        assert torch.allclose(again[:2], again[2:], atol=1e-6)


def gradients(contrast: Contrast, pieces: Sequence[Batch], dropout: float, cached: bool) -> tuple[list[Tensor], float]:
    """Of the summed loss of a step: by the way the loop goes, or with every piece's graph held at once."""
    model = tiny_model(dropout=dropout).train()
    rounds = [(one, 1.0) for one in pieces]
    if cached:
        torch.manual_seed(7)
        with torch.no_grad():
            rounds = contrast.look_ahead(model, rounds, OneProcess())
        torch.manual_seed(7)
        loss = 0.0
        for one, _ in rounds:
            found = contrast(model, one)
            found.total.backward()
            loss += float(found.sums["loss"])
    else:
        torch.manual_seed(7)
        whole = Sides.joined([Sides.of(encode(model, one, contrast.pooling), one) for one in pieces])
        total = contrast.rows(whole)["loss"].sum()
        total.backward()
        loss = float(total.detach())
    return [p.grad for p in model.parameters() if p.grad is not None], loss


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_cached_gradients_are_those_of_the_whole_step(dropout: float) -> None:
    """Pieces of different sizes, with and without hard negatives; dropout draws the same both times."""
    pieces = [piece([0, 1], [2, 3], [(1, 4)]), piece([5], [6]), piece([7, 8, 9], [10, 11, 2], [(2, 12), (0, 13)])]
    contrast = Contrast(negative_weight=0.3)
    for ours, theirs in ((gradients(contrast, pieces, dropout, True), gradients(contrast, pieces, dropout, False)),):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
        largest = max(float(g.abs().max()) for g in theirs[0])
        for a, b in zip(ours[0], theirs[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6 * largest, rtol=1e-4)
    apart = sum(gradients(contrast, [one], 0.0, False)[1] for one in pieces)
    assert abs(apart - gradients(contrast, pieces, 0.0, False)[1]) > 0.1  # a step is more than its pieces


def test_cached_gradients_hold_one_piece_at_a_time() -> None:
    """Bytes that autograd keeps at once, while pieces follow each other as in the loop."""
    pieces = [piece([i], [i + 6]) for i in range(6)]
    held, most = 0, 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held, most
        held += tensor.nbytes
        most = max(most, held)
        return tensor

    contrast, model = Contrast(), tiny_model(dropout=0.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        contrast(model, piece(range(6), range(6, 12))).total.backward()
        whole, held, most = most, 0, 0
        for one, _ in contrast.look_ahead(model, [(one, 1.0) for one in pieces], OneProcess()):
            contrast(model, one).total.backward()
            held = 0
    assert 0 < most < whole / 2


class Pairs:
    """Texts and, as their positives, others; the same in every epoch."""

    def __init__(self, micro: int) -> None:
        self.micro = micro

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        own = list(range(8))[rank::world]
        return [
            piece(part, [i + 8 for i in part])
            for part in (own[i : i + self.micro] for i in range(0, len(own), self.micro))
        ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_learns_which_texts_belong_together(precision: str, tmp_path: Path) -> None:
    config = LoopConfig(steps=25, precision=precision)  # type: ignore[arg-type]
    last = train(tiny_model(dropout=0.0), Pairs(3), Contrast(), config, tmp_path, quiet=True)
    assert last["loss"] < 0.1 and last["accuracy"] == 1.0 and last["count"] == 8  # a guess has ln 8 = 2.08


def test_the_loop_draws_the_same_dropout_when_a_piece_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*given: Any) -> Tensor:
        seen.append(encode(*given))
        return seen[-1]

    monkeypatch.setattr(contrastive, "encode", spy)
    train(tiny_model(dropout=0.3), Pairs(3), Contrast(), LoopConfig(steps=1), tmp_path, quiet=True)
    assert len(seen) == 6
    for first, again in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first, again, atol=1e-5, rtol=1e-4)


def test_a_step_in_pieces_is_the_step_as_a_whole(tmp_path: Path) -> None:
    runs = []
    for micro in (8, 3):
        model = tiny_model(dropout=0.0)
        last = train(model, Pairs(micro), Contrast(), LoopConfig(steps=3), tmp_path / str(micro), quiet=True)
        runs.append((last, model))
    (whole, first), (pieces, second) = runs
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
