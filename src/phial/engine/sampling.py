"""From logits to the next token: the sampler chain and its parameters.

Order of the chain, the same as llama.cpp's: grammar, logit bias, penalties, top-k, typical, top-p, min-p, temperature,
draw. Temperature 0 (or less) takes the most likely token after bias and penalties. Mirostat v2 (Basu et al., 2021,
arXiv:2007.14966) replaces the filters by a feedback loop that holds the surprise of the text at tau bits.
Left out: mirostat v1, tail-free, XTC and DRY sampling.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, PhialError

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

_LARGEST = 1e6  # bounds penalties, and 1e30 biases, so that float32 logits cannot overflow
_GROUPS = 64  # the vocabulary is cut into this many strands to find a lower bound of the k-th largest logit


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; every field is checked (ArgumentError).

    Attributes:
        temperature: divides the logits before the draw; 0 or less is greedy.
        top_k: keep the k most likely tokens; 0 or less keeps all.
        top_p: keep the fewest most likely tokens that hold this much probability; 1 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one; 0 keeps all.
        typical_p: keep the tokens whose surprise is nearest the entropy (Meister et al., 2022); 1 keeps all.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 is off.
        presence_penalty, frequency_penalty: subtracted once, or per occurrence, from logits of recent tokens.
        penalty_last_n: how many tokens of the context count as recent; 0 none, -1 all.
        logit_bias: added to the logits by token id; -inf forbids a token.
        mirostat_mode: 0 off, 2 mirostat v2 (top-k, typical, top-p and min-p are then not used).
        mirostat_tau, mirostat_eta: target surprise in bits, and learning rate.
        seed: same seed, same text; None draws a fresh one (see Sampler.seed).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] | None = None
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        self._require("temperature", -math.inf, math.inf, "0 is greedy, 0.8 the default")
        self._require("top_p", 0.0, 1.0, "1 keeps all tokens")
        self._require("min_p", 0.0, 1.0, "0 keeps all tokens")
        self._require("typical_p", 0.0, 1.0, "1 keeps all tokens")
        self._require("repeat_penalty", 0.0, _LARGEST, "1 is off; a little more discourages repetition", above=True)
        self._require("presence_penalty", -_LARGEST, _LARGEST, "0 is off")
        self._require("frequency_penalty", -_LARGEST, _LARGEST, "0 is off")
        self._require("mirostat_tau", 0.0, _LARGEST, "the surprise to hold, in bits; 5 is the default", above=True)
        self._require("mirostat_eta", 0.0, 1.0, "0.1 is the default", above=True)
        self._require_int("top_k", -(2**31), 2**31, "0 keeps all tokens")
        self._require_int("penalty_last_n", -1, 2**31, "-1 looks at the whole context, 0 at nothing")
        self._require_int("mirostat_mode", 0, 2, "0 is off, 2 is mirostat v2")
        if self.mirostat_mode == 1:
            raise ArgumentError("mirostat_mode is 1, which is not supported", "use 2 (mirostat v2) or 0 (off)")
        if self.seed is not None:
            self._require_int("seed", 0, 2**64 - 1, "None draws a fresh seed")
        for token, bias in (self.logit_bias or {}).items():
            if not _is_int(token) or token < 0:
                raise ArgumentError(f"logit_bias has the key {token!r}", "keys are token ids: integers from 0")
            if not _is_real(bias) or not (abs(bias) <= 1e30 or bias == -math.inf):
                raise ArgumentError(f"logit_bias[{token}] is {bias!r}", "use a number up to 1e30, or -inf to forbid")

    def _require(self, name: str, low: float, high: float, hint: str, *, above: bool = False) -> None:
        value = getattr(self, name)
        if not _is_real(value) or not math.isfinite(value) or not low <= value <= high or (above and value == low):
            start = "above" if above else "from"
            limits = "a finite number" if math.isinf(low) else f"{start} {low:g} to {high:g}"
            raise ArgumentError(f"{name} is {value!r}, expected {limits}", hint)

    def _require_int(self, name: str, low: int, high: int, hint: str) -> None:
        value = getattr(self, name)
        if not _is_int(value) or not low <= value <= high:
            raise ArgumentError(f"{name} is {value!r}, expected an integer from {low} to {high}", hint)


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


class Mask(Protocol):
    """What may come next in one text (constraint.py)."""

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits, -inf for what may not."""
        ...

    def accept(self, token: int) -> None:
        """This token was drawn."""
        ...


class Sampler:
    """Draws tokens for one text: holds its random generator, mirostat's running estimate and what the text is held to.

    Attributes:
        params: the parameters it was made with.
        seed: the seed in use, also where params.seed is None.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, mask: Mask | None = None) -> None:
        """Raise ArgumentError where logit_bias names a token the vocabulary does not have."""
        bias = params.logit_bias or {}
        for token in bias:
            if token >= n_vocab:
                raise ArgumentError(f"logit_bias names token {token}", f"the vocabulary ends at {n_vocab - 1}")
        self.params = params
        self.n_vocab = n_vocab
        self._mask = mask
        self.seed = secrets.randbits(32) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._mu = 2.0 * params.mirostat_tau  # mirostat: tokens more surprising than this are cut, in bits

    def sample(self, logits: NDArray[np.float32], context: Sequence[int]) -> int:
        """Draw the next token id; arguments and errors as of distribution()."""
        ids, probabilities = self.distribution(logits, context)
        index = self._draw(probabilities) if len(ids) > 1 else 0
        if self.params.mirostat_mode == 2 and self.params.temperature > 0:
            observed = -math.log2(probabilities[index])
            self._mu -= self.params.mirostat_eta * (observed - self.params.mirostat_tau)
        token = int(ids[index])
        if self._mask is not None:
            self._mask.accept(token)
        return token

    def distribution(self, logits: NDArray[np.float32], context: Sequence[int]) -> tuple[Ids, Floats]:
        """Return the ids that the next draw chooses among, in rising order, and their probabilities.

        Args:
            logits: (n_vocab,), left unchanged. -inf marks a forbidden token.
            context: the ids so far, for the penalties.

        Raises:
            PhialError: a logit is NaN or +inf, or every token is forbidden.
        """
        if logits.shape != (self.n_vocab,):
            raise ArgumentError(f"logits have the shape {logits.shape}", f"expected ({self.n_vocab},)")
        params = self.params
        adjusted = self._adjust(logits if self._mask is None else self._mask.apply(logits), context)
        # One pass: max is NaN where any logit is, +inf where any is, -inf where all are.
        if not math.isfinite(adjusted.max()):
            raise _bad_logits(adjusted)
        if params.temperature <= 0:
            return np.array([int(adjusted.argmax())]), np.ones(1)
        if params.mirostat_mode == 2:
            return self._mirostat(adjusted)
        ids = _top_k(adjusted, params.top_k)
        values = adjusted[ids].astype(np.float64)
        for choose in (_typical, _top_p, _min_p):
            kept = choose(values, params)
            if kept is not None:
                ids, values = ids[kept], values[kept]
        return ids, np.exp(-_surprise(_heated(values, params.temperature)))

    def _adjust(self, logits: NDArray[np.float32], context: Sequence[int]) -> NDArray[np.float32]:
        """Apply logit bias and penalties to a copy; the logits themselves where there is nothing to apply."""
        params = self.params
        penalised = (
            params.penalty_last_n != 0
            and len(context) > 0
            and (params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0)
        )
        if not penalised and not len(self._bias):
            return logits
        adjusted = logits.copy()
        adjusted[self._bias_ids] += self._bias
        if penalised:
            recent = context if params.penalty_last_n < 0 else context[-params.penalty_last_n :]
            self._penalise(adjusted, Counter(recent))
        return adjusted

    def _penalise(self, logits: NDArray[np.float32], counts: Mapping[int, int]) -> None:
        params = self.params
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        if ids.min() < 0 or ids.max() >= self.n_vocab:
            raise ArgumentError(
                f"the context holds token ids from {ids.min()} to {ids.max()}", f"ids run from 0 to {self.n_vocab - 1}"
            )
        times = np.fromiter(counts.values(), np.float64, len(counts))
        values = logits[ids].astype(np.float64)
        values = np.where(values > 0, values / params.repeat_penalty, values * params.repeat_penalty)
        logits[ids] = values - times * params.frequency_penalty - params.presence_penalty

    def _draw(self, probabilities: Floats) -> int:
        """Return an index with the given probabilities; one random number per call."""
        cumulative = np.cumsum(probabilities)
        index = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return min(index, int(np.flatnonzero(probabilities)[-1]))  # rounding must not pick past the end or a zero

    def _mirostat(self, logits: NDArray[np.float32]) -> tuple[Ids, Floats]:
        """Cut the tokens more surprising than mu bits; always keep one."""
        surprise = _surprise(_heated(logits.astype(np.float64), self.params.temperature)) / math.log(2)
        ids = np.flatnonzero(surprise <= self._mu)
        if not len(ids):
            ids = np.array([int(surprise.argmin())])
        probabilities = np.exp2(-surprise[ids])
        return ids, probabilities / probabilities.sum()


def _bad_logits(logits: NDArray[np.float32]) -> PhialError:
    if np.all(np.isneginf(logits)):
        return PhialError("every token is forbidden: all logits are -inf", "loosen logit_bias or the mask")
    count = int(np.count_nonzero(np.isnan(logits) | np.isposinf(logits)))
    return PhialError(
        f"{count} of {len(logits)} logits are NaN or infinite",
        "the model file may be damaged; check it with `phial inspect`",
    )


def _heated(values: Floats, temperature: float) -> Floats:
    """Return the values over the temperature, shifted to a largest of 0: tiny temperatures cannot overflow."""
    with np.errstate(over="ignore"):
        heated: Floats = (values - values.max()) / temperature
    return heated


def _surprise(values: Floats) -> Floats:
    """Return -ln softmax(values); finite wherever the value is, even where the probability underflows."""
    below: Floats = values.max() - values
    return below + math.log(float(np.exp(-below).sum()))


def _top_k(logits: NDArray[np.float32], k: int) -> Ids:
    """Return the ids of the k largest finite logits, in the order of the ids; of equal ones the lower ids."""
    n = len(logits)
    if k <= 0 or k >= n:
        return np.flatnonzero(logits > -np.inf)
    if k == 1:
        return np.array([int(logits.argmax())])
    # The k-th largest of the strands' maxima is a lower bound of the k-th largest logit: k tokens reach it.
    strands = n // _GROUPS
    if k < strands:
        maxima = logits[: strands * _GROUPS].reshape(_GROUPS, strands).max(axis=0)
        bound = np.partition(maxima, strands - k)[strands - k]
        candidates = np.flatnonzero(logits >= bound if bound > -np.inf else logits > -np.inf)
    else:
        candidates = np.arange(n)
    order = np.argsort(-logits[candidates], kind="stable")[:k] if len(candidates) > k else slice(None)
    ids = np.sort(candidates[order])
    return ids[logits[ids] > -np.inf]


def _nucleus(cost: Floats, probabilities: Floats, mass: float) -> Ids:
    """Return indices in order of rising cost, as few as hold `mass` of the probability, at least one.

    Looks at the cheapest 128 first and takes eight times as many until the mass is reached, so that a large
    vocabulary is hardly ever sorted whole.
    """
    n, count = len(cost), 128
    while True:
        if count < n:
            nearest = np.argpartition(cost, count)[:count]
            nearest.sort()  # partition's order is not defined: make ties fall to the lower index
        else:
            nearest = np.arange(n)
        order: Ids = nearest[np.argsort(cost[nearest], kind="stable")]
        reached = np.cumsum(probabilities[order]) >= mass
        if reached.any():
            return order[: int(reached.argmax()) + 1]
        if count >= n:
            return order  # rounding: the sum of all stayed below a mass near 1
        count *= 8


def _typical(values: Floats, params: SamplingParams) -> Ids | None:
    if params.typical_p >= 1.0:
        return None
    surprise = _surprise(values)
    probabilities = np.exp(-surprise)
    entropy = float((probabilities * surprise).sum())
    return np.sort(_nucleus(np.abs(surprise - entropy), probabilities, params.typical_p))


def _top_p(values: Floats, params: SamplingParams) -> Ids | None:
    if params.top_p >= 1.0:
        return None
    return np.sort(_nucleus(-values, np.exp(-_surprise(values)), params.top_p))


def _min_p(values: Floats, params: SamplingParams) -> Ids | None:
    if params.min_p <= 0.0:
        return None
    return np.flatnonzero(values >= values.max() + math.log(params.min_p))
