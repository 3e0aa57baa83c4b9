"""Packing: every target once an epoch, documents apart, and a batch that is a function of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.test_loop import TINY

from phial.errors import ArgumentError
from phial.model.transformer import Transformer
from phial.train.objective import IGNORED, NextToken
from phial.train.packed import Packed, Phase, count_windows, permuted, row_of, stacked


class Tokens:
    """Documents in memory; token i of the whole has the id i, so that every target says where it came from."""

    def __init__(self, lengths: list[int]) -> None:
        self.documents = np.repeat(np.arange(len(lengths)), lengths)
        self.tokens = np.arange(len(self.documents))
        self.n_tokens = len(self.tokens)

    def window(self, position: int, n: int):
        assert 0 <= position <= self.n_tokens - n - 1
        return self.tokens[position : position + n + 1], self.documents[position : position + n + 1]


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def _targets(data: Packed, steps: range, world: int = 1) -> list[list[int]]:
    """The targets of each step, as the ids that they are."""
    return [
        [
            int(target)
            for rank in range(world)
            for piece in data.micro_batches(step, rank, world)
            for target in piece["targets"].flatten()
            if target != IGNORED
        ]
        for step in steps
    ]


@given(lengths=LENGTHS, n=st.integers(1, 8), batch=st.integers(1, 5), epochs=st.integers(1, 3), shuffle=st.booleans())
@settings(max_examples=80, deadline=None)
def test_an_epoch_has_every_target_once(lengths: list[int], n: int, batch: int, epochs: int, shuffle: bool) -> None:
    source = Tokens(lengths)
    if source.n_tokens <= n:
        with pytest.raises(ArgumentError):
            count_windows(source, n, "phase")
        return
    windows = count_windows(source, n, "phase")
    data = Packed([Phase("phase", source, epochs * windows)], n, batch, 2, shuffle=shuffle)
    found = [target for step in _targets(data, range(data.steps[0])) for target in step]
    firsts = set(np.cumsum([0, *lengths]).tolist())  # the first token of a document is nobody's target
    assert sorted(found) == sorted([i for i in range(source.n_tokens) if i not in firsts] * epochs)


def test_an_input_stands_before_its_target() -> None:
    row = row_of(Tokens([5, 4, 7]), 1, 6)
    for token, target in zip(row[0].tolist(), row[1].tolist(), strict=True):
        assert target in (IGNORED, token + 1)


def test_phases_follow_one_another_at_the_step() -> None:
    first, second = Tokens([50]), Tokens([40])
    second.tokens = second.tokens + 1000
    data = Packed([Phase("a", first, 10), Phase("b", second, 7)], 5, 4, 4)
    assert data.steps == [3, 2]
    steps = _targets(data, range(5))
    assert [min(step) >= 1000 for step in steps] == [False, False, False, True, True]
    assert [max(step) >= 1000 for step in steps] == [False, False, False, True, True]
    assert [len(data.windows_of(step)[1]) for step in range(5)] == [3, 3, 4, 3, 4]  # evenly: no step has a lone window


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_a_batch(world: int) -> None:
    data = Packed([Phase("phase", Tokens([7] * 20), 26)], 6, 8, 3)
    for step in range(data.steps[0]):
        assert _targets(data, range(step, step + 1), world) == _targets(data, range(step, step + 1))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_a_permutation_is_one_and_is_mixed(size: int) -> None:
    order = [permuted(i, size, "0 0 0") for i in range(size)]
    assert sorted(order) == list(range(size))
    if size == 1000:
        assert order != [permuted(i, size, "0 0 1") for i in range(size)]
        assert abs(np.corrcoef(order, range(size))[0, 1]) < 0.1


def _packed_row() -> dict[str, torch.Tensor]:
    """Three documents in one window: 5, 7 and 4 inputs."""
    source = Tokens([5, 7, 5])
    return dict(stacked([row_of(source, 0, 16)]))


@torch.no_grad()
def _losses(model: Transformer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["tokens"], documents=batch["documents"])
    return torch.nn.functional.cross_entropy(logits[0], batch["targets"][0], ignore_index=IGNORED, reduction="none")


def test_no_token_of_a_document_reaches_another() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY), _packed_row()
    before, owner = _losses(model, batch), batch["documents"][0]
    for place in range(16):
        changed = {name: values.clone() for name, values in batch.items()}
        changed["tokens"][0, place] = (changed["tokens"][0, place] + 31) % 64
        moved = _losses(model, changed) != before
        after = (owner == owner[place]) & (torch.arange(16) >= place)
        assert torch.equal(moved, after & (batch["targets"][0] != IGNORED))


@torch.no_grad()
def test_a_packed_document_computes_what_it_computes_alone() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY), _packed_row()
    packed = model(batch["tokens"], documents=batch["documents"])
    for low, high in ((0, 5), (5, 12), (12, 16)):
        alone = model(batch["tokens"][:, low:high])
        torch.testing.assert_close(packed[:, low:high], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_loss_of_a_window_is_that_of_its_documents() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY), _packed_row()
    total = float(NextToken()(model, batch).total)
    alone = 0.0
    for low, high in ((0, 5), (5, 12), (12, 16)):
        part = {name: values[:, low:high] for name, values in batch.items()}
        alone += float(NextToken()(model, {"tokens": part["tokens"], "targets": part["targets"]}).total)
    assert total == pytest.approx(alone, rel=1e-5)
