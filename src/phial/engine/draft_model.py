"""A small model that guesses for a large one with the same vocabulary (Leviathan et al., 2023; Chen et al., 2023).

It guesses greedily and stops where it is unsure. A guess that is the large model's draw is accepted, any other not, so
the small model decides about speed alone.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.engine.engine import Engine

PRIOR = 0.6  # share of right drafts, before any was seen
LEARNING_RATE = 0.1
RECOVERY = 0.01  # how fast the share goes back to PRIOR while nothing is drafted, so that it is tried again
UNSURE = 0.4  # drafts less likely than this end the draft


class CostlyDrafter(ABC):
    """Base of drafters that take time to ask: learns what a draft costs and, of those made, the share that was right.

    Attributes:
        seconds: what a draft costs.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._text: list[int] = []
        self._open: deque[int] = deque()  # drafts that the text may still confirm
        self._rate = PRIOR

    def begin(self, tokens: Sequence[int]) -> None:
        """The text is this now."""
        self._text = list(tokens)
        self._open.clear()

    def extend(self, token: int) -> None:
        """The text has grown by this token."""
        self._text.append(token)
        if not self._open:
            self._rate += RECOVERY * (PRIOR - self._rate)
            return
        right = self._open.popleft() == token
        self._rate += LEARNING_RATE * (right - self._rate)
        if not right:
            self._open.clear()

    def chances(self, most: int) -> list[float]:
        """The same for every draft."""
        return [self._rate] * most

    def draft(self, n: int) -> list[int]:
        """At most n drafts."""
        started = time.perf_counter()
        drafts = self._ask(n)
        each = (time.perf_counter() - started) / max(1, len(drafts))
        self.seconds = each if not self.seconds else self.seconds + LEARNING_RATE * (each - self.seconds)
        self._open = deque(drafts)
        return drafts

    @abstractmethod
    def _ask(self, n: int) -> list[int]:
        """At most n drafts behind the text."""


class DraftModel(CostlyDrafter):
    """A second engine with a session of its own, which follows the text."""

    def __init__(self, engine: Engine, n_ctx: int) -> None:
        """n_ctx: that of the session it guesses for."""
        super().__init__()
        self._session = engine.session(n_ctx)
        self._held: list[int] = []  # what the session has evaluated
        self._agreed = 0  # how many of them are the beginning of the text

    def begin(self, tokens: Sequence[int]) -> None:
        """Read the whole text, all but its last token."""
        super().begin(tokens)
        self._agreed = self._session.reuse_prefix(tokens)
        if self._agreed < len(tokens) - 1:
            self._session.eval(tokens[self._agreed : -1])
        self._held = list(tokens[:-1])
        self._agreed = len(self._held)

    def extend(self, token: int) -> None:
        """The text has grown by this token, perhaps one already evaluated."""
        here = len(self._text)
        if self._agreed == here < len(self._held) and self._held[here] == token:
            self._agreed += 1
        super().extend(token)

    def _ask(self, n: int) -> list[int]:
        text, session, drafts = self._text, self._session, list[int]()
        self._agreed = min(self._agreed, len(text) - 1)
        session.truncate(self._agreed)
        new = text[self._agreed :]
        while len(drafts) < min(n, session.n_ctx - len(text) + 1):
            logits = session.eval(new)
            token = int(logits.argmax())
            if drafts and 1 / np.exp(logits - logits[token]).sum() < UNSURE:
                break
            drafts.append(token)
            new = [token]
        self._held = [*text, *drafts[: session.n_past - len(text)]]
        self._agreed = len(text)
        return drafts


def check_same_vocabulary(engine: Engine, draft: Engine) -> None:
    """Raise ArgumentError unless the ids of both models mean the same."""
    ours, theirs = (e.metadata.get("tokenizer.ggml.tokens") for e in (engine, draft))
    if engine.config.n_vocab != draft.config.n_vocab or ours != theirs:
        raise ArgumentError(
            f"{draft.path.name} cannot draft for {engine.path.name}: their vocabularies differ "
            f"({draft.config.n_vocab} and {engine.config.n_vocab} tokens)",
            "use a smaller model of the same family",
        )
