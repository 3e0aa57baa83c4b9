"""manifest.json of a run's folder: what is trained, with what, where; written first, compared when the run goes on.

A lock keeps a second run out of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from phial import __version__
from phial.errors import PhialError
from phial.manifest import write_json

PATIENCE = 12.0  # seconds
MANIFEST = "manifest.json"
WRITTEN = ("checkpoints", "metrics.jsonl", "data.json", "model", "adapter")  # what a run writes over or removes
# what may change, because no weight depends on it (nor, but for rounding, on the number of processes)
FREE = {"loop.log_every", "loop.checkpoint_every", "loop.keep", "loop.shards"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a run's folder alone. Raises PhialError where another run has it.

    Processes that read ahead share their parent's lock and live on for some seconds where it was killed: hence a wait.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise PhialError(f"another run trains in {folder}", "wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def open_record(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the manifest of a new run, or add this start to an older one's.

    Raises PhialError where the folder's run has another configuration, with the first key that differs, and where there
    is no run, but files that this one would write over.
    """
    path = folder / MANIFEST
    config = json.loads(json.dumps(config, default=str))
    refuse_other(folder, config)
    if record := read_record(path):
        _refuse_difference(folder, record["config"], config)
    write_json(path, {"config": config, "starts": [*record.get("starts", []), _start()]})


def refuse_other(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises PhialError, as open_record(), where the folder's run is of something else than `about`; writes nothing."""
    if record := read_record(folder / MANIFEST):
        _refuse_difference(folder, {key: record["config"].get(key) for key in about}, about)
    elif there := [name for name in WRITTEN if (folder / name).exists()]:
        hint = f"use another folder, or move {there[0]} away: it would be lost"
        raise PhialError(f"{folder} has {there[0]} and no {MANIFEST}", hint)


def read_record(path: Path) -> dict[str, Any]:
    """A manifest; {} where there is none. Raises PhialError where it is none of ours."""
    try:
        record = json.loads(path.read_text("utf-8"))
        if not isinstance(record["config"], dict) or not isinstance(record["starts"], list):
            raise TypeError("config or starts")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PhialError(f"{path} is no manifest of a run: {error!r}", "use another folder") from error
    return dict(record)


def frozen_digest(model: nn.Module) -> str | None:
    """sha256 of all weights that are not trained, by name; None where every one is. Checkpoints are without them."""
    held: list[tuple[str, Tensor]] = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    if not held:
        return None
    return weights_digest([*held, *model.named_buffers()])


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _start() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"phial": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": {"name": platform.node(), "system": platform.platform(), "device": device, "cores": os.cpu_count()},
    }


def _refuse_difference(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if key := _difference(was, now):
        hint = f"put it back, use another folder, or remove {folder} to start afresh"
        raise PhialError(f"the run in {folder} has {key} = {_at(was, key)}, not {_at(now, key)}", hint)


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first key, dotted, whose values differ."""
    old, new = dict(_flat(was)), dict(_flat(now))
    keys = sorted((old.keys() | new.keys()) - FREE)
    return next((key for key in keys if old.get(key) != new.get(key)), "")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _at(table: Mapping[str, Any], key: str) -> Any:
    return dict(_flat(table)).get(key, "nothing")
