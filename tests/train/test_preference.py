"""Losses of preferences: closed forms, a step against the formulas written out over transformers, prompts untouched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny
from torch import Tensor
from torch.nn import functional

from phial.gguf.formats import GGMLType
from phial.train.chat_packing import Example, example_of
from phial.train.objective import IGNORED
from phial.train.pair_batches import PairBatches
from phial.train.pair_encoding import PairExample, encode_pairs, shared_tokens
from phial.train.pairs import Pair
from phial.train.preference import Preference, answer_log_probs, preference_loss
from phial.train.start import Start, export, open_start


def pair(prompt: str, chosen: str, rejected: str, *before: str, row: int = 1) -> Pair:
    """A pair; before: turns that come before the prompt, the user's first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*before, prompt])]
    sides = ([*turns, {"role": "assistant", "content": answer}] for answer in (chosen, rejected))
    return Pair(*sides, where=f"pairs.jsonl, row {row}")


PAIRS = [
    pair("he?", "a time", "the end of it"),
    pair("and?", "she, in the time", "to", "once?", "the"),
    pair("upon a time", "to the", "it it it it it it"),
    pair("a", "he", "", row=4),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    torch.set_num_threads(1)
    return open_start(write_tiny(tmp_path_factory.mktemp("dpo") / "tiny.gguf", "phi3", GGMLType.F32))


def examples(start: Start, pairs: Sequence[Pair] = PAIRS) -> list[PairExample]:
    import datetime

    return encode_pairs(pairs, start, 96, datetime.date(2026, 1, 1), "stop").examples


@pytest.mark.parametrize(
    ("kind", "beta", "smoothing", "u", "loss"),
    [
        ("dpo", 0.1, 0.0, 0.0, math.log(2)),
        ("dpo", 0.5, 0.2, 0.0, math.log(2)),
        ("dpo", 0.1, 0.0, 1.0, 0.644397),
        ("dpo", 0.1, 0.0, -1.0, 0.744397),  # the pair swapped: u's sign, 0.1 more
        ("dpo", 0.1, 0.25, 1.0, 0.75 * 0.644397 + 0.25 * 0.744397),
        ("ipo", 0.1, 0.0, 0.0, 25.0),
        ("ipo", 0.1, 0.0, 1.0, 16.0),
        ("ipo", 0.1, 0.0, 5.0, 0.0),
    ],
)
def test_closed_forms(kind: Any, beta: float, smoothing: float, u: float, loss: float) -> None:
    found = preference_loss(torch.tensor([u]), kind, beta, smoothing)
    assert float(found) == pytest.approx(loss, abs=1e-6)


def test_what_is_learnt_is_the_last_answer_and_its_end_alone(start: Start) -> None:
    first, second, *_ = examples(start)
    text = start.tokenizer
    for example, chosen, rejected in ((first, "a time", "the end of it"), (second, "she, in the time", "to")):
        for side, answer in ((example.chosen, chosen), (example.rejected, rejected)):
            learnt = side.targets[side.targets != IGNORED].tolist()
            assert learnt == [*text.encode(answer, add_bos=False), text.special_tokens["<|end|>"]]


def test_what_both_sides_begin_with_is_shared_up_to_the_prompts_last_token() -> None:
    def side(*ids: int) -> Example:
        return example_of(ids, [i >= 3 for i in range(len(ids))])

    assert shared_tokens(side(5, 6, 7, 8), side(5, 6, 7, 8, 9)) == 2
    assert shared_tokens(side(5, 6, 7, 8), side(5, 3, 7, 8)) == 1  # the prompt's tokens differ: an answer joined to it
    assert shared_tokens(side(5, 6, 7, 8), side(5, 6, 7, 8, 9), turn=3) == 0  # sides of 3 and 4 tokens turn otherwise
    assert shared_tokens(side(5, 6, 7, 8), side(5, 6, 7, 8, 9), turn=4) == 2


class _Noted(PairBatches):
    """With a reference that is not the model's."""

    def noted(self) -> PairBatches:
        self.reference[:] = -np.random.default_rng(0).random(len(self.reference), np.float32) * 5
        return self


def _written_out(start: Start, pairs: Sequence[Pair], data: PairBatches, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Policy, reference and lengths by side, (P, 2), each side alone: the answer's tokens found by their prompt."""
    policy, reference, lengths = [], [], []
    for number, one in enumerate(pairs):
        known = torch.from_numpy(data.reference[data.tokens_of(number)])
        for messages in (one.chosen, one.rejected):
            ids = start.template.encode(messages, start.tokenizer, add_generation_prompt=False)
            first = len(start.template.encode(messages[:-1], start.tokenizer))
            end = next(i for i in range(first, len(ids)) if ids[i] == start.tokenizer.special_tokens["<|end|>"])
            logits = model(torch.tensor([ids])).logits[0, first - 1 : end]
            answer = torch.tensor(ids[first : end + 1])
            policy.append(logits.log_softmax(-1).gather(1, answer[:, None]).sum())
            reference.append(known[: len(answer)].sum())
            lengths.append(float(len(answer)))
            known = known[len(answer) :]
    return torch.stack(policy).view(-1, 2), torch.stack(reference).view(-1, 2), torch.tensor(lengths).view(-1, 2)


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"kind": "ipo"}, {"length_normalised": True, "beta": 2.0}, {"sft_weight": 0.7}],
)
def test_a_steps_loss_rewards_and_gradient_are_those_written_out_over_transformers(
    options: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export(start, start.model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    data = _Noted(examples(start), 4, 70).noted()
    policy, reference, lengths = _written_out(start, PAIRS, data, theirs)
    divisor = lengths if options.get("length_normalised") else torch.ones_like(lengths)
    ratio, beta, eps = (policy - reference) / divisor, options.get("beta", 0.1), options.get("label_smoothing", 0.0)
    u = ratio[:, 0] - ratio[:, 1]
    wanted = -(1 - eps) * functional.logsigmoid(beta * u) - eps * functional.logsigmoid(-beta * u)
    if options.get("kind") == "ipo":
        wanted = (u - 1 / (2 * beta)) ** 2
    total = wanted.sum() + options.get("sft_weight", 0.0) * (-policy[:, 0] / lengths[:, 0]).sum()
    total.backward()

    start.model.zero_grad()
    start.model.train()
    objective, sums = Preference(**options), dict[str, float]()
    rows = data.micro_batches(0)
    assert len(rows) > 1 and any(len(batch["pairs"]) > 1 for batch in rows)
    for batch in rows:
        loss = objective(start.model, batch)
        loss.total.backward()
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in loss.sums.items()}
    assert sum(objective.count(batch) for batch in rows) == 4
    expected = {
        "loss": wanted.sum(),
        "rewards/chosen": beta * ratio[:, 0].sum(),
        "rewards/rejected": beta * ratio[:, 1].sum(),
        "rewards/margin": beta * u.sum(),
        "rewards/accuracy": (u > 0).sum(),
        "log_probs/chosen": (policy / lengths)[:, 0].sum(),
        "length/rejected": lengths[:, 1].sum(),
        "length/preferred": torch.where(u > 0, lengths[:, 0], lengths[:, 1]).sum(),
    }
    for name, value in expected.items():
        assert sums[name] == pytest.approx(float(value.detach()), rel=1e-4, abs=1e-4), name
    for (name, p), (other, q) in zip(
        sorted(start.model.named_parameters()), sorted(theirs.named_parameters()), strict=True
    ):
        assert name == other and p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4 * float(q.grad.abs().max()), rtol=1e-3)
    start.model.zero_grad()


def test_kl_is_a_mean_over_the_tokens_of_both_answers_never_negative(start: Start) -> None:
    """k3 of Schulman: r - 1 - log r with r = pi / ref; summed over pairs, as all that is logged."""
    (batch,) = _Noted(examples(start), 4, 200).noted().micro_batches(0)
    with torch.no_grad():
        found = Preference()(start.model, batch).sums["kl"]
        log_r = (answer_log_probs(start.model, batch) - batch["reference"]).double()
    by_pair = [log_r[(batch["targets"] != IGNORED) & (batch["documents"] == i)] for i in range(len(PAIRS))]
    assert float(found) == pytest.approx(sum(float((d.exp() - 1 - d).mean()) for d in by_pair), rel=1e-4)
    assert all(len(d) and (d.exp() - 1 - d >= 0).all() for d in by_pair)


def test_prompt_tokens_have_no_gradient(start: Start) -> None:
    """Logits at every place that predicts a token of the prompt: their gradient is 0; at the others it is not."""
    data = _Noted(examples(start), 4, 200).noted()
    (batch,) = data.micro_batches(0)
    kept: list[Tensor] = []

    class Hidden(torch.nn.Module):
        def forward(self, tokens: Tensor, documents: Tensor, head: Any, branches: Tensor) -> Any:
            def noting(hidden: Tensor, weight: Tensor) -> Any:
                kept.append(hidden.detach().requires_grad_())
                return head(kept[-1], weight)

            return start.model(tokens, documents=documents, head=noting, branches=branches)

    Preference()(Hidden(), batch).total.backward()
    moved = kept[0].grad.abs().sum(-1) > 0
    answered = torch.zeros_like(moved)
    done = 0
    for one in (PAIRS[i] for i in batch["pairs"]):
        done += len(start.template.encode(one.chosen[:-1], start.tokenizer)) - 1
        for messages in (one.chosen, one.rejected):
            answer = len(start.tokenizer.encode(messages[-1]["content"], add_bos=False)) + 1
            answered[0, done : done + answer] = True
            done += answer
    assert done == answered.numel()  # every prompt once but for its last token
    assert torch.equal(moved, answered) and not answered.all()


def test_pairs_and_chats_of_a_step_are_whole_and_each_is_read_once_an_epoch(start: Start) -> None:
    chats = [example_of(range(5, 5 + n), [i > 1 for i in range(n)]) for n in (9, 30, 12)]
    data = PairBatches(examples(start) * 3, 5, 64, epochs=2.0, seed=3, chats=chats)
    assert data.steps == 5
    seen = [pair for step in range(data.steps) for pair in data.pairs_of(step)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
    learnt, scaled = 0, 0.0
    for step in range(data.steps):
        whole, shares = data.micro_batches(step), [b for r in range(2) for b in data.micro_batches(step, r, 2)]
        for batches in (whole, shares):
            given = [p for batch in batches if "pairs" in batch for p in batch["pairs"].tolist()]
            assert sorted(given) == sorted(data.pairs_of(step))
        for batch in whole:
            assert batch["tokens"].shape[0] == 1
            n = len(batch["pairs"]) if "pairs" in batch else 0
            width = max(64, data.pairs[batch["pairs"][0]].tokens) if n else 64
            assert batch["tokens"].shape[1] <= width
            if n:
                learnt_at = batch["targets"] != IGNORED
                sides = torch.stack([batch["documents"][learnt_at], batch["branches"][learnt_at]]).unique(dim=1)
                assert sides.T.tolist() == [[i, side] for i in range(n) for side in (1, 2)]
            else:
                learnt += int((batch["targets"] != IGNORED).sum())
                scaled += float(batch["scale"]) * int((batch["targets"] != IGNORED).sum())
    assert learnt == 2 * (7 + 28 + 10) and scaled == pytest.approx(
        sum(len(data.pairs_of(step)) for step in range(5) if any("scale" in b for b in data.micro_batches(step)))
    )


def test_chats_beside_pairs_are_a_mean_over_their_tokens(start: Start) -> None:
    chats = [Example(np.arange(5, 25, dtype=np.int32), np.arange(6, 26, dtype=np.int32))]
    data = _Noted(examples(start), 4, 200, chats=chats).noted()
    *_, batch = data.micro_batches(0)
    with torch.no_grad():
        loss = Preference(chats_weight=0.5)(start.model, batch)
        logits = start.model(batch["tokens"])[0]
    mean = functional.cross_entropy(logits, batch["targets"][0])
    assert float(loss.total) / 4 == pytest.approx(0.5 * float(mean), rel=1e-5)
    assert float(loss.sums["chats"]) / 4 == pytest.approx(float(mean), rel=1e-5) and float(loss.sums["loss"]) == 0
