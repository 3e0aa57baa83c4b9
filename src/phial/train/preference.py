"""What preference tuning makes smaller: DPO (arXiv 2305.18290), its conservative form, IPO (arXiv 2310.12036).

With u = [log pi(chosen) - log pi(rejected)] - [log ref(chosen) - log ref(rejected)], sums over the answers' tokens:

    dpo    -(1 - eps) log sigmoid(beta u) - eps log sigmoid(-beta u)      eps, label smoothing: cDPO
    ipo    (u - 1 / (2 beta))^2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from phial.train.log_probs import linear_log_probs
from phial.train.objective import IGNORED, Batch, Loss, NextToken

_LARGEST = 20.0  # of a log-ratio whose exponential is logged


class Seen(NamedTuple):
    """What a micro-batch showed of its pairs, detached.

    Attributes:
        pairs: their numbers, (P,).
        ratio: log pi - log ref a token of both sides, nats, (P, 2). rewards: of both, (P, 2).
    """

    pairs: Tensor
    ratio: Tensor
    rewards: Tensor


def preference_loss(u: Tensor, kind: Literal["dpo", "ipo"], beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair from its u, see above."""
    if kind == "ipo":
        return (u - 1 / (2 * beta)).square()
    right, wrong = functional.logsigmoid(beta * u), functional.logsigmoid(-beta * u)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of each target, (1, T), 0 where there is none."""
    head = partial(linear_log_probs, targets=batch["targets"])
    found: Tensor = model(batch["tokens"], documents=batch["documents"], head=head, branches=batch["branches"])
    return found


class Preference:
    """The objective over rows of pairs and of chats, as pair_batches.py makes them. It counts pairs.

    Args:
        length_normalised: log-probabilities are means over an answer's tokens, in the loss and in rewards.
        sft_weight: of the chosen answers' cross-entropy, the mean over pairs of means over tokens.
        chats_weight: of the chats' cross-entropy, the mean over a step's learnt tokens.
        watch: is called with what each micro-batch of pairs showed.

    Logged, as means over pairs: "loss" of the preferences alone; "rewards/..." beta (log pi - log ref) of a side, their
    margin, and how often the chosen side has the higher one; "log_probs/..." and "ratio/..." (log pi - log ref) nats a
    token; "length/..." tokens and "repetition/..." of answers, "preferred" being the one with the higher reward, both
    by half where none is higher; "kl", nats a token, the estimate k3 of KL(ref || pi): the mean of r - 1 - log r with
    r = pi / ref over the tokens of both answers, unbiased where the reference itself wrote them; "sft" and "chats", the
    cross-entropies.
    """

    def __init__(
        self,
        kind: Literal["dpo", "ipo"] = "dpo",
        beta: float = 0.1,
        *,
        label_smoothing: float = 0.0,
        length_normalised: bool = False,
        sft_weight: float = 0.0,
        chats_weight: float = 0.0,
        watch: Callable[[Seen], None] | None = None,
    ) -> None:
        self.kind, self.beta, self.label_smoothing = kind, beta, label_smoothing
        self.length_normalised, self.sft_weight, self.chats_weight = length_normalised, sft_weight, chats_weight
        self.watch = watch

    def count(self, batch: Batch) -> int:
        return len(batch["pairs"]) if "pairs" in batch else 0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if "pairs" not in batch:
            nll = NextToken()(model, batch).total * batch["scale"]
            return Loss(self.chats_weight * nll, self._sums({"chats": nll.detach()}, nll.device))
        log_p = answer_log_probs(model, batch)
        n = 2 * len(batch["pairs"])
        learnt = batch["targets"] != IGNORED
        sides = (2 * batch["documents"] + batch["branches"] - 1)[learnt]

        def by_side(values: Tensor) -> Tensor:
            """Sums over the tokens of each side's answer, (P, 2)."""
            return torch.zeros(n, device=values.device).index_add(0, sides, values[learnt]).view(-1, 2)

        lengths = by_side(learnt.float())
        difference = log_p - batch["reference"]
        policy, ratio = by_side(log_p), by_side(difference)
        weighed = ratio / lengths if self.length_normalised else ratio
        losses = preference_loss(weighed[:, 0] - weighed[:, 1], self.kind, self.beta, self.label_smoothing)
        nll = -policy[:, 0] / lengths[:, 0]
        total = losses.sum() + self.sft_weight * nll.sum()
        with torch.no_grad():
            rewards, step = self.beta * weighed, difference.clamp(max=_LARGEST)
            kl = by_side(step.expm1() - step).sum(1) / lengths.sum(1)
            found = {"loss": losses, "kl": kl, "sft": nll, **_rewards(rewards)}
            for name, both in {"log_probs": policy / lengths, "ratio": ratio / lengths}.items():
                found |= {f"{name}/chosen": both[:, 0], f"{name}/rejected": both[:, 1]}
            for name, both in {"length": lengths, "repetition": batch["repetition"]}.items():
                found |= _traits(name, both, rewards)
            if self.watch is not None:
                self.watch(Seen(batch["pairs"], ratio / lengths, rewards))
            return Loss(total, self._sums({name: values.sum() for name, values in found.items()}, total.device))

    def _sums(self, found: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """All that is logged, in one order whatever the micro-batch is of; 0 for what it does not have."""
        names = [
            name for name in _NAMES if (name != "sft" or self.sft_weight) and (name != "chats" or self.chats_weight)
        ]
        return {name: found[name].detach() if name in found else torch.zeros((), device=device) for name in names}


_NAMES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "kl", "log_probs/chosen",
    "log_probs/rejected", "ratio/chosen", "ratio/rejected", "length/chosen", "length/rejected", "length/preferred",
    "repetition/chosen", "repetition/rejected", "repetition/preferred", "sft", "chats",
)  # fmt: skip


def _rewards(rewards: Tensor) -> dict[str, Tensor]:
    margin = rewards[:, 0] - rewards[:, 1]
    found = {"chosen": rewards[:, 0], "rejected": rewards[:, 1], "margin": margin, "accuracy": (margin > 0).float()}
    return {f"rewards/{name}": values for name, values in found.items()}


def _traits(name: str, both: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """A trait of both sides, and of that with the higher reward."""
    chosen = ((rewards[:, 0] - rewards[:, 1]).sign() + 1) / 2
    preferred = chosen * both[:, 0] + (1 - chosen) * both[:, 1]
    return {f"{name}/chosen": both[:, 0], f"{name}/rejected": both[:, 1], f"{name}/preferred": preferred}
