"""Where each token of a batch stands: in a row that is one sequence, or in one of several documents packed into it."""

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
        positions: (B or 1, T), from 0 in each sequence.
        lengths: (B or 1, T or 1), tokens in the sequence to which each token belongs.
        documents: (B, T), the number of that sequence within its row; None where each row is one sequence.
    """

    positions: Tensor
    lengths: Tensor
    documents: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        return self.positions.shape[1]


def token_places(tokens: Tensor, lengths: Sequence[int] | None = None, documents: Tensor | None = None) -> Places:
    """The places of tokens, (B, T); arguments and errors as Transformer.forward's."""
    if tokens.ndim != 2 or not tokens.numel():
        raise ArgumentError(f"tokens have shape {tuple(tokens.shape)}", "pass rows of token ids: (rows, tokens)")
    if documents is not None and lengths is not None:
        raise ArgumentError("lengths and documents were both given", "make padding a document of its own")
    return _rows(tokens, lengths) if documents is None else _packed(tokens, documents)


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


def _packed(tokens: Tensor, ids: Tensor) -> Places:
    if ids.shape != tokens.shape or ids.is_floating_point() or ids.device != tokens.device:
        given = f"shape {tuple(ids.shape)}, {ids.dtype}, on {ids.device}"
        raise ArgumentError(f"documents have {given}", f"pass an integer id for each token: {tuple(tokens.shape)}")
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    number = begins.cumsum(1) - 1
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    start = torch.where(begins, place, 0).cummax(1).values
    counts = torch.zeros_like(number).scatter_add(1, number, torch.ones_like(number))
    return Places(place - start, counts.gather(1, number), number)
