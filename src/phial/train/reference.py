"""The reference of preference tuning: what the model, as it is before training, gives each answer's tokens.

    folder/reference.npy    float32, one a token of an answer, in the order of pair_batches.py; NaN where not computed
    folder/reference.json   the sha256 of the model and of the data, what else the numbers depend on, and, once all are
                            there, the sha256 of reference.npy

Computed once, a step's pairs at a time, over the very rows that training will see first: there the policy's numbers are
bit for bit the reference's. What is interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from phial.errors import PhialError
from phial.manifest import sha256_of, write_json
from phial.train.layers import prepared_layers
from phial.train.loop import LoopConfig, autocast
from phial.train.objective import IGNORED
from phial.train.pair_batches import PairBatches
from phial.train.preference import answer_log_probs
from phial.train.processes import Processes

_PATIENCE = 10.0  # seconds between two words of how far it is
_HEADER = 128  # bytes before the numbers of a .npy file with one short dimension
_NUMBERS = "numbers"


def fill_reference(
    model: nn.Module,
    data: PairBatches,
    path: Path,
    about: Mapping[str, Any],
    config: LoopConfig,
    processes: Processes,
    tell: Callable[[str], None],
    *,
    learnt: bool,
) -> None:
    """Give the data their reference, from the file where it has it, and keep the rest there.

    Args:
        path: the .npy file; its record stands beside it.
        about: what the numbers depend on; a file of anything else is refused.
        learnt: whether the pairs are trained on: numbers as training computes them, else as evaluation does.

    Raises PhialError for a file of other data or another model, or one that is damaged.
    """
    first = processes.rank == 0
    wanted = json.loads(json.dumps(dict(about)))
    stored = _opened(path, wanted, len(data.reference)) if first else None
    processes.sums([0.0])  # the file is there
    data.reference[:] = _read(path, len(data.reference)) if stored is None else stored
    model.eval()
    said, done = time.monotonic(), 0
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(learnt))  # attention is computed otherwise without gradients
        stack.enter_context(prepared_layers(model, recompute=learnt, compile=config.compile))
        stack.enter_context(autocast(model, config))
        for step in range(data.steps):
            pairs = data.pairs_of(step)
            done += len(pairs)
            if all(np.isfinite(data.reference[data.tokens_of(pair)]).all() for pair in pairs):
                continue
            _step(model, data, step, processes)
            if stored is not None:
                for pair in pairs:
                    stored[data.tokens_of(pair)] = data.reference[data.tokens_of(pair)]
                if isinstance(stored, np.memmap):
                    stored.flush()
            if first and time.monotonic() > said + _PATIENCE:
                said = time.monotonic()
                total = min(data.visits, len(data.pairs))
                tell(f"reference: {min(done, total):,} of {total:,} pairs")
    if first:
        write_json(path.with_suffix(".json"), wanted | {_NUMBERS: sha256_of(path)})


def _step(model: nn.Module, data: PairBatches, step: int, processes: Processes) -> None:
    """Fill in a step's pairs, each process its own; all have everything afterwards."""
    device = next(model.parameters()).device
    pairs = dict.fromkeys(data.pairs_of(step))
    own = np.concatenate([np.arange(place.start, place.stop) for place in map(data.tokens_of, pairs)])
    data.reference[own] = 0
    times = dict.fromkeys(pairs, 0)  # once, but for pairs that end one epoch and begin the next
    for batch in data.micro_batches(step, processes.rank, processes.world):
        if "pairs" in batch:
            log_p = answer_log_probs(model, {name: values.to(device) for name, values in batch.items()})
            values, done = log_p.detach().cpu()[batch["targets"] != IGNORED].numpy(), 0
            for pair in batch["pairs"].tolist():
                place = data.tokens_of(pair)
                times[pair] = 1
                data.reference[place] = values[done : done + place.stop - place.start]
                done += place.stop - place.start
    by_token = [times[pair] for pair in pairs for _ in range(data.tokens_of(pair).start, data.tokens_of(pair).stop)]
    totals = processes.sums([*data.reference[own].tolist(), *map(float, by_token)])
    data.reference[own] = np.divide(totals[: len(own)], totals[len(own) :])


def _opened(path: Path, wanted: dict[str, Any], size: int) -> NDArray[np.float32]:
    """The file, mapped, to be filled; made where there is none. Raises PhialError as fill_reference()."""
    record = path.with_suffix(".json")
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.save(file, np.full(size, np.nan, np.float32))
            file.flush()
            os.fsync(file.fileno())  # zeros where a power cut leaves holes would be taken for numbers
        write_json(record, wanted)
        os.replace(partial, path)
    try:
        known = dict(json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PhialError(f"{record} cannot be read: {error}", f"remove {path}; it is computed anew") from error
    numbers = known.pop(_NUMBERS, None)
    if known != wanted:
        key = next(key for key in {**known, **wanted} if known.get(key) != wanted.get(key))
        hint = f"put it back, use another folder, or remove {path.parent} to start afresh"
        raise PhialError(f"{path} is of another {key}: {known.get(key)}, not {wanted.get(key)}", hint)
    found = _read(path, size, "r+")
    if numbers is not None and sha256_of(path) != numbers:
        raise PhialError(f"{path} was altered since it was computed", "remove it; it is computed anew")
    if numbers is not None and np.isnan(found).any():
        write_json(record, wanted)  # more may be filled in
    return found


def _read(path: Path, size: int, mode: Any = "r") -> NDArray[np.float32]:
    """The file, mapped as it is: mapping one that was cut short to be written would fill it up with zeros."""
    try:
        if path.stat().st_size != _HEADER + 4 * size:
            raise ValueError(f"it is no file of {size:,} numbers")
        found: NDArray[np.float32] = np.lib.format.open_memmap(path, mode)
    except (OSError, ValueError) as error:
        raise PhialError(f"{path} cannot be read: {error}", "remove it; it is computed anew") from error
    if found.dtype != np.float32 or found.shape != (size,):
        raise PhialError(f"{path} holds {found.dtype} {found.shape}, not {size:,} numbers", "remove it")
    return found
