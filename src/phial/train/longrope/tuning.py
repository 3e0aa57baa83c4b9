"""Fine-tuning with new factors: long windows and short ones in a step, each with the factor set of its own length.

LongRoPE2's mixed windows (arXiv 2502.20082): a row no longer than the original context takes the short factors by the
rule that holds everywhere, so mixing needs no switch, only rows of both lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from phial.train.longrope.needles import Encode, plant, random_key
from phial.train.longrope.texts import Windows
from phial.train.loop import LoopConfig
from phial.train.objective import Batch
from phial.train.optim import OptimizerConfig, ScheduleConfig


class TuneConfig(BaseModel):
    """How weights follow new factors. The defaults are LongRoPE's for LLaMA2 (phi3-spec §4.5), rows excepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(8, gt=0, description="long windows in a step")
    short_share: float = Field(0.0, ge=0, lt=1, description="of a step's tokens, in windows of the original context")
    needles: float = Field(0.0, ge=0, le=1, description="share of windows with a passkey planted and asked for")
    tokens_at_once: int = Field(8192, gt=0, description="tokens in a micro-batch, one window at the least")
    loop: LoopConfig = LoopConfig(
        steps=400,
        checkpoint_every=50,
        optimizer=OptimizerConfig(lr=2e-5),
        schedule=ScheduleConfig(kind="linear", warmup=20),
    )


class MixedWindows:
    """Batches of long and short windows, drawn anew each step.

    Args:
        windows: of at least length + 1 tokens.
        length, original: tokens in a long and in a short window.
    """

    def __init__(
        self, windows: Windows, length: int, original: int, config: TuneConfig, encode: Encode, seed: int
    ) -> None:
        self.windows, self.length, self.original = windows, length, original
        self.config, self.encode, self.seed = config, encode, seed
        share = config.short_share
        self.short_rows = round(share / (1 - share) * config.rows * length / original)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        random = np.random.default_rng([self.seed, step])
        made: list[Batch] = []
        for rows, length in ((self.config.rows, self.length), (self.short_rows, self.original)):
            drawn = [self._row(random, length) for _ in range(rows)][rank::world]
            at_once = max(1, self.config.tokens_at_once // length)
            for start in range(0, len(drawn), at_once):
                part = torch.from_numpy(np.stack(drawn[start : start + at_once]))
                made.append({"tokens": part[:, :-1], "targets": part[:, 1:]})
        return made

    def _row(self, random: np.random.Generator, length: int) -> Windows:
        window = self.windows[random.integers(len(self.windows))]
        start = int(random.integers(len(window) - length))
        text: Windows = window[start : start + length + 1]
        if random.random() < self.config.needles:
            text, _ = plant(text, length, random_key(random), random.random(), self.encode)
        return text
