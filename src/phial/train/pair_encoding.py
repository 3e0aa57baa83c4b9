"""Preference pairs as tokens: prompt and chosen, prompt and rejected, by the template's code that inference uses.

What is learnt of each side is its last answer and the token that ends it; earlier answers belong to the prompt.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from phial.errors import PhialError
from phial.tokenizer.chat_answers import encode_answers
from phial.tokenizer.messages import Message
from phial.train.chat_packing import Example, example_of
from phial.train.objective import IGNORED
from phial.train.pairs import Pair
from phial.train.start import Start

_WINDOW = 4  # tokens of which a repetition is one


class Side(NamedTuple):
    """A conversation with one answer.

    Attributes:
        ids: all its tokens. answered: for each, whether it is of the last answer or its end.
        joined: whether the answer's first characters share a token with the prompt.
    """

    ids: list[int]
    answered: list[bool]
    joined: bool


class PairExample(NamedTuple):
    """A pair as training has it.

    Attributes:
        shared: tokens at the beginning that both sides have and no loss depends on there; they are computed once.
        repetition: of each side, see repetition().
    """

    chosen: Example
    rejected: Example
    where: str
    shared: int = 0
    repetition: tuple[float, float] = (0.0, 0.0)

    @property
    def tokens(self) -> int:
        """That are computed."""
        return len(self.chosen.tokens) + len(self.rejected.tokens) - self.shared


class EncodedPairs(NamedTuple):
    """Pairs as examples, and what is to be said of them.

    Attributes:
        pairs: read. tokens: of the examples, prompts twice. targets: tokens of both answers.
        left_out: where pairs stand that are not learnt, and why.
        joined: answers whose first characters share a token with the prompt before them.
        ends: ids that end answers.
    """

    examples: list[PairExample]
    pairs: int
    tokens: int
    targets: int
    left_out: list[str]
    joined: int
    ends: frozenset[int]

    @property
    def digest(self) -> str:
        """sha256 of all tokens and targets: what the run depends on."""
        digest = hashlib.sha256()
        for example in self.examples:
            for tokens, targets in (example.chosen, example.rejected):
                digest.update(np.int64(len(tokens)).tobytes() + tokens.tobytes() + targets.tobytes())
        return digest.hexdigest()

    def report(self) -> dict[str, Any]:
        """What a program would read."""
        return self._asdict() | {"examples": len(self.examples), "ends": sorted(self.ends), "sha256": self.digest}


def encode_side(messages: Sequence[Message], start: Start, date: datetime.date) -> Side:
    """A conversation's tokens with its last answer marked. Raises PhialError as encode_answers()."""
    now = datetime.datetime.combine(date, datetime.time())
    found = encode_answers(start.template, messages, start.tokenizer, now=now)
    own = [answered and i >= found.last for i, answered in enumerate(found.answered)]
    before = encode_answers(start.template, messages[:-1], start.tokenizer, now=now).joined if found.joined else 0
    return Side(found.ids, own, found.joined > before)


def encode_pairs(
    pairs: Iterable[Pair], start: Start, n: int, date: datetime.date, unfit: Literal["stop", "leave out"]
) -> EncodedPairs:
    """Pairs as examples.

    Args:
        n: tokens that a side may have.
        unfit: what is done about a pair that teaches nothing or is too long.

    Raises PhialError, with file and row, for a pair that the template cannot render without loss, and for an unfit one
    where that is "stop"; where no example is left.
    """
    config = start.model.config
    turn = config.rope_original_context if config.rope_long_factors is not None else None
    examples, left_out, count, joined, ends = list[PairExample](), list[str](), 0, 0, set[int]()
    for pair in pairs:
        count += 1
        sides = [] if pair.fault else _encoded(pair, start, date)
        if fault := pair.fault or _fault(sides, n):
            if unfit == "stop":
                raise PhialError(f"{pair.where}: {fault}", 'mend or remove it, or set unfit = "leave out"')
            left_out.append(f"{pair.where}: {fault}")
            continue
        joined += sum(side.joined for side in sides)
        answers = [[i for i, own in zip(side.ids, side.answered, strict=True) if own] for side in sides]
        ends |= {answer[-1] for answer in answers}
        chosen, rejected = (example_of(side.ids, side.answered) for side in sides)
        traits = (repetition(answers[0]), repetition(answers[1]))
        examples.append(PairExample(chosen, rejected, pair.where, shared_tokens(chosen, rejected, turn), traits))
    if not examples:
        what = f"; first {left_out[0]}" if left_out else ""
        raise PhialError(f"none of {count} pairs can be learnt{what}", "give other pairs, or raise sequence")
    both = [side for example in examples for side in (example.chosen, example.rejected)]
    targets = sum(int((side.targets != IGNORED).sum()) for side in both)
    tokens = sum(len(side.tokens) for side in both)
    return EncodedPairs(examples, count, tokens, targets, left_out, joined, frozenset(ends))


def shared_tokens(chosen: Example, rejected: Example, turn: int | None = None) -> int:
    """How many tokens of two sides can be computed once: those before the prompt's last, which predicts either answer.

    Args:
        turn: sides up to so many tokens have other rotations than longer ones (LongRoPE); None: all have the same.
    """
    sizes = len(chosen.tokens), len(rejected.tokens)
    if turn is not None and min(sizes) <= turn < max(sizes):
        return 0
    first = min(int((side.targets != IGNORED).argmax()) for side in (chosen, rejected))
    same = chosen.tokens[:first] == rejected.tokens[:first]
    return first if same.all() else int(same.argmin())


def repetition(ids: Sequence[int]) -> float:
    """The share of an answer's runs of four tokens that it has had before, 0 where it is shorter."""
    runs = [tuple(ids[at : at + _WINDOW]) for at in range(len(ids) - _WINDOW + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _encoded(pair: Pair, start: Start, date: datetime.date) -> list[Side]:
    try:
        return [encode_side(messages, start, date) for messages in (pair.chosen, pair.rejected)]
    except PhialError as error:
        raise PhialError(f"{pair.where}: {error.message}", error.hint) from error


def _fault(sides: Sequence[Side], n: int) -> str:
    """Why a pair of sides is not learnt, or ""."""
    if sides[0].ids == sides[1].ids:
        return "the two answers have the same tokens"
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        size = len(side.ids) - 1 - side.answered[::-1].index(True)
        if size > n:
            return f"{name} has {size:,} tokens, sequence is {n:,}"
    return ""
