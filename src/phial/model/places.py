"""Where each token of a batch stands: in a row that is one sequence, or in one of several documents packed into it.

A document may branch: a trunk, then continuations of it that do not see one another, each as if it alone followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phial.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Places:
    """B rows of T tokens; a dimension of 1 stands for all.

    Attributes:
        positions: (B or 1, T), from 0 in each sequence; in a branch from where the trunk ends.
        lengths: (B or 1, T or 1), tokens in the sequence to which each token belongs: the trunk and its longest branch.
        documents: (B, T), the number of that sequence within its row; None where each row is one sequence.
        starts: (B, T), the index in the row where it begins; None with documents.
        branches: (B, T), 0 in a trunk, else the number of the branch; None where no document has any.
    """

    positions: Tensor
    lengths: Tensor
    documents: Tensor | None = None
    starts: Tensor | None = None
    branches: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        return self.positions.shape[1]


def token_places(
    tokens: Tensor,
    lengths: Sequence[int] | None = None,
    documents: Tensor | None = None,
    branches: Tensor | None = None,
) -> Places:
    """The places of tokens, (B, T); arguments and errors as Transformer.forward's."""
    if tokens.ndim != 2 or not tokens.numel():
        raise ArgumentError(f"tokens have shape {tuple(tokens.shape)}", "pass rows of token ids: (rows, tokens)")
    if documents is not None and lengths is not None:
        raise ArgumentError("lengths and documents were both given", "make padding a document of its own")
    if documents is None and branches is not None:
        raise ArgumentError("branches were given without documents", "each run of branches belongs to one")
    return _rows(tokens, lengths) if documents is None else _packed(tokens, documents, branches)


def _rows(tokens: Tensor, lengths: Sequence[int] | None) -> Places:
    n_rows, n_tokens = tokens.shape
    if lengths is not None and len(lengths) != n_rows:
        raise ArgumentError(f"{len(lengths)} lengths were given for {n_rows} rows", "pass one length for each row")
    lengths = [n_tokens] if lengths is None else lengths
    for row, length in enumerate(lengths):
        if not 1 <= length <= n_tokens:
            raise ArgumentError(f"length {length} of row {row} lies outside 1 to {n_tokens}, the tokens given")
    positions = torch.arange(n_tokens, device=tokens.device)[None]
    return Places(positions, torch.tensor(lengths, device=tokens.device)[:, None])


def _packed(tokens: Tensor, ids: Tensor, branches: Tensor | None) -> Places:
    if ids.shape != tokens.shape or ids.is_floating_point() or ids.device != tokens.device:
        given = f"shape {tuple(ids.shape)}, {ids.dtype}, on {ids.device}"
        raise ArgumentError(f"documents have {given}", f"pass an integer id for each token: {tuple(tokens.shape)}")
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    number = begins.cumsum(1) - 1
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    start = torch.where(begins, place, 0).cummax(1).values
    if branches is None:
        counts = torch.zeros_like(number).scatter_add(1, number, torch.ones_like(number))
        return Places(place - start, counts.gather(1, number), number, start)
    positions = _along_branches(branches, begins, number, place)
    longest = torch.zeros_like(number).scatter_reduce(1, number, positions + 1, "amax")
    return Places(positions, longest.gather(1, number), number, start, branches)


def _along_branches(branches: Tensor, begins: Tensor, number: Tensor, place: Tensor) -> Tensor:
    """Positions in trunks and branches: begins, number and place are of documents, (B, T)."""
    if branches.shape != number.shape or branches.is_floating_point():
        given = f"shape {tuple(branches.shape)}, {branches.dtype}"
        raise ArgumentError(f"branches have {given}", f"pass an integer for each token: {tuple(number.shape)}")
    if ((branches[:, 1:] < branches[:, :-1]) & ~begins[:, 1:]).any():
        raise ArgumentError("a document's branches are not in order", "the trunk, 0, comes first, then 1, 2, ...")
    turns = begins.clone()
    turns[:, 1:] |= branches[:, 1:] != branches[:, :-1]
    since = torch.where(turns, place, 0).cummax(1).values
    trunks = torch.zeros_like(number).scatter_add(1, number, (branches == 0).long()).gather(1, number)
    return place - since + torch.where(branches == 0, 0, trunks)
