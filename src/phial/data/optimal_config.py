"""The [optimal] table: which keep-rates, budgets, seeds and models are tried out, on what, measured by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from phial.config_file import read_config

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class ProxyModel(BaseModel):
    """A size of model; a law is fitted for each."""

    model_config = _FROZEN

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    training: dict[str, Any] = Field(
        description="as phial train pretrain takes it, without tokenizer, phases, validation and seed"
    )


class PhaseTwoConfig(BaseModel):
    """How much of a training its second phase is to be."""

    model_config = _FROZEN

    shares: tuple[float, ...] = Field(min_length=3, description="of all tokens")
    tokens: int = Field(gt=0, description="of a whole training")
    keep_rate: float = Field(1.0, gt=0, le=1, description="of phase 1")
    best: float = Field(gt=0, lt=1, description="the best documents, this share of the pool's tokens, are phase 2's")
    sources: tuple[str, ...] = Field((), description="phase 2 has all documents of these, too, such as synthetic ones")

    @model_validator(mode="after")
    def _fits(self) -> PhaseTwoConfig:
        if sorted(set(self.shares)) != list(self.shares) or not 0 <= self.shares[0] < self.shares[-1] < 1:
            raise ValueError(f"shares {list(self.shares)} do not rise from 0 or more to less than 1")
        if self.best >= self.keep_rate:
            raise ValueError(f"phase 2 has the best {self.best:g}, phase 1 the best {self.keep_rate:g} without them")
        return self


class OptimalConfig(BaseModel):
    """What is tried out."""

    model_config = _FROZEN

    stage: Path = Field(description="folder of a finished stage whose documents have scores")
    tokenizer: Path = Field(description="a Hugging Face folder")
    validation: Path = Field(description="token shards of the text that counts; its documents are in no pool")
    measure: str = Field("validation/loss", description="what is fitted, of all that is measured")
    sources: tuple[str, ...] = Field((), description="that the pool is made of; none named: all but phase 2's")
    pool_tokens: int | None = Field(None, gt=0, description="unique tokens of the pool; all there are if left out")
    keep_rates: tuple[float, ...] = Field(min_length=1, description="shares of the pool's tokens, rising")
    budgets: tuple[int, ...] = Field(min_length=3, description="tokens of a training, rising")
    seeds: int = Field(3, ge=1, le=100, description="trainings of each kind")
    seed: int = Field(0, ge=0, description="of the pool, and the first one of the trainings")
    one_run: bool = Field(False, description="one training for all budgets: its branches, or on the way")
    separate: tuple[str, ...] | None = Field(
        None, description="parameters by bucket, of a, b, tau, d; left out: chosen"
    )
    draws: int = Field(300, ge=20, le=10_000, description="of the bootstrap")
    plan_tokens: tuple[int, ...] = Field((), description="budgets to choose a keep-rate for; none: the greatest")
    models: tuple[ProxyModel, ...] = Field(min_length=1)
    phase_2: PhaseTwoConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> OptimalConfig:
        if (
            sorted(set(self.keep_rates)) != list(self.keep_rates)
            or not 0 < self.keep_rates[0] <= self.keep_rates[-1] <= 1
        ):
            raise ValueError(f"keep_rates {list(self.keep_rates)} do not rise from above 0 to 1 or less")
        if sorted(set(self.budgets)) != list(self.budgets) or self.budgets[0] < 1:
            raise ValueError(f"budgets {list(self.budgets)} do not rise")
        if unknown := set(self.separate or ()) - {"a", "b", "tau", "d"}:
            raise ValueError(f"separate names {sorted(unknown)}; there are a, b, tau and d")
        if len({model.name for model in self.models}) != len(self.models):
            raise ValueError("models need different names")
        if min(self.plan_tokens, default=1) < 1:
            raise ValueError(f"plan_tokens {list(self.plan_tokens)} are not all positive")
        return self

    def beside(self, file: Path) -> OptimalConfig:
        """The same with every path taken from the folder of `file`."""
        return self.model_copy(
            update={name: file.parent / getattr(self, name) for name in ("stage", "tokenizer", "validation")}
        )


class _OptimalFile(BaseModel):
    model_config = ConfigDict(extra="ignore")  # other tables of the file are not looked at

    optimal: OptimalConfig


def read_optimal(path: Path) -> OptimalConfig:
    """The [optimal] table of a TOML file, its paths beside the file. PhialError where it is not right."""
    return read_config(path, _OptimalFile).optimal.beside(path)
