"""Measures an importance matrix for `phial quantize`: an engine runs a text in chunks, and a stopped run goes on.

gguf knows no engine, so this file is where the two meet. With a file to save to, the sums so far are kept beside it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from phial.cli import console, loading, stdin
from phial.cli.progress import progress
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    from phial.engine.engine import Engine
    from phial.gguf.imatrix import ImportanceMatrix

_SAVE_EVERY = 30.0  # seconds of calibration that a kill may cost


def check_save(save: Path | None) -> None:
    """ArgumentError where the matrix could not be saved, before an hour is spent on it."""
    if save is None:
        return
    if save.exists():
        raise ArgumentError(f"{save} exists already", "use it with --imatrix, remove it or name another file")
    if not save.parent.is_dir():
        raise ArgumentError(f"{save.parent} is no folder", "make it first")


def calibrate(model: Path, file: str, ctx: int, threads: int | None, save: Path | None) -> ImportanceMatrix:
    """Run the model over the text and return what its weights' inputs amount to, saved where asked.

    Raises:
        PhialError: the text does not fill one chunk, or what is kept beside `save` is of another run.
    """
    from phial.eval.windows import plan_windows
    from phial.gguf import imatrix

    text = stdin.text_of(file)
    with loading.engine(str(model), threads, "f16", keep_prefixes=False) as engine:
        tokenizer = engine.tokenizer
        ids = tokenizer.encode(text)
        windows = plan_windows(len(ids), ctx, bos=tokenizer.bos_id if tokenizer.add_bos else None)
        chunks = [windows.tokens(ids, i) for i in range(windows.count)]
        fresh = imatrix.ImportanceMatrix([file], ctx, run=_run_id(engine, ids, ctx))
        matrix = fresh if save is None else _resumed(imatrix.partial_path(save), fresh, len(chunks))
        try:
            with progress("calibrating", len(chunks)) as show:
                saved_at = time.monotonic()
                for _ in imatrix.calibrate(engine, chunks, matrix):
                    show(matrix.chunk_count, f"calibrating: chunk {matrix.chunk_count} of {len(chunks)}")
                    if save is not None and time.monotonic() - saved_at > _SAVE_EVERY:
                        imatrix.save(matrix, imatrix.partial_path(save))
                        saved_at = time.monotonic()
        except KeyboardInterrupt:
            _keep(matrix, len(chunks), save)
            raise
    matrix.run = ""
    if save is not None:
        imatrix.save(matrix, save)
        imatrix.partial_path(save).unlink(missing_ok=True)
        console.note(f"saved {save}: {matrix.chunk_count} chunks of {ctx} tokens")
    return matrix


def _run_id(engine: Engine, ids: list[int], ctx: int) -> str:
    """What decides the sums: the weights, the arithmetic and the tokens."""
    import numpy as np

    settings = f"{engine.identity.model} {engine.backend_name} {engine.kernel_set} {ctx}"
    return hashlib.sha256(settings.encode() + np.asarray(ids, "<i4").tobytes()).hexdigest()


def _resumed(partial: Path, fresh: ImportanceMatrix, count: int) -> ImportanceMatrix:
    """The matrix of an earlier, stopped run, or the fresh one."""
    from phial.gguf import imatrix

    if not partial.exists():
        return fresh
    kept = imatrix.load(partial)
    if kept.run != fresh.run or kept.chunk_count > count:
        raise PhialError(f"{partial} belongs to another calibration", "remove it or name another file to save to")
    kept.datasets = fresh.datasets
    console.note(f"going on from {partial}: {kept.chunk_count} of {count} chunks are done")
    return kept


def _keep(matrix: ImportanceMatrix, count: int, save: Path | None) -> None:
    """Ctrl-C: save what there is and say how to go on."""
    from phial.gguf import imatrix

    done = f"stopped after {matrix.chunk_count} of {count} chunks"
    if save is None or not matrix.chunk_count:
        console.note(f"{done}; with --save-imatrix FILE a stopped calibration can go on")
        return
    imatrix.save(matrix, imatrix.partial_path(save))
    console.note(f"{done}, kept in {imatrix.partial_path(save)}; the same command goes on from there")
