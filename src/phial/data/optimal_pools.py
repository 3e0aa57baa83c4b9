"""The documents of each keep-rate as token shards: the best f of a pool, every pool within the next.

Documents are ranked by their stored score, equal scores by a hash, and cut where the tokens add up to f of the pool's;
so the pools are nested and a number stands for each. The pool itself may be a sample of the corpus, by hash, so that
small trainings repeat it as often as large ones will repeat the whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.mixture import hashes
from phial.data.optimal_config import OptimalConfig
from phial.data.shards import ShardReader, ShardWriter, read_index, write_index
from phial.data.stage import kept_files
from phial.data.tokens import Part, tokenise
from phial.errors import ArgumentError, PhialError
from phial.gguf.open_tokenizer import open_tokenizer
from phial.manifest import sha256_of, write_json

POOLS = "pools.json"


class Pool(NamedTuple):
    """A folder of shards.

    Attributes:
        digest: of what is in it. least: the lowest score among its ranked documents.
    """

    folder: Path
    tokens: int
    documents: int
    least: float
    digest: str


class Pools(NamedTuple):
    """All pools: of each keep-rate, and of the two phases where the table asks for them."""

    keep: list[Pool]
    phases: list[Pool]

    @property
    def buckets(self) -> list[int]:
        """Tokens that each keep-rate adds to the one before."""
        ends = [0, *(pool.tokens for pool in self.keep)]
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]


class _Documents(NamedTuple):
    """Documents of all parts: their rows, and the part each is in."""

    rows: NDArray[Any]
    parts: NDArray[np.int64]

    def take(self, chosen: Any) -> _Documents:
        return _Documents(self.rows[chosen], self.parts[chosen])

    @property
    def tokens(self) -> int:
        return int(self.rows["length"].sum(dtype=np.int64))


def make_pools(config: OptimalConfig, output: Path, *, workers: int = 1) -> Pools:
    """Tokenise the stage's documents (once) and write the pools; those of an earlier run with the same inputs stay.

    Raises PhialError for documents without a score, a validation of another tokenizer, a pool too small or without
    documents, or a source that is not there.
    """
    tokenizer = open_tokenizer(str(config.tokenizer))
    if read_index(config.validation)["tokenizer"].get("fingerprint") != tokenizer.fingerprint:
        raise PhialError(f"{config.validation} was made with another tokenizer", "mix it again with this one")
    parts = tokenise(kept_files(config.stage), output / "work", str(config.tokenizer), workers)
    record = _record(config, parts)
    done = _finished(output, record)
    if done is not None:
        return done
    pool, extra = _pool(config, parts)
    ranked = _ranked(pool, config)
    keep = [_best(ranked, rate) for rate in config.keep_rates]
    wanted = {f"keep-{rate:g}": documents for rate, documents in zip(config.keep_rates, keep, strict=True)}
    if config.phase_2:
        best = _best(ranked, config.phase_2.best)
        wanted["phase-1"] = _best(ranked, config.phase_2.keep_rate).take(slice(len(best.rows), None))
        wanted["phase-2"] = _Documents(
            np.concatenate([best.rows, extra.rows]), np.concatenate([best.parts, extra.parts])
        )
    written = {
        name: _write(output / "pools" / name, documents, parts, config, tokenizer.described)
        for name, documents in wanted.items()
    }
    write_json(output / POOLS, {"record": record, "pools": {name: pool[1:] for name, pool in written.items()}})
    return _sorted_out(written)


def _record(config: OptimalConfig, parts: list[Part]) -> dict[str, Any]:
    asked = {"seed", "sources", "pool_tokens", "keep_rates", "phase_2"}
    return {
        "config": config.model_dump(mode="json", include=asked),
        "parts": [part.digest for part in parts],
        "validation": sha256_of(config.validation / "index.json"),
    }


def _finished(output: Path, record: dict[str, Any]) -> Pools | None:
    """The pools of an earlier run with this record, their files whole by size."""
    try:
        found = json.loads((output / POOLS).read_text("utf-8"))
        if found["record"] != record:
            return None
        pools = {name: Pool(output / "pools" / name, *row) for name, row in found["pools"].items()}
        for pool in pools.values():
            ShardReader(pool.folder)
    except (OSError, ValueError, KeyError, TypeError, PhialError):
        return None
    return _sorted_out(pools)


def _sorted_out(pools: dict[str, Pool]) -> Pools:
    keep = [pool for name, pool in pools.items() if name.startswith("keep-")]
    return Pools(sorted(keep, key=lambda pool: pool.tokens), [pools[n] for n in ("phase-1", "phase-2") if n in pools])


def _pool(config: OptimalConfig, parts: list[Part]) -> tuple[_Documents, _Documents]:
    """The documents that are ranked, and phase 2's from sources of its own; none of them in validation."""
    own = set(config.phase_2.sources if config.phase_2 else ())
    known = {source for part in parts for source in part.sources}
    if missing := sorted((own | set(config.sources)) - known):
        raise PhialError(f"the stage has no source {missing[0]!r}", "it has: " + ", ".join(sorted(known)))
    reader = ShardReader(config.validation)
    held = np.array([reader.key(number) for number in range(reader.n_documents)], np.uint64)
    rows, places, extra = [], [], []
    for place, part in enumerate(parts):
        table = part.table()
        names = np.array([*part.sources, ""])[table["source"]]
        ours = np.isin(names, list(config.sources)) if config.sources else ~np.isin(names, list(own))
        ours |= np.isin(names, list(own))
        ours &= ~np.isin(table["key"], held)
        rows.append(table[ours])
        places.append(np.full(int(ours.sum()), place))
        extra.append(np.isin(names[ours], list(own)))
    documents, second = _Documents(np.concatenate(rows), np.concatenate(places)), np.concatenate(extra)
    pool = documents.take(~second)
    if config.pool_tokens is not None:
        pool = pool.take(np.argsort(hashes(pool.rows["key"], config.seed, "pool"), kind="stable"))
        if pool.tokens < config.pool_tokens:
            raise PhialError(f"pool_tokens is {config.pool_tokens:,}, the stage has {pool.tokens:,}", "ask for fewer")
        pool = pool.take(slice(_cut(pool, config.pool_tokens)))
    if not len(pool.rows):
        raise PhialError(f"{config.stage} has no document for the pool", "name its sources, or leave them out")
    return pool, documents.take(second)


def _ranked(pool: _Documents, config: OptimalConfig) -> _Documents:
    """The best first."""
    if missing := int(np.isnan(pool.rows["quality"]).sum()):
        raise PhialError(f"{missing} documents of {config.stage} have no quality score", "phial data score")
    ties = hashes(pool.rows["key"], config.seed, "rank")
    return pool.take(np.lexsort((ties, -pool.rows["quality"])))


def _best(ranked: _Documents, rate: float) -> _Documents:
    return ranked.take(slice(_cut(ranked, rate * ranked.tokens)))


def _cut(documents: _Documents, tokens: float) -> int:
    """How many documents from the first on it takes to have so many tokens."""
    return int(np.searchsorted(np.cumsum(documents.rows["length"], dtype=np.int64), tokens - 0.5)) + 1


def _write(folder: Path, documents: _Documents, parts: list[Part], config: OptimalConfig, tokenizer: Any) -> Pool:
    """One shard, its documents in an order that a hash gives."""
    if not len(documents.rows):
        raise ArgumentError(f"no document is left for {folder.name}", "another keep-rate, or a larger pool")
    (folder / "index.json").unlink(missing_ok=True)
    writer, maps = ShardWriter(folder, "00000", tokenizer["n_vocab"]), [part.map() for part in parts]
    for at in np.argsort(hashes(documents.rows["key"], config.seed, "order"), kind="stable"):
        row, start = documents.rows[at], int(documents.rows["start"][at])
        writer.add(maps[documents.parts[at]][start : start + int(row["length"])], int(row["key"]))
    entry = writer.close()
    write_index(folder, [entry], tokenizer, seed=config.seed)
    least = float(np.nanmin(documents.rows["quality"])) if not np.isnan(documents.rows["quality"]).all() else 0.0
    return Pool(folder, entry["tokens"], entry["documents"], least, entry["sha256"]["tokens"])
