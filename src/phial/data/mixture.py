"""Which document is trained on in which phase, and how often (phi3-spec §3.5).

A phase asks for T tokens, shared among its sources by weight. A source's documents within the score range hold f*U
unique tokens and are read e = T/(f*U) times; more than the cap is an error. Phases share no document: where several
want one, a hash of its id and the seed decides, so that neither the order of files nor the number of workers matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from phial.data.tokens import Part
from phial.data.word_hashes import mix
from phial.errors import PhialError

UNUSED, VALIDATION = -1, -2
_BINS = 1 << 16
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class ShareConfig(BaseModel):
    """What a phase takes of one source: documents with min_quality <= quality < max_quality."""

    model_config = _FROZEN

    source: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the phase's tokens, beside the others'")
    min_quality: float | None = None
    max_quality: float | None = None
    max_epochs: float | None = Field(None, gt=0, description="this source's own cap")
    claim: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="share of documents that other phases want too; by demand if left out",
    )

    @property
    def range(self) -> tuple[float, float]:
        low = -np.inf if self.min_quality is None else self.min_quality
        return low, np.inf if self.max_quality is None else self.max_quality

    @property
    def ranged(self) -> bool:
        return self.min_quality is not None or self.max_quality is not None


class PhaseConfig(BaseModel):
    """One phase of training."""

    model_config = _FROZEN

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    tokens: int | None = Field(None, gt=0, description="T; left out, the most that repeats nothing")
    sources: tuple[ShareConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ranges_are_apart(self) -> PhaseConfig:
        for place, one in enumerate(self.sources):
            if one.range[0] >= one.range[1]:
                raise ValueError(f"{one.source}: no quality lies in {list(one.range)}")
            for other in self.sources[:place]:
                apart = one.range[0] >= other.range[1] or other.range[0] >= one.range[1]
                if one.source == other.source and not apart:
                    raise ValueError(f"phase {self.name} names {one.source} twice, with scores in common")
        return self


class MixConfig(BaseModel):
    """The mixture."""

    model_config = _FROZEN

    tokenizer: str = Field(description="a GGUF file or a Hugging Face folder")
    seed: int = Field(0, ge=0)
    validation: float = Field(0.005, ge=0, lt=1, description="share of each source's documents that no phase sees")
    max_epochs: float = Field(4.0, gt=0, description="cap for web text, §3.5")
    max_epochs_synthetic: float = Field(8.0, gt=0, description="cap for synthetic text; phi-1's epochs, §3.2")
    shard_tokens: int = Field(100_000_000, gt=0, description="about this many tokens a shard")
    phases: tuple[PhaseConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _phases_fit(self) -> MixConfig:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names) or not {"validation", "work"}.isdisjoint(names):
            raise ValueError("phases need different names, and none is called validation or work")
        if len({phase.tokens is None for phase in self.phases}) != 1:
            raise ValueError("either every phase says its tokens, or none does")
        return self

    def beside(self, file: Path) -> MixConfig:
        """The same with the tokenizer's path taken from the folder of `file`."""
        return self.model_copy(update={"tokenizer": str(file.parent / self.tokenizer)})


class Slot(NamedTuple):
    """A source's place in a phase."""

    phase: int
    share: ShareConfig
    part_of_phase: float  # its weight over all weights
    claim: float


class Planned(NamedTuple):
    """A slot of the plan table.

    Attributes:
        documents, unique_tokens: what the phase has of this source. tokens: what it reads, repeats among them.
        epochs: tokens wanted over unique tokens. cap: the most allowed.
        copies: full passes. last: greatest selection hash of the pass that is not full; -1 for no such pass.
    """

    phase: str
    source: str
    min_quality: float | None
    max_quality: float | None
    documents: int
    unique_tokens: int
    epochs: float
    cap: float
    tokens: int
    share: float
    copies: int
    last: int


class Plan(NamedTuple):
    """All slots, and what no phase takes: {source: [documents, tokens]}."""

    slots: list[Planned]
    validation: dict[str, list[int]]
    unused: dict[str, list[int]]

    def json(self) -> dict[str, Any]:
        """As plan.json has it: phases with their sources."""
        phases = []
        for name in dict.fromkeys(slot.phase for slot in self.slots):
            rows = [slot._asdict() for slot in self.slots if slot.phase == name]
            phases.append({"name": name, "tokens": sum(row["tokens"] for row in rows), "sources": rows})
        return {"phases": phases, "validation": self.validation, "unused": self.unused}


def hashes(keys: NDArray[Any], seed: int, purpose: str) -> NDArray[np.uint64]:
    """64 bits for each document, independent from purpose to purpose (splitmix64's finish over the salted key)."""
    salt = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return mix(keys.astype(np.uint64) ^ np.frombuffer(salt, "<u8"))


def unit(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return np.asarray((values >> np.uint64(11)) * 2.0**-53, np.float64)


def slots_of(config: MixConfig) -> list[Slot]:
    """Every source of every phase, in order."""
    slots = []
    for place, phase in enumerate(config.phases):
        total = sum(share.weight for share in phase.sources)
        for share in phase.sources:
            part = share.weight / total
            slots.append(Slot(place, share, part, share.claim or part * (phase.tokens or 1)))
    return slots


def assign(part: Part, table: NDArray[Any], slots: Sequence[Slot], config: MixConfig) -> NDArray[np.int64]:
    """For each document the number of its slot, or UNUSED, or VALIDATION."""
    numbers = {source: number for number, source in enumerate(part.sources)}
    claims = np.zeros((len(table), len(slots)))
    for column, slot in enumerate(slots):
        fits = table["source"] == numbers.get(slot.share.source, -1)
        if slot.share.ranged:
            low, high = slot.share.range
            fits &= (table["quality"] >= low) & (table["quality"] < high)
        claims[fits, column] = slot.claim
    bounds = np.cumsum(claims, axis=1)
    wanted = bounds[:, -1] > 0
    dice = unit(hashes(table["key"], config.seed, "phase")) * bounds[:, -1]
    chosen = np.where(wanted, np.argmax(bounds > dice[:, None], axis=1), UNUSED)
    held = wanted & (unit(hashes(table["key"], config.seed, "validation")) < config.validation)
    return np.asarray(np.where(held, VALIDATION, chosen), np.int64)


class _Counts:
    """Totals of one pass over all parts."""

    def __init__(self, n_slots: int) -> None:
        self.documents = np.zeros(n_slots, np.int64)
        self.tokens = np.zeros(n_slots, np.int64)
        self.synthetic = np.zeros(n_slots, np.int64)
        self.bins = np.zeros((n_slots, _BINS), np.int64)  # tokens by selection hash
        self.left: dict[int, dict[str, list[int]]] = {UNUSED: {}, VALIDATION: {}}


def make_plan(parts: Sequence[Part], config: MixConfig) -> Plan:
    """The plan for tokenised parts.

    Raises:
        PhialError: a source that is not there or has no fitting document, documents without the score that a range
            asks for, or more epochs than the cap allows.
    """
    slots = slots_of(config)
    _check_sources(parts, slots)
    counts = _count(parts, slots, config)
    for number, slot in enumerate(slots):
        if not counts.tokens[number]:
            low, high = slot.share.range
            raise PhialError(
                f"phase {config.phases[slot.phase].name}: no document of {slot.share.source} is left for it"
                + (f" with a score from {low:g} to {high:g}" if slot.share.ranged else ""),
                "widen the range, or give the phase a larger claim",
            )
    wanted = _wanted(slots, counts, config)
    caps = [_cap(slot, number, counts, config) for number, slot in enumerate(slots)]
    for number, slot in enumerate(slots):
        _check_cap(slot, wanted[number], int(counts.tokens[number]), caps[number], config)
    rows = []
    for number, slot in enumerate(slots):
        unique = int(counts.tokens[number])
        copies, rest = divmod(wanted[number], unique)
        last, added = _last_pass(parts, slots, config, number, rest, counts.bins[number]) if rest else (-1, 0)
        share, tokens = slot.share, copies * unique + added
        epochs, documents = wanted[number] / unique, int(counts.documents[number])
        rows.append(
            Planned(config.phases[slot.phase].name, share.source, share.min_quality, share.max_quality, documents,
                    unique, epochs, caps[number], tokens, 0.0, copies, last)
        )  # fmt: skip
    totals = {phase.name: sum(row.tokens for row in rows if row.phase == phase.name) for phase in config.phases}
    rows = [row._replace(share=row.tokens / totals[row.phase]) for row in rows]
    return Plan(rows, counts.left[VALIDATION], counts.left[UNUSED])


def _check_sources(parts: Sequence[Part], slots: Sequence[Slot]) -> None:
    known = sorted({source for part in parts for source in part.sources})
    for slot in slots:
        if slot.share.source not in known:
            raise PhialError(
                f"the corpus has no source {slot.share.source!r}", "it has: " + (", ".join(known) or "no documents")
            )


def _count(parts: Sequence[Part], slots: Sequence[Slot], config: MixConfig) -> _Counts:
    counts = _Counts(len(slots))
    for part in parts:
        table = part.table()
        _check_scores(part, table, slots)
        chosen = assign(part, table, slots, config)
        lengths, bins = table["length"].astype(np.int64), selection(table["key"], config.seed) >> np.uint64(48)
        for number in range(len(slots)):
            rows = chosen == number
            counts.documents[number] += rows.sum()
            counts.tokens[number] += lengths[rows].sum()
            counts.synthetic[number] += table["synthetic"][rows].sum(dtype=np.int64)
            np.add.at(counts.bins[number], bins[rows].astype(np.int64), lengths[rows])
        for kind, totals in counts.left.items():
            for number, source in enumerate(part.sources):
                rows = (chosen == kind) & (table["source"] == number)
                if rows.any():
                    before = totals.get(source, [0, 0])
                    totals[source] = [before[0] + int(rows.sum()), before[1] + int(lengths[rows].sum())]
    return counts


def selection(keys: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """The hash by which documents enter a pass that is not full: the least first."""
    return hashes(keys, seed, "last pass")


def _check_scores(part: Part, table: NDArray[Any], slots: Sequence[Slot]) -> None:
    for number, source in enumerate(part.sources):
        if any(slot.share.ranged and slot.share.source == source for slot in slots):
            missing = int(np.isnan(table["quality"][table["source"] == number]).sum())
            if missing:
                raise PhialError(
                    f"{missing} documents of {source} have no quality score (part {part.name}), a phase wants one",
                    "score them first: phial data score; or leave min_quality and max_quality out",
                )


def _wanted(slots: Sequence[Slot], counts: _Counts, config: MixConfig) -> list[int]:
    """Tokens asked of each slot; a phase without a number of tokens gets the most that repeats nothing."""
    wanted = []
    for slot in slots:
        tokens: float | None = config.phases[slot.phase].tokens
        if tokens is None:
            own = [(n, other) for n, other in enumerate(slots) if other.phase == slot.phase]
            tokens = min(int(counts.tokens[n]) / other.part_of_phase for n, other in own)
        wanted.append(max(1, round(tokens * slot.part_of_phase)))
    return wanted


def _cap(slot: Slot, number: int, counts: _Counts, config: MixConfig) -> float:
    """A source is synthetic where each of its documents is."""
    if slot.share.max_epochs is not None:
        return slot.share.max_epochs
    synthetic = counts.synthetic[number] == counts.documents[number]
    return config.max_epochs_synthetic if synthetic else config.max_epochs


def _check_cap(slot: Slot, wanted: int, unique: int, cap: float, config: MixConfig) -> None:
    if wanted <= cap * unique:
        return
    phase = config.phases[slot.phase]
    most = int(cap * unique / slot.part_of_phase)
    raise PhialError(
        f"phase {phase.name} wants {wanted:,} tokens of {slot.share.source}, which has {unique:,} unique ones for it: "
        f"{wanted / unique:.2f} epochs, the cap is {cap:g}",
        f"at these weights it can have {most:,} tokens; or lower the weight, widen the scores, or set max_epochs",
    )


def _last_pass(
    parts: Sequence[Part], slots: Sequence[Slot], config: MixConfig, number: int, rest: int, bins: NDArray[np.int64]
) -> tuple[int, int]:
    """The greatest selection hash of a pass of `rest` tokens, and its tokens: the first documents that reach `rest`."""
    sums = np.cumsum(bins)
    at = int(np.searchsorted(sums, rest))
    before = int(sums[at - 1]) if at else 0
    found = []
    for part in parts:
        table = part.table()
        chosen = selection(table["key"], config.seed)
        rows = (assign(part, table, slots, config) == number) & (chosen >> np.uint64(48) == at)
        found += list(zip(chosen[rows].tolist(), table["length"][rows].tolist(), strict=True))
    for value in sorted({value for value, _ in found}):
        before += sum(length for other, length in found if other == value)
        if before >= rest:
            return value, before
    raise AssertionError("the bins and the documents disagree")
