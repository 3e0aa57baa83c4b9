"""The utility of data that is repeated (Goyal et al. 2024, arXiv 2404.07177): loss against tokens for each keep-rate.

A pool's loss falls as a power of the tokens seen, whose exponent halves in every tau passes:

    loss(n) = a * n_1^(b_1) * prod_j (n_j / n_(j-1))^(b_j) + d,    b_j = b * (1/2)^((j-1) / tau)

where n_j tokens were seen at the end of pass j, or up to now in the last one. A union of pools uses the mean of their
decayed exponents, and each one's tau is stretched by the number of pools, since all the others come between.

Pools here are buckets of documents by quality, the best first, of any size: a mean is then weighted by the share w of
tokens, and "the number of pools" is 1 / w. With equal buckets both are the paper's. Two things differ from the code
published with the paper: d is added once, there later passes shrink it, too; and where buckets have an `a` each, a
union has their geometric mean, which is that code's form for a = c^b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phial.errors import ArgumentError

Array = NDArray[np.float64]
MAX_PASSES = 10_000


class Exposure(NamedTuple):
    """What P trainings saw, all that the law asks of them.

    Attributes:
        weights: (P, K) each bucket's share of the pool; 0 outside it.
        steps: (P, passes) growth of log tokens in each pass; the first from one token on.
        passes: (P,) tokens over unique tokens.
    """

    weights: Array
    steps: Array
    passes: Array


class Law(NamedTuple):
    """Parameters by bucket, the best bucket first; each (K,).

    Attributes:
        unique: tokens in the bucket.
        a: reducible loss after one token. b: exponent, negative. tau: passes in which it halves. d: what is left.
    """

    unique: Array
    a: Array
    b: Array
    tau: Array
    d: Array

    def loss(self, keep: ArrayLike, tokens: ArrayLike) -> Array:
        """The loss of trainings on the best `keep` buckets, seen for `tokens` tokens; arguments as for exposure()."""
        seen = exposure(self.unique, keep, tokens)
        return reducible(self, seen) + seen.weights @ self.d


def exposure(unique: Array, keep: ArrayLike, tokens: ArrayLike) -> Exposure:
    """What trainings saw.

    Args:
        unique: (K,) tokens in each bucket.
        keep: how many buckets each training's pool has, 1 to K. tokens: how many it saw, repeats among them.

    Raises ArgumentError for a number outside, or more than MAX_PASSES passes.
    """
    kept, seen = np.broadcast_arrays(np.atleast_1d(np.asarray(keep)), np.atleast_1d(np.asarray(tokens, np.float64)))
    if kept.min() < 1 or kept.max() > len(unique):
        raise ArgumentError(f"a pool of {kept.min()} to {kept.max()} buckets", f"there are 1 to {len(unique)}")
    pool = np.cumsum(unique)[kept - 1]
    passes = seen / pool
    if not 1 <= seen.min() or not passes.max() <= MAX_PASSES:
        raise ArgumentError(
            f"{seen.min():g} to {seen.max():g} tokens of pools of {pool.min():g} or more",
            f"1 token or more, {MAX_PASSES} passes or fewer",
        )
    inside = np.arange(len(unique)) < kept[:, None]
    ends = np.minimum(pool[:, None] * np.arange(1, np.ceil(passes.max()) + 1), seen[:, None])
    return Exposure(np.where(inside, unique / pool[:, None], 0.0), np.diff(np.log(ends), axis=1, prepend=0.0), passes)


def decayed(tau: Array, seen: Exposure) -> Array:
    """(P, passes, K): what is left of each bucket's exponent in each pass."""
    before = np.arange(seen.steps.shape[1])
    return np.asarray(np.exp2(-before[:, None] * (seen.weights / tau)[:, None, :]))


def reducible(law: Law, seen: Exposure) -> Array:
    """(P,): the loss above d."""
    growth = np.einsum("pe,pek->pk", seen.steps, decayed(law.tau, seen))
    return np.asarray(np.exp(np.sum(seen.weights * (np.log(law.a) + law.b * growth), axis=1)))
