"""Training the quality classifier from labelled texts, and its report on labels it has not seen.

Softmax regression with an L2 penalty over the shares of hashed n-grams, fitted by L-BFGS; the weights are then rounded
to 8 bits and everything after (temperature, curve, report) is measured on the rounded model. Labels of one origin (the
pages of a book, say) share a `group` and stay together in training, calibration or test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data import ngrams
from phial.data.quality import MAX_SCORE, Classifier, Embed
from phial.data.quality_metrics import Report, measure
from phial.errors import ArgumentError, PhialError

_BATCH = 128
_CLIP = 99.95  # percentile of the weights that becomes 127; what lies beyond is cut there
_KNOTS = 12


class Labelled(NamedTuple):
    """A text with its educational value.

    Attributes:
        score: 0 to 5, a whole number.
        group: texts of one group are never split between training and test.
    """

    text: str
    score: int
    group: str


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        bits: buckets of each n-gram group, 2**bits; the file has 4 * 2**bits * classes bytes before compression.
        penalty: weight of the squared weights against the mean loss of a text.
        iterations: most steps of L-BFGS.
        test, calibration: shares of the groups held out.
        seed: decides which groups.
    """

    bits: int = 15
    penalty: float = 1e-5
    iterations: int = 150
    test: float = 0.2
    calibration: float = 0.15
    seed: int = 0


def train_classifier(
    labelled: Sequence[Labelled],
    settings: TrainingSettings,
    about: dict[str, Any],
    *,
    embedding: tuple[str, Embed] | None = None,
    show: Callable[[int, str], None] = lambda done, text: None,
) -> tuple[Classifier, Report]:
    """Trains on most groups, calibrates on some, reports on the rest.

    Args:
        about: goes into the classifier's file; the report's figures are added as "metrics".
        embedding: a sentence embedding's name and function, used beside the n-grams.
        show: told after each step of the fit.

    Raises:
        ArgumentError: a label is not 0 to 5.
        PhialError: too few labels, groups or classes to train and to test.
    """
    for example in labelled:
        if example.score not in range(MAX_SCORE + 1):
            raise ArgumentError(f"label {example.score!r} is not 0, 1, 2, 3, 4 or 5", "labels are whole numbers")
    parts = split(labelled, settings)
    train = parts["train"]
    classes = tuple(sorted({example.score for example in train}))
    if len(classes) < 2 or not parts["test"] or not parts["calibration"]:
        counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
        raise PhialError(
            f"too few labels to train and to test: {counts}, {len(classes)} classes",
            "label more documents, of at least two values and a dozen origins",
        )
    texts = [example.text for example in train]
    vectors = None if embedding is None else np.asarray(embedding[1](texts), np.float64)
    target = np.searchsorted(classes, [example.score for example in train])
    fitted = _fit(_features(texts, settings.bits), target, len(classes), settings, vectors, show)
    name, embed = embedding or ("", None)
    classifier = replace(_rounded(fitted, settings.bits, classes, name), about=about)
    classifier = _calibrated(classifier, parts["calibration"], embed)
    held = parts["test"]
    scores = classifier.scores([example.text for example in held], embed)
    report = measure(np.array([example.score for example in held]), scores)
    sizes = {part: len(examples) for part, examples in parts.items()}
    return replace(classifier, about=about | {"labels": sizes, "metrics": report.as_json()}), report


def split(labelled: Sequence[Labelled], settings: TrainingSettings) -> dict[str, list[Labelled]]:
    """The labels as "train", "calibration" and "test", by a hash of the group: the order does not matter."""
    parts: dict[str, list[Labelled]] = {"train": [], "calibration": [], "test": []}
    for example in labelled:
        digest = hashlib.sha256(f"{settings.seed}\0{example.group}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        held = place < settings.test + settings.calibration
        parts["test" if place < settings.test else "calibration" if held else "train"].append(example)
    return parts


class _Fitted(NamedTuple):
    weights: NDArray[np.float64]  # group * bucket, class
    bias: NDArray[np.float64]
    projection: NDArray[np.float64]


def _features(texts: Sequence[str], bits: int) -> Any:
    """Sparse: by text, the share of each n-gram in its group."""
    from scipy.sparse import csr_matrix, hstack, vstack

    rows = []
    for start in range(0, len(texts), _BATCH):
        data, owner = ngrams.pieces(texts[start : start + _BATCH])
        n_texts = int(owner[-1]) + 1
        groups = []
        for found in ngrams.hashed(data, bits):
            counts = np.diff(np.append(found.starts, len(found.buckets)))
            place = (np.repeat(owner, counts), found.buckets.astype(np.int32))
            matrix = csr_matrix((np.ones(len(found.buckets), np.float32), place), (n_texts, 1 << bits))
            share = 1 / np.bincount(owner, counts, n_texts).astype(np.float32)
            matrix.data *= np.repeat(share, np.diff(matrix.indptr))
            groups.append(matrix)
        rows.append(hstack(groups, "csr"))
    return vstack(rows, "csr")


def _fit(
    features: Any,
    target: NDArray[np.intp],
    n_classes: int,
    settings: TrainingSettings,
    vectors: NDArray[np.float64] | None,
    show: Callable[[int, str], None],
) -> _Fitted:
    """Softmax regression. Every column is divided by the root of its mean, as its noise grows with that."""
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix, diags, hstack

    n_texts, n_grams = features.shape
    mean = np.asarray(features.mean(axis=0)).ravel()
    scale = 1 / np.sqrt(mean + 1 / (1 << settings.bits))
    inputs = (features @ diags(scale.astype(np.float32))).tocsr()
    if vectors is not None:
        inputs = hstack([inputs, csr_matrix(vectors.astype(np.float32))], "csr")
    transposed = inputs.T.tocsr()
    shape = (inputs.shape[1], n_classes)
    hot = np.eye(n_classes)[target]
    share = (1 / hot.sum(axis=0) / n_classes)[target]  # every class weighs the same, however many texts it has
    steps = 0

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[:-n_classes].reshape(shape), flat[-n_classes:]
        logits = inputs @ weights.astype(np.float32) + bias
        logits -= logits.max(axis=1, keepdims=True)
        likely = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        value = -float(share @ (likely * hot).sum(axis=1)) + settings.penalty * float((weights**2).sum()) / 2
        slope = (np.exp(likely) - hot) * share[:, None]
        down = transposed @ slope.astype(np.float32) + settings.penalty * weights
        return value, np.concatenate([down.ravel(), slope.sum(axis=0)]).astype(np.float64)

    def tell(_: Any) -> None:
        nonlocal steps
        steps += 1
        show(steps, f"step {steps} of at most {settings.iterations}")

    start = np.zeros(shape[0] * n_classes + n_classes)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", callback=tell, options={"maxiter": settings.iterations, "maxcor": 8}
    )
    weights = found.x[:-n_classes].reshape(shape)
    return _Fitted(weights[:n_grams] * scale[:, None], found.x[-n_classes:], weights[n_grams:])


def _rounded(fitted: _Fitted, bits: int, classes: tuple[int, ...], embedding: str) -> Classifier:
    """The weights as 8-bit numbers, without a curve yet."""
    groups = fitted.weights.reshape(len(ngrams.GROUPS), 1 << bits, len(classes))
    groups = groups - groups.mean(axis=2, keepdims=True)  # what all classes share changes no probability
    largest = np.array([np.percentile(np.abs(group), _CLIP) for group in groups])
    scales = np.where(largest > 0, largest, 1.0) / 127
    tables = np.clip(np.rint(groups / scales[:, None, None]), -127, 127).astype(np.int8)
    straight = np.array([[0.0, MAX_SCORE], [0.0, MAX_SCORE]])
    projection = fitted.projection if embedding else np.zeros((0, 0))
    return Classifier(bits, classes, tables, scales, fitted.bias, straight, embedding, projection)


def _calibrated(classifier: Classifier, held: Sequence[Labelled], embed: Embed | None) -> Classifier:
    """The classifier with the curve that maps its raw scores to the mean labels seen there."""
    labels = np.array([example.score for example in held], np.float64)
    raw = classifier.raw_scores([example.text for example in held], embed)
    return replace(classifier, curve=rising_curve(raw, labels))


def rising_curve(raw: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Knots (raw scores, mean labels) of a strictly rising curve from (0, 0) to (5, 5).

    The labels are averaged in runs of about equal size along the raw scores; runs out of order are joined
    (pool adjacent violators), so that ranks never change.
    """
    order = np.argsort(raw, kind="stable")
    runs = [run for run in np.array_split(order, min(_KNOTS, len(order))) if len(run)]
    pooled: list[tuple[float, float, int]] = []
    for run in runs:
        x, y, n = float(raw[run].mean()), float(labels[run].mean()), len(run)
        while pooled and (pooled[-1][1] >= y or pooled[-1][0] >= x):
            before_x, before_y, before = pooled.pop()
            x, y = (before_x * before + x * n) / (before + n), (before_y * before + y * n) / (before + n)
            n += before
        pooled.append((x, y, n))
    inner = [(x, y) for x, y, _ in pooled if 1e-3 < x < MAX_SCORE - 1e-3 and 0 < y < MAX_SCORE]
    return np.array([(0.0, 0.0), *inner, (float(MAX_SCORE), float(MAX_SCORE))]).T.copy()
