"""From a stage's documents to a folder of token shards for each phase, in the order in which they are trained on.

OUTPUT/plan.json        the plan table
OUTPUT/PHASE/           shards, repeats written out; position p of a training is token p of the folder
OUTPUT/validation/      one shard for each source, of documents that no phase has
OUTPUT/work/            every document's tokens, once; may be removed

Order: pass k of a source of e epochs is spread over [k/e, (k+1)/e) of its phase by a hash of document, seed and pass,
so every stretch of a phase has the mixture's proportions and a repeat comes an epoch later. A shard is an interval of
that line; it is sorted by itself, so memory is bounded by a shard's documents and one part's table. Every shard looks
at every part's table, which is the cost of needing no sort of the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from phial.config_file import read_config
from phial.data.mixture import (
    VALIDATION,
    MixConfig,
    Plan,
    Planned,
    assign,
    hashes,
    make_plan,
    selection,
    slots_of,
    unit,
)
from phial.data.parallel import run_jobs
from phial.data.shards import ShardWriter, write_index
from phial.data.stage import kept_files
from phial.data.tokens import Part, tokenise
from phial.errors import PhialError
from phial.gguf.open_tokenizer import open_tokenizer
from phial.manifest import sha256_of, write_json

PLAN = "plan.json"
_VALIDATION = "validation"


class _MixFile(BaseModel):
    model_config = ConfigDict(extra="ignore")  # a whole run's file will do, its other tables are not looked at

    mix: MixConfig


def read_mix(path: Path) -> MixConfig:
    """The [mix] table of a TOML file, the tokenizer's path beside the file. PhialError where it is not right."""
    return read_config(path, _MixFile).mix.beside(path)


class _Job(NamedTuple):
    """One shard: the interval `number` of `count` of a phase, or a source's validation documents."""

    folder: Path
    phase: str
    number: int
    of: int
    source: str | None
    parts: list[Part]
    rows: list[Planned]
    config: MixConfig
    n_vocab: int
    record: str


def plan_mixture(stage: Path, config: MixConfig, output: Path, *, workers: int = 1) -> tuple[Plan, list[Part]]:
    """Tokenise what a stage kept (once) and plan the mixture. Raises PhialError as kept_files, tokenise, make_plan."""
    files = kept_files(stage)
    parts = tokenise(files, output / "work", config.tokenizer, workers)
    return make_plan(parts, config), parts


def mix(stage: Path, config: MixConfig, output: Path, *, workers: int = 1) -> Plan:
    """Write the shards of all phases and of validation; whole ones of an earlier run with the same inputs are kept.

    Raises:
        PhialError: as plan_mixture(), or `output` holds phases of another name.
    """
    plan, parts = plan_mixture(stage, config, output, workers=workers)
    names = {phase.name for phase in config.phases}
    others = sorted(p.parent.name for p in output.glob("*/index.json") if p.parent.name not in {*names, _VALIDATION})
    if others:
        raise PhialError(f"{output} holds phases of another mixture: {', '.join(others)}", "choose another folder")
    opened = open_tokenizer(config.tokenizer)
    jobs = _jobs(plan, parts, config, output, opened.tokenizer.n_vocab, opened.fingerprint)
    for folder in {job.folder for job in jobs}:
        (folder / "index.json").unlink(missing_ok=True)
    entries = run_jobs(_write_shard, jobs, workers, "shards")
    for folder in sorted({job.folder for job in jobs}):
        own = [entry for job, entry in zip(jobs, entries, strict=True) if job.folder == folder]
        _remove_old(folder, {entry["name"] for entry in own})
        write_index(folder, own, opened.described, phase=folder.name, seed=config.seed)
    write_json(output / PLAN, plan.json())
    return plan


def _jobs(plan: Plan, parts: list[Part], config: MixConfig, output: Path, n_vocab: int, tokenizer: str) -> list[_Job]:
    settings = config.model_dump(mode="json", exclude={"tokenizer"})
    what = [settings, tokenizer, [part.digest for part in parts], [part.sources for part in parts]]
    record = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    jobs = []
    for phase in config.phases:
        tokens = sum(row.tokens for row in plan.slots if row.phase == phase.name)
        count = -(-tokens // config.shard_tokens)
        for number in range(count):
            folder = output / phase.name
            jobs.append(
                _Job(folder, phase.name, number, count, None, parts, plan.slots, config, n_vocab, f"{record} {count}")
            )
    for number, source in enumerate(sorted(plan.validation)):
        folder = output / _VALIDATION
        jobs.append(_Job(folder, "", number, 1, source, parts, plan.slots, config, n_vocab, f"{record} {source}"))
    return jobs


def _write_shard(job: _Job) -> dict[str, Any]:
    name = f"{job.number:05}"
    done = _finished(job, name)
    if done is not None:
        return done
    (job.folder / f"{name}.json").unlink(missing_ok=True)
    found = list(_validation_rows(job) if job.source is not None else _phase_rows(job))
    order = np.concatenate([order for order, _, _, _ in found]) if found else np.zeros(0)
    keys = np.concatenate([keys for _, keys, _, _ in found]) if found else np.zeros(0, np.uint64)
    places = np.concatenate([np.full(len(rows), part) for _, _, part, rows in found]) if found else np.zeros(0, int)
    rows = np.concatenate([rows for _, _, _, rows in found]) if found else np.zeros(0, int)
    writer = ShardWriter(job.folder, name, job.n_vocab)
    maps, tables = [part.map() for part in job.parts], {}
    for at in np.lexsort((rows, places, keys, order)).tolist():
        place, row = int(places[at]), int(rows[at])
        if place not in tables:
            table = job.parts[place].table()
            tables[place] = (table["start"].astype(np.int64), table["length"].astype(np.int64))
        start, length = (int(values[row]) for values in tables[place])
        writer.add(maps[place][start : start + length], int(keys[at]))
    entry = writer.close(**({} if job.source is None else {"source": job.source}))
    write_json(job.folder / f"{name}.json", {"record": job.record, "entry": entry})
    return entry


_Rows = tuple[NDArray[np.float64], NDArray[np.uint64], int, NDArray[np.int64]]  # order, key, part, row in its table


def _phase_rows(job: _Job) -> Iterator[_Rows]:
    """Documents whose place in the phase lies in the shard's interval, one entry for each pass."""
    slots, seed = slots_of(job.config), job.config.seed
    for place, part in enumerate(job.parts):
        table = part.table()
        chosen = assign(part, table, slots, job.config)
        for number, planned in enumerate(job.rows):
            if planned.phase != job.phase:
                continue
            rows = np.flatnonzero(chosen == number)
            keys = table["key"][rows].astype(np.uint64)
            for order, picked in _passes(keys, planned, seed):
                order = np.minimum(order, np.nextafter(1.0, 0.0))
                here = np.floor(order * job.of).astype(np.int64) == job.number
                yield order[here], keys[picked][here], place, rows[picked][here]


def _passes(
    keys: NDArray[np.uint64], planned: Planned, seed: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """For each pass over a source: places in [0, 1), and which documents they are of."""
    everything = np.arange(len(keys))
    passes = planned.copies + (0 if planned.last < 0 else (planned.last + 1) * 2.0**-64)
    for number in range(planned.copies):
        yield (number + unit(hashes(keys, seed, f"{planned.phase} {number}"))) / passes, everything
    if planned.last >= 0:
        chosen = selection(keys, seed)
        picked = np.flatnonzero(chosen <= np.uint64(planned.last))
        yield (planned.copies + unit(chosen[picked])) / passes, picked


def _validation_rows(job: _Job) -> Iterator[_Rows]:
    slots = slots_of(job.config)
    for place, part in enumerate(job.parts):
        if job.source not in part.sources:
            continue
        table = part.table()
        held = assign(part, table, slots, job.config) == VALIDATION
        rows = np.flatnonzero(held & (table["source"] == part.sources.index(job.source)))
        keys = table["key"][rows].astype(np.uint64)
        yield unit(hashes(keys, job.config.seed, "validation order")), keys, place, rows


def _finished(job: _Job, name: str) -> dict[str, Any] | None:
    """The entry of a shard that an earlier run wrote from the same inputs, its bytes unchanged."""
    try:
        found = json.loads((job.folder / f"{name}.json").read_text("utf-8"))
        entry: dict[str, Any] = found["entry"]
        if found["record"] != job.record:
            return None
        same = all(sha256_of(job.folder / f"{name}.{part}") == value for part, value in entry["sha256"].items())
        return entry if same else None
    except (OSError, ValueError, KeyError):
        return None


def _remove_old(folder: Path, names: set[str]) -> None:
    """Take away shards that an earlier mixture wrote into the folder beyond this one's."""
    for path in folder.iterdir():
        stem, _, kind = path.name.partition(".")
        if stem.isdigit() and stem not in names and kind in {"tokens", "starts", "keys", "json"}:
            path.unlink()
