"""Preference pairs as training batches: whole pairs, several in a row, none seeing another, no padding.

A step has as many pairs as the configuration says. They are dealt into rows of about `row` tokens, each run alone, so
that no row is wider than what it holds; both sides of a pair stand in one row, as branches of the prompt, which is
computed once. All of it follows from the seed and the step: a run that goes on at step s needs s and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from phial.train.chat_packing import Example, best_fit, stacked_chats
from phial.train.objective import IGNORED, Batch
from phial.train.pair_encoding import PairExample

_PAIRS, _CHATS = 0, 1  # each is dealt in an order of its own


class PairBatches:
    """The batches of some epochs over pairs, and over chats learnt beside them.

    Args:
        batch: most pairs of a step, over all processes.
        row: tokens of a row at most, but for a pair that is longer and stands alone.
        epochs: how often each pair is read, in part where it is no whole number; each chat likewise.
        shuffle: False reads pairs in their order.

    Attributes:
        reference: the reference's log-probability of each answer's tokens, chosen then rejected, pair after pair; to be
            filled in (reference.py).
        steps: of all epochs. visits: pairs of all epochs.
    """

    def __init__(
        self,
        pairs: Sequence[PairExample],
        batch: int,
        row: int,
        *,
        epochs: float = 1.0,
        seed: int = 0,
        shuffle: bool = True,
        chats: Sequence[Example] = (),
    ) -> None:
        self.pairs, self.chats, self.row, self.seed, self.shuffle = list(pairs), list(chats), row, seed, shuffle
        self.visits = max(1, round(epochs * len(self.pairs)))
        self.chat_visits = round(epochs * len(self.chats))
        self.steps = -(-self.visits // batch)
        counts = [answer_tokens(side) for pair in self.pairs for side in (pair.chosen, pair.rejected)]
        self.places = np.concatenate([[0], np.cumsum(counts)])
        self.reference: NDArray[np.float32] = np.full(self.places[-1], np.nan, np.float32)

    def pairs_of(self, step: int) -> list[int]:
        """The pairs of a step, over all processes."""
        return self._visited(step, self.visits, len(self.pairs), _PAIRS)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """Process `rank`'s rows of a step: pairs, then chats."""
        pairs, chats = self.pairs_of(step), self._visited(step, self.chat_visits, len(self.chats), _CHATS)
        own = pairs[rank * len(pairs) // world : (rank + 1) * len(pairs) // world]
        batches = [self.pair_row([own[i] for i in row]) for row in self._rows([self.pairs[p].tokens for p in own])]
        if chats:
            scale = len(pairs) / sum(answer_tokens(self.chats[chat]) for chat in chats)
            own = chats[rank * len(chats) // world : (rank + 1) * len(chats) // world]
            rows = self._rows([len(self.chats[chat].tokens) for chat in own])
            batches += [self._chat_row([own[i] for i in row], scale) for row in rows]
        return batches

    def pair_row(self, pairs: Sequence[int]) -> Batch:
        """A row: "tokens", "targets", "documents" and "branches", (1, T), document i being the row's pair i, its two
        branches chosen and rejected; "pairs" (P,), their numbers; "reference" (1, T), log-probabilities at the targets;
        "repetition" (P, 2)."""
        parts = [_branched(self.pairs[p], i) for i, p in enumerate(pairs)]
        names = ("tokens", "targets", "documents", "branches")
        arrays = (np.concatenate(part).astype(np.int64)[None] for part in zip(*parts, strict=True))
        batch = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        reference = torch.zeros(batch["targets"].shape)
        known = np.concatenate([self.reference[self.tokens_of(p)] for p in pairs])
        reference[batch["targets"] != IGNORED] = torch.from_numpy(known)
        traits = torch.tensor([self.pairs[p].repetition for p in pairs])
        return {**batch, "reference": reference, "pairs": torch.tensor(pairs), "repetition": traits}

    def tokens_of(self, pair: int) -> slice:
        """Where a pair's tokens stand in the reference."""
        return slice(int(self.places[2 * pair]), int(self.places[2 * pair + 2]))

    def _chat_row(self, chats: Sequence[int], scale: float) -> Batch:
        """A row of chats and their "scale": what makes the sum of losses a mean over the step, times its pairs."""
        return {**stacked_chats([[self.chats[chat] for chat in chats]]), "scale": torch.tensor(scale)}

    def _rows(self, lengths: Sequence[int]) -> list[list[int]]:
        return best_fit([min(length, self.row) for length in lengths], range(len(lengths)), self.row)

    def _visited(self, step: int, visits: int, size: int, stream: int) -> list[int]:
        """Which of `size` items a step visits: each epoch in another order, visits shared out evenly over the steps."""
        own = [divmod(v, size) for v in range(step * visits // self.steps, (step + 1) * visits // self.steps)]
        if not self.shuffle:
            return [place for _, place in own]
        seeds = {epoch: [self.seed, epoch, stream] for epoch, _ in own}
        orders = {epoch: np.random.default_rng(seed).permutation(size) for epoch, seed in seeds.items()}
        return [int(orders[epoch][place]) for epoch, place in own]


def _branched(pair: PairExample, document: int) -> tuple[NDArray[np.integer], ...]:
    """Tokens, targets, documents and branches of a pair."""
    (tokens, targets), (other_tokens, other_targets), shared = pair.chosen, pair.rejected, pair.shared
    sizes = [shared, len(tokens) - shared, len(other_tokens) - shared]
    return (
        np.concatenate([tokens, other_tokens[shared:]]),
        np.concatenate([targets, other_targets[shared:]]),
        np.full(sum(sizes), document),
        np.repeat(np.arange(3), sizes),
    )


def answer_tokens(example: Example) -> int:
    """How many tokens of an example are learnt."""
    return int((example.targets != IGNORED).sum())
