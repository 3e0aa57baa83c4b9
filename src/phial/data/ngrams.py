"""Hashed n-grams of many texts at once, in numpy: what the quality classifier reads.

Four groups of features, each with a table of its own: characters (every 5 bytes, letters in lower case), words, pairs
of words, and shapes. A shape keeps short words and punctuation as they are and of a long word only its last three
letters and whether it began with a capital, so that three shapes in a row say how a sentence is built, not what it
is about. All of a batch is hashed by a few passes over one array; the features of a text depend on its own bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GROUPS = ("characters", "words", "pairs", "shapes")
VERSION = 1  # of the features: a classifier made with others cannot read these
SLICE = 1 << 18  # bytes of a text that are hashed at once: memory stays bounded, n-grams do not cross the cut
_PAD = 8  # zero bytes around each text, as many as one load reads
_GRAM = 5  # bytes in a character n-gram

_PAD_CLASS, _SPACE, _LETTER, _DIGIT, _MARK = range(5)
_A, _B, _C = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F))
_FEW = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # keeps the first n bytes of a load


class Hashed(NamedTuple):
    """The features of one group: bucket numbers, text after text, and where each text begins."""

    buckets: NDArray[np.uint64]
    starts: NDArray[np.intp]


def _classes() -> NDArray[np.uint8]:
    table = np.full(256, _MARK, np.uint8)
    table[0] = _PAD_CLASS
    table[[9, 11, 12, 13, 32]] = _SPACE  # a line break is a mark: lists and menus are made of them
    table[48:58] = _DIGIT
    table[65:91] = table[97:123] = table[128:] = _LETTER  # bytes of other scripts count as letters
    return table


def _lower() -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    table[65:91] += 32
    return table


_CLASS, _LOWER = _classes(), _lower()


def pieces(texts: Sequence[str]) -> tuple[list[bytes], NDArray[np.intp]]:
    """The texts as UTF-8, cut every SLICE bytes, and the number of the text that each piece comes from."""
    out: list[bytes] = []
    owner: list[int] = []
    for number, text in enumerate(texts):
        data = text.encode("utf-8", "replace").replace(b"\0", b" ")  # zero bytes are the pads between texts
        for start in range(0, max(len(data), 1), SLICE):
            out.append(data[start : start + SLICE])
            owner.append(number)
    return out, np.array(owner, np.intp)


def hashed(texts: Sequence[bytes], bits: int) -> list[Hashed]:
    """The features of every text, in the order of GROUPS; each text has at least one of each group.

    Args:
        texts: UTF-8, each at most SLICE bytes for bounded memory (about 100 bytes for one of text).
        bits: buckets of a group are numbered below 2**bits.
    """
    gap = bytes(_PAD)
    raw = np.frombuffer(gap + gap.join(texts) + gap * 2, np.uint8)
    lengths = np.fromiter((len(text) for text in texts), np.intp, len(texts))
    begins = np.cumsum(lengths + _PAD) - lengths  # the first byte of each text
    lower = _LOWER[raw]
    loads = np.ndarray(len(lower) - _PAD, "<u8", lower.tobytes(), 0, (1,))  # the 8 bytes from each place on
    shift = np.uint64(64 - bits)
    # the pad before a text belongs to it: an empty text has features too
    end = int(begins[-1] + lengths[-1])
    characters = Hashed(((loads[:end] & _FEW[_GRAM]) * _A) >> shift, np.asarray(begins - _PAD))
    words, shapes, first = _tokens(raw, loads, np.append(begins - _PAD, end))
    second, third = _following(words, first, 1), _following(shapes, first, 1)
    fourth = _following(shapes, first, 2)
    pairs = (words ^ (second >> np.uint64(29))) * _B + second * _C
    three = (shapes ^ (third >> np.uint64(31))) * _B + (third ^ (fourth >> np.uint64(27))) * _C + fourth * _A
    tokens = [Hashed(_spread(values) >> shift, first) for values in (words, pairs, three)]
    return [characters, *tokens]


def _tokens(
    raw: NDArray[np.uint8], loads: NDArray[np.uint64], pads: NDArray[np.intp]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.intp]]:
    """Hashes of the words and of their shapes, and the number of each text's first token (its pad).

    `pads` says where each text's pad begins, and where the pad after the last.
    """
    kinds = _CLASS[raw]
    cut = kinds[1:] != kinds[:-1]
    marks = kinds[1:] == _MARK
    cut |= marks & (raw[1:] != raw[:-1])  # "..." is one token, "?!" are two
    cut[pads[1:] - 1] = True  # an empty text's pad touches the next one's
    edges = np.concatenate(([0], np.flatnonzero(cut) + 1, [len(raw)]))
    starts, ends = edges[:-1], edges[1:]
    kind = kinds[starts]
    keep = (kind != _SPACE) & (starts < pads[-1])
    starts, ends, kind = starts[keep], ends[keep], kind[keep]
    first = np.searchsorted(starts, pads[:-1])
    lengths = ends - starts
    lengths[kind == _PAD_CLASS] = 0
    lengths[kind == _MARK] = 1
    head = loads[starts] & _FEW[np.minimum(lengths, 8)]
    tail = np.where(lengths > 8, loads[np.maximum(ends - 8, 0)], np.uint64(0))
    words = head * _A + (tail ^ (tail >> np.uint64(32))) * _B + lengths.astype(np.uint64) * _C
    return words, _shapes(raw, loads, starts, ends, lengths, kind, words), first


def _shapes(
    raw: NDArray[np.uint8],
    loads: NDArray[np.uint64],
    starts: NDArray[np.intp],
    ends: NDArray[np.intp],
    lengths: NDArray[np.intp],
    kind: NDArray[np.uint8],
    words: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    ending = (loads[np.maximum(ends - 3, 0)] & _FEW[3]) * _B
    shapes = np.where((kind == _LETTER) & (lengths > 3), ending, words)
    shapes = np.where(kind == _DIGIT, np.minimum(lengths, 4).astype(np.uint64) * _C, shapes)
    first = raw[starts]
    capital = (first >= 65) & (first <= 90)
    return np.asarray(shapes + capital.astype(np.uint64) * _A)


def _following(values: NDArray[np.uint64], first: NDArray[np.intp], by: int) -> NDArray[np.uint64]:
    """Each token's `by`-th successor, 0 where that is another text's."""
    out = np.zeros_like(values)
    out[:-by] = values[by:]
    ends = np.append(first[1:], len(values))
    for back in range(1, by + 1):
        out[np.maximum(ends - back, 0)] = 0
    return out


def _spread(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the input in the upper bits of the output."""
    values = values ^ (values >> np.uint64(32))
    values *= _A
    values ^= values >> np.uint64(29)
    values *= _B
    return values
