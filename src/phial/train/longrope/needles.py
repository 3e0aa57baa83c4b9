"""Passkeys: a key planted in a text and asked for at its end (phi3-spec §4.8), as rows of token ids.

The needle's answer tokens are what LongRoPE2 (arXiv 2502.20082) scores factors by, and whether all of them are the
model's first choice is what passkey accuracy counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError

Encode = Callable[[str], list[int]]
Rows = NDArray[np.int64]
DIGITS = 5
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
IGNORED = -100  # objective.IGNORED, here without torch


def plant(filler: NDArray[np.integer], length: int, key: str, depth: float, encode: Encode) -> tuple[Rows, int]:
    """A text of length + 1 tokens with a key at a depth and its question and answer at the end.

    Args:
        filler: tokens to hide it in, at least `length`.
        depth: 0 for the beginning, 1 for right before the question.

    Returns the tokens, and how many of the last ones are the answer.

    Raises:
        ArgumentError: the length leaves no room, or the filler is too short.
    """
    needle, asked, tail = (encode(text) for text in (NEEDLE.format(key=key), QUESTION, f"{QUESTION} {key}"))
    shared = next((i for i, (a, b) in enumerate(zip(asked, tail, strict=False)) if a != b), min(len(asked), len(tail)))
    room = length + 1 - len(needle) - len(tail)
    if room < 0:
        raise ArgumentError(
            f"a passkey takes {len(needle) + len(tail)} tokens, more than {length + 1}", "search at a greater length"
        )
    if len(filler) < room:
        raise ArgumentError(f"{len(filler)} tokens of text cannot fill {room}", "give longer texts")
    at = round(depth * room)
    parts = (filler[:at], needle, filler[at:room], tail)
    return np.concatenate([np.asarray(part, np.int64) for part in parts]), len(tail) - shared


def least_length(encode: Encode) -> int:
    """The shortest text that plant() can make around no filler, in tokens that the model reads."""
    key = "1" * DIGITS
    return len(encode(NEEDLE.format(key=key))) + len(encode(f"{QUESTION} {key}")) - 1


def needle_rows(
    fillers: Sequence[NDArray[np.integer]], length: int, count: int, encode: Encode, seed: int
) -> tuple[Rows, Rows]:
    """`count` passkey texts, depths spread evenly from 0 to 1, keys drawn: tokens and targets, each (count, length).

    Targets other than the answer's tokens are IGNORED. Errors as plant().
    """
    random = np.random.default_rng([seed, length])
    tokens, targets = np.zeros((count, length), np.int64), np.full((count, length), IGNORED, np.int64)
    for i in range(count):
        key = random_key(random)
        depth = i / (count - 1) if count > 1 else 0.5
        row, n_answer = plant(fillers[i % len(fillers)], length, key, depth, encode)
        tokens[i], targets[i, -n_answer:] = row[:-1], row[-n_answer:]
    return tokens, targets


def random_key(random: np.random.Generator) -> str:
    """DIGITS digits, the first no zero."""
    return str(random.integers(10 ** (DIGITS - 1), 10**DIGITS))
