"""Token shards handed to pretraining: opened, and their tokenizer held against the one the model is made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phial.data.shards import ShardReader, read_index
from phial.errors import PhialError
from phial.gguf.open_tokenizer import OpenTokenizer, open_tokenizer
from phial.train import pretrain as pretraining
from phial.train.parallel import torchrun_processes
from phial.train.pretrain import PlannedPhase, PretrainConfig

Say = Callable[[str], None]


def run_pretraining(
    config: PretrainConfig,
    folder: Path,
    say: Say,
    *,
    workers: int = 0,
    quiet: bool = False,
    start: Path | None = None,
) -> dict[str, Any]:
    """Pretrain as configured, together with the processes that torchrun started; {"model", "phases", "metrics"}.

    Args:
        say: is told what the phases come to, before anything is trained.
        quiet, start: as for train.loop.train().

    Raises PhialError for shards of another tokenizer, and as train.pretrain.pretrain().
    """
    if not config.tokenizer.is_dir():
        raise PhialError(f"tokenizer {config.tokenizer} is no folder", "phial convert makes one of a GGUF file")
    tokenizer = open_tokenizer(str(config.tokenizer))
    sources = [_opened(phase.data, tokenizer) for phase in config.phases]
    validation = {} if config.validation is None else _by_source(config.validation, tokenizer)
    phases = pretraining.plan(pretraining.batches(config, sources))
    with torchrun_processes() as processes:
        if processes.rank == 0:
            _say_phases(phases, validation, say)
        metrics = pretraining.pretrain(
            config,
            sources,
            {name: reader for name, reader in validation.items() if reader.n_tokens > 1},
            folder,
            n_vocab=tokenizer.tokenizer.n_vocab,
            eos_id=tokenizer.eos_id,
            workers=workers,
            processes=processes,
            about={"tokens": [_digest(source) for source in sources]},
            quiet=quiet,
            start=start,
        )
    model = str(folder / pretraining.MODEL)
    return {"model": model, "phases": [phase._asdict() for phase in phases], "metrics": metrics}


def _say_phases(phases: list[PlannedPhase], validation: dict[str, ShardReader], say: Say) -> None:
    for phase in phases:
        say(
            f"phase {phase.name}: {phase.steps:,} steps, {phase.tokens:,} tokens, "
            f"{phase.epochs:.2f} epochs of {phase.unique_tokens:,}"
        )
    for name, reader in sorted(validation.items()):
        if reader.n_tokens < 2:
            say(f"{name} has no validation text: its loss is not measured")


def _digest(reader: ShardReader) -> str:
    """A digest of a folder's tokens, by the sums that its index has."""
    return hashlib.sha256(json.dumps([shard["sha256"] for shard in reader.index["shards"]]).encode()).hexdigest()


def _by_source(folder: Path, tokenizer: OpenTokenizer) -> dict[str, ShardReader]:
    """A reader for each source of a validation folder."""
    names = {str(shard["source"]) for shard in read_index(folder)["shards"] if "source" in shard}
    if not names:
        raise PhialError(f"{folder} names no sources", "phial data mix writes a validation folder that does")
    return {name: _opened(folder, tokenizer, name) for name in sorted(names)}


def _opened(folder: Path, tokenizer: OpenTokenizer, source: str | None = None) -> ShardReader:
    reader = ShardReader(folder, source=source)
    if reader.index["tokenizer"].get("fingerprint") != tokenizer.fingerprint:
        raise PhialError(f"{folder} was made with another tokenizer", "mix the corpus again with this one")
    return reader
