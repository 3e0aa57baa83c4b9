"""LongRoPE's evolutionary search (arXiv 2402.13753; phi3-spec §4.4) for the factor list that scores lowest.

Lists are non-decreasing on a grid of 0.01 from 1 to a ceiling, held as whole hundredths so that equal lists are equal
keys. The population begins as the seeds and mutants of them; in each iteration the best become parents of mutants and
crossovers. Every score is written to a journal before the search goes on: one that was killed runs again from the start
with the same draws, takes the scores it has from there, and ends as it would have. Left out: leaving the first
positions unscaled (the paper's n_hat), which no released model uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from phial.errors import ArgumentError, PhialError
from phial.train.longrope.seeds import Factors

GRID = 100  # steps to 1
Vector = tuple[int, ...]  # factors in steps of the grid
Fitness = Callable[[Factors], float]  # lower is better; infinite or NaN: unusable


class SearchConfig(BaseModel):
    """How a search goes; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(64, ge=2)
    parents: int = Field(32, ge=2, description="the best, kept from one iteration to the next")
    mutations: int = Field(16, ge=0, description="new lists an iteration made by mutation")
    crossovers: int = Field(16, ge=0, description="new lists an iteration made of two parents")
    probability: float = Field(0.3, gt=0, le=1, description="that a mutation changes a factor")
    iterations: int = Field(40, ge=0)
    retries: int = Field(20, gt=0, description="attempts at a crossover that is non-decreasing")
    ceiling: float = Field(1.25, ge=1, description="largest factor, in multiples of the stretch")
    seed: int = Field(42, ge=0)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        factors, score: the best list.
        seeds: the score of each seed.
        curve: the best score of the first population and after each iteration.
        scored: how many different lists were scored.
    """

    factors: Factors
    score: float
    seeds: dict[str, float]
    curve: tuple[float, ...]
    scored: int


def search(
    fitness: Fitness,
    seeds: dict[str, Factors],
    stretch: float,
    config: SearchConfig,
    journal: Path,
    *,
    what: Any = None,
    show: Callable[[int, float], None] = lambda iteration, best: None,
) -> Found:
    """Find the list with the lowest fitness.

    Args:
        seeds: lists to begin with; rounded to the grid.
        stretch: the largest factor is config.ceiling times it.
        journal: file of scores; one of the same search is gone on from.
        what: JSON that says, besides the arguments here, what the fitness depends on.
        show: called after each iteration, 0 being the first population.

    Raises:
        ArgumentError: no seeds, seeds of different lengths, or decreasing ones.
        PhialError: the journal is of another search; no list has a finite score.
    """
    breed = _Breeding(seeds, stretch, config)
    header = {"seeds": seeds, "stretch": stretch, "config": config.model_dump(mode="json"), "what": what}
    with ScoreJournal(journal, header) as scores:

        def score(vector: Vector) -> float:
            return scores.get(vector, lambda: fitness(as_factors(vector)))

        named = {name: score(vector) for name, vector in breed.seeds.items()}
        population = _ranked(breed.first_population(), score)
        curve = [score(population[0])]
        show(0, curve[0])
        for iteration in range(1, config.iterations + 1):
            population = _ranked(breed.next_population(population[: config.parents]), score)
            curve.append(score(population[0]))
            show(iteration, curve[-1])
        if not math.isfinite(curve[-1]):
            raise PhialError("no factor list has a finite score", "check the model and the texts")
        return Found(as_factors(population[0]), curve[-1], named, tuple(curve), len(scores))


def as_factors(vector: Vector) -> Factors:
    """The factors of a vector of grid steps."""
    return tuple(step / GRID for step in vector)


def _ranked(vectors: Iterable[Vector], score: Callable[[Vector], float]) -> list[Vector]:
    """Best first; ties by the vector, so that the order follows from the scores alone."""
    return sorted(vectors, key=lambda vector: (score(vector), vector))


class _Breeding:
    """Draws vectors; what it draws depends on the seed and on the parents it is given."""

    def __init__(self, seeds: dict[str, Factors], stretch: float, config: SearchConfig) -> None:
        self.config, self.random = config, np.random.default_rng(config.seed)
        self.low, self.high = GRID, math.floor(GRID * config.ceiling * stretch + 1e-9)
        if not seeds or len({len(factors) for factors in seeds.values()}) != 1:
            raise ArgumentError(f"{len(seeds)} seeds of unequal or no length", "give lists of one length")
        self.seeds = {name: self._rounded(name, factors) for name, factors in seeds.items()}

    def _rounded(self, name: str, factors: Factors) -> Vector:
        if any(b < a for a, b in zip(factors, factors[1:], strict=False)):
            raise ArgumentError(f"seed {name} decreases", "LongRoPE's factors are non-decreasing")
        return tuple(min(max(round(GRID * factor), self.low), self.high) for factor in factors)

    def first_population(self) -> list[Vector]:
        """The seeds, mutants of them in turn, and random vectors where these repeat themselves."""
        seeds = list(dict.fromkeys(self.seeds.values()))
        made = dict.fromkeys(seeds)
        for i in range(self.config.retries * self.config.population):
            if len(made) >= self.config.population:
                break
            made.setdefault(self.mutant(seeds[i % len(seeds)]))
        return self._filled(made)

    def next_population(self, parents: Sequence[Vector]) -> list[Vector]:
        """The parents, mutants and crossovers of them that are new, and random vectors up to the population's size."""
        made = dict.fromkeys(parents)
        for _ in range(self.config.mutations):
            made.setdefault(self.mutant(parents[int(self.random.integers(len(parents)))]))
        for _ in range(self.config.crossovers):
            for _ in range(self.config.retries):
                left, right = (parents[int(i)] for i in self.random.integers(len(parents), size=2))
                child = self.crossover(left, right)
                if child is not None and child not in made:
                    made.setdefault(child)
                    break
        return self._filled(made)

    def mutant(self, vector: Vector) -> Vector:
        """Each factor with the configured probability drawn anew between its neighbours."""
        made = list(vector)
        for i in range(len(made)):
            if self.random.random() < self.config.probability:
                low = made[i - 1] if i else self.low
                high = made[i + 1] if i + 1 < len(made) else self.high
                made[i] = int(self.random.integers(low, high + 1))
        return tuple(made)

    def crossover(self, left: Vector, right: Vector) -> Vector | None:
        """Each factor from either parent; None where the result decreases."""
        picks = self.random.random(len(left)) < 0.5
        made = tuple(a if pick else b for a, b, pick in zip(left, right, picks, strict=True))
        return made if all(a <= b for a, b in zip(made, made[1:], strict=False)) else None

    def _filled(self, made: dict[Vector, None]) -> list[Vector]:
        for _ in range(self.config.population - len(made)):
            drawn = self.random.integers(self.low, self.high + 1, size=len(next(iter(made))))
            made.setdefault(tuple(int(step) for step in np.sort(drawn)))
        return list(made)


class ScoreJournal:
    """Scores by vector, each a line of a file, written before it is used; the torn last line of a kill is dropped.

    Raises PhialError where the file is of another search.
    """

    def __init__(self, path: Path, header: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._scores: dict[Vector, float] = {}
        first = json.dumps(header, sort_keys=True)
        whole = self._read(path, first) if path.exists() else 0
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.truncate(whole)
        if not whole:
            self._write(first)

    def _read(self, path: Path, first: str) -> int:
        """Take over the scores there are; how many bytes of the file are whole lines."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].decode("utf-8", "replace").splitlines()
        if lines and lines[0] != first:
            raise PhialError(f"{path} is the journal of another search", "remove it or name another folder")
        for number, line in enumerate(lines[1:], 2):
            try:
                vector, score = json.loads(line)
                self._scores[tuple(vector)] = float(score)
            except (ValueError, TypeError) as error:
                raise PhialError(f"{path}: line {number} is damaged", "remove the file; it is made again") from error
        return whole

    def get(self, vector: Vector, compute: Callable[[], float]) -> float:
        """The score of a vector, computed and kept where it is not known; NaN counts as infinite."""
        if vector not in self._scores:
            score = compute()
            self._scores[vector] = score if math.isfinite(score) else math.inf
            self._write(json.dumps([vector, self._scores[vector]]))
        return self._scores[vector]

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def __len__(self) -> int:
        return len(self._scores)

    def __enter__(self) -> ScoreJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
