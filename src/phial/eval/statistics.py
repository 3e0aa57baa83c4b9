"""What the scored tokens amount to: means with standard errors, as llama.cpp's perplexity tool states them.

The error of a mean is sqrt((E[x^2] - E[x]^2) / (n - 1)); functions of means follow by first-order propagation. Tokens
are treated as independent, as llama.cpp does; neighbours are not quite, so true errors are somewhat larger.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Estimate(NamedTuple):
    """A value and its standard error; 0 where one token alone was scored."""

    value: float
    error: float


class Comparison(NamedTuple):
    """A model against a base. Probabilities are fractions, divergences nats, percentiles those of PERCENTILES."""

    base_perplexity: Estimate
    log_ratio: Estimate  # ln(perplexity / base perplexity)
    correlation: float  # of both models' log-likelihoods, token by token
    kl: Estimate
    kl_percentiles: tuple[float, ...]
    kl_max: float
    p_mean: Estimate  # the true token's probability, minus the base's
    p_rms: Estimate
    same_top: Estimate


class Tally:
    """Sums over the scored tokens so far. Memory is constant but for the divergences, 8 bytes a token, of which the
    percentiles are exact."""

    def __init__(self) -> None:
        self.n_tokens = self.n_windows = 0
        self._sums: dict[str, float] = {}
        self._kl: list[NDArray[np.float64]] = []

    def add(self, record: NDArray[Any]) -> None:
        """One window: a structured array with "nll", and where compared "base_nll", "kl" and "same_top"."""
        self.n_windows += 1
        self.n_tokens += len(record)
        nll = record["nll"]
        self._add(nll=nll, nll2=nll * nll)
        if "kl" in (record.dtype.names or ()):
            base, kl = record["base_nll"], np.array(record["kl"])
            p = np.exp(-nll) - np.exp(-base)
            self._add(base=base, base2=base * base, both=nll * base, kl=kl, kl2=kl * kl)
            self._add(p=p, p2=p * p, p4=p**4, same_top=record["same_top"])
            self._kl.append(kl)

    @property
    def perplexity(self) -> Estimate:
        """exp of the mean negative log-likelihood."""
        return _exp(self._mean("nll", "nll2"))

    def comparison(self) -> Comparison:
        """All figures against the base; only where the records were compared."""
        ours, base, n = self._mean("nll", "nll2"), self._mean("base", "base2"), self.n_tokens
        covariance = (self._sums["both"] / n - ours.value * base.value) / max(n - 1, 1)
        variance = ours.error**2 + base.error**2 - 2 * covariance
        square = self._mean("p2", "p4")
        rms = sqrt(square.value)
        same = self._sums["same_top"] / n
        divergences = np.concatenate(self._kl)
        return Comparison(
            base_perplexity=_exp(base),
            log_ratio=Estimate(ours.value - base.value, sqrt(max(variance, 0.0))),
            correlation=covariance / (ours.error * base.error) if ours.error and base.error else 1.0,
            kl=self._mean("kl", "kl2"),
            kl_percentiles=tuple(np.percentile(divergences, PERCENTILES).tolist()),
            kl_max=float(divergences.max()),
            p_mean=self._mean("p", "p2"),
            p_rms=Estimate(rms, 0.5 / rms * square.error if rms else 0.0),
            same_top=Estimate(same, sqrt(same * (1 - same) / max(n - 1, 1))),
        )

    def _add(self, **columns: NDArray[np.float64]) -> None:
        for name, values in columns.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(np.ascontiguousarray(values).sum())

    def _mean(self, name: str, squares: str) -> Estimate:
        mean = self._sums[name] / self.n_tokens
        variance = self._sums[squares] / self.n_tokens - mean * mean
        return Estimate(mean, sqrt(max(variance, 0.0) / max(self.n_tokens - 1, 1)))


def _exp(mean: Estimate) -> Estimate:
    """exp of an estimate; infinity where that is beyond a float."""
    value = exp(mean.value) if mean.value < 700 else float("inf")
    return Estimate(value, value * mean.error if mean.error else 0.0)
