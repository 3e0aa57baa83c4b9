"""What a model in training would answer, for a glance at a few prompts: always the likeliest token.

Without a cache: every token runs everything before it again, packed into one row. Generation is the engine's work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.no_grad()
def greedy_answers(
    model: nn.Module, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]
) -> list[list[int]]:
    """Token ids that follow each prompt, `most` of them or up to one of `ends`, which is left out."""
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(most):
        rows = [[*prompts[i], *answers[i]] for i in going]
        sizes = torch.tensor([len(row) for row in rows])
        last = (sizes.cumsum(0) - 1).to(device)
        tokens = torch.tensor([id for row in rows for id in row], device=device)
        documents = torch.arange(len(rows)).repeat_interleave(sizes).to(device)

        def logits(hidden: Tensor, weight: Tensor, last: Tensor = last) -> Tensor:
            return functional.linear(hidden[0, last], weight)

        found = model(tokens[None], documents=documents[None], head=logits).argmax(-1).tolist()
        for i, token in zip(going, found, strict=True):
            if token not in ends:
                answers[i].append(token)
        going = [i for i, token in zip(going, found, strict=True) if token not in ends]
        if not going:
            break
    return answers
