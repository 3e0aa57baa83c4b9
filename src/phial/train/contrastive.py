"""The contrastive objective (InfoNCE as SimCSE has it, arXiv 2104.08821; phi3-spec §9.1): a text's partner among all.

Each query is to be nearer, by cosine, to its positive than to the positives of the step's other queries and to all hard
negatives. The loss of one query therefore depends on every text of the step, over all processes. Where these are run
in pieces, their vectors are computed first, without gradients; the loss gives the gradient of each vector, and the
pieces are run once more to carry it on (GradCache, arXiv 2101.06983): memory is that of a piece, the gradient that of
the whole step.

Shapes: Q queries and as many positives, K hard negatives, M = 2 Q + K texts, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from phial.train.objective import Batch, Loss

if TYPE_CHECKING:
    from phial.train.processes import Processes

Pooling = Literal["mean", "last", "first"]
Round = tuple[Batch, float]
TEMPERATURE = 0.05
_SUMS = ("loss", "accuracy", "masked")


class Sides(NamedTuple):
    """Vectors of both sides, and whose they are.

    Attributes:
        queries: (Q, D). positives: (Q, D), each that of the query with its number. negatives: (K, D).
        owners: (K,), the query that each negative was given for.
        query_keys, positive_keys, negative_keys: equal where the texts are.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    owners: Tensor
    query_keys: Tensor
    positive_keys: Tensor
    negative_keys: Tensor

    @classmethod
    def of(cls, vectors: Tensor, batch: Batch) -> Sides:
        """The sides of a piece whose M texts are its queries, then their positives, then the negatives."""
        n = (len(vectors) - len(batch["owners"])) // 2
        queries, positives, negatives = vectors.tensor_split([n, 2 * n])
        return cls(queries, positives, negatives, batch["owners"], *batch["keys"].tensor_split([n, 2 * n]))

    @classmethod
    def joined(cls, parts: Sequence[Sides]) -> Sides:
        """Those of all parts in order, negatives staying with their queries."""
        starts = torch.tensor([0, *(len(part.queries) for part in parts[:-1])]).cumsum(0)
        columns = [torch.cat(values) for values in zip(*parts, strict=True)]
        owners = [part.owners + int(start) for part, start in zip(parts, starts, strict=True)]
        columns[cls._fields.index("owners")] = torch.cat(owners)
        return cls(*columns)

    def gathered(self, gather: Callable[[Tensor], list[Tensor]]) -> list[Sides]:
        """Those of every process."""
        return [type(self)(*columns) for columns in zip(*map(gather, self), strict=True)]

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries, self.positives, self.negatives


class Contrast:
    """InfoNCE in nats, summed over queries; one direction, cosines over a temperature.

    A batch holds "tokens" and "texts", (B, T), the number of the text of each token, -1 for padding, each text's tokens
    side by side; "owners", (K,); "keys", (M,). Sides.of() says what they mean.

    Args:
        pooling: of a text's last hidden states: their mean, the last one, the first one.
        negative_weight: is added to the logit of a query's own hard negatives.
        mask_duplicates: leave out columns that are no negatives: texts equal to the query's positive, positives of an
            equal query.
    """

    def __init__(
        self,
        pooling: Pooling = "mean",
        temperature: float = TEMPERATURE,
        negative_weight: float = 0.0,
        mask_duplicates: bool = True,
    ) -> None:
        self.pooling, self.temperature = pooling, temperature
        self.negative_weight, self.mask_duplicates = negative_weight, mask_duplicates

    def count(self, batch: Batch) -> int:
        """Its queries."""
        return (len(batch["keys"]) - len(batch["owners"])) // 2

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The sums over a piece: by the gradient that look_ahead() put beside it, else among its own texts alone.

        Sums: "loss"; "accuracy", queries whose positive is the nearest; "masked", columns left out.
        """
        vectors = encode(model, batch, self.pooling)
        if "gradient" in batch:
            return Loss((vectors * batch["gradient"]).sum(), {name: batch[name] for name in _SUMS})
        rows = self.rows(Sides.of(vectors, batch))
        return Loss(rows["loss"].sum(), {name: values.detach().sum() for name, values in rows.items()})

    @torch.no_grad()
    def look_ahead(self, model: nn.Module, rounds: Sequence[Round], processes: Processes) -> list[Round]:
        """Put beside each piece its part of the whole step's loss, and the gradient of that by the piece's vectors."""
        if processes.world == 1 and len(rounds) == 1:
            return list(rounds)
        pieces = [Sides.of(encode(model, piece, self.pooling), piece) for piece, _ in rounds]
        counted = [sides if weight else _none_of(sides) for sides, (_, weight) in zip(pieces, rounds, strict=True)]
        everyone = Sides.joined(counted).gathered(processes.gathered)
        rows, gradients = self._with_gradients(Sides.joined(everyone))
        start = [sum(len(s.vectors[side]) for s in everyone[: processes.rank]) for side in range(3)]
        found = list[Round]()
        for sides, (piece, weight) in zip(counted, rounds, strict=True):
            stop = [at + len(vectors) for at, vectors in zip(start, sides.vectors, strict=True)]
            own = [g[a:b] for g, a, b in zip(gradients, start, stop, strict=True)]
            sums = {name: values[start[0] : stop[0]].sum() for name, values in rows.items()}
            gradient = torch.cat(own) if weight else torch.zeros(len(piece["keys"]), 1, device=own[0].device)
            found.append(({**piece, "gradient": gradient, **sums}, weight))
            start = stop
        return found

    def _with_gradients(self, sides: Sides) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        with torch.enable_grad():
            leaves = [vectors.requires_grad_() for vectors in sides.vectors]
            rows = self.rows(sides)
            gradients = torch.autograd.grad(rows["loss"].sum(), leaves, allow_unused=True, materialize_grads=True)
        return {name: values.detach() for name, values in rows.items()}, gradients

    def rows(self, sides: Sides) -> dict[str, Tensor]:
        """Loss, accuracy and masked columns of each query, (Q,)."""
        with torch.autocast(sides.queries.device.type, enabled=False):  # bfloat16 is too coarse for cosines over 0.05
            documents = torch.cat([sides.positives, sides.negatives])
            logits = cosines(sides.queries, documents) / self.temperature
            n = len(sides.queries)
            own = torch.arange(n, device=logits.device)
            if self.negative_weight:
                weights = torch.zeros_like(logits)
                weights[sides.owners, n + torch.arange(len(sides.owners), device=logits.device)] = self.negative_weight
                logits = logits + weights
            masked = duplicates(sides) if self.mask_duplicates else torch.zeros_like(logits, dtype=torch.bool)
            logits = logits.masked_fill(masked, -torch.inf)
            loss = functional.cross_entropy(logits, own, reduction="none")
            return {"loss": loss, "accuracy": (logits.argmax(1) == own).float(), "masked": masked.sum(1).float()}


def cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """(Q, D) and (C, D) to (Q, C)."""
    return functional.normalize(queries, dim=-1) @ functional.normalize(documents, dim=-1).mT


def duplicates(sides: Sides) -> Tensor:
    """(Q, Q + K) bool: documents that another row gave and that answer the query all the same.

    Those whose text is that of its positive, and positives of queries with its text.
    """
    documents = torch.cat([sides.positive_keys, sides.negative_keys])
    same = documents[None] == sides.positive_keys[:, None]
    asked = sides.query_keys[None] == sides.query_keys[:, None]
    n = len(sides.query_keys)
    same[:, :n] |= asked
    same[:, :n].fill_diagonal_(False)
    return same


def encode(model: nn.Module, batch: Batch, pooling: Pooling) -> Tensor:
    """The vectors of a batch's texts, (M, D) float32, not normalised."""
    hidden = model(batch["tokens"], documents=batch["texts"], head=lambda states, weight: states)
    return pool(hidden, batch["texts"], pooling)


def pool(hidden: Tensor, texts: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states (B, T, D) to one vector for each text, (M, D) float32.

    Args:
        texts: (B, T), the number of each token's text, 0..M-1, -1 for padding. Tokens are found by it alone, so padding
            may stand anywhere.
    """
    real = texts.flatten() >= 0
    states, texts = hidden.flatten(0, 1)[real].float(), texts.flatten()[real]
    count = int(texts.max()) + 1
    if pooling == "mean":
        sums = states.new_zeros(count, states.shape[1]).index_add(0, texts, states)
        return sums / texts.bincount(minlength=count)[:, None]
    place = torch.arange(len(texts), device=texts.device)
    which = "amax" if pooling == "last" else "amin"
    return states[place.new_zeros(count).scatter_reduce(0, texts, place, which, include_self=False)]


def _none_of(sides: Sides) -> Sides:
    return Sides(*(column[:0] for column in sides))
