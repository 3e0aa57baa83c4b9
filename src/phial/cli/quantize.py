"""`phial quantize`: a model in wide types to a file of 2 to 8 bits a weight, with an importance matrix where wanted.

Reads and checks everything that can be wrong before the first hour of work; the work itself is gguf/quantize.py's.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phial.cli import console, options
from phial.cli.progress import progress
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    from phial.gguf.imatrix import ImportanceMatrix
    from phial.gguf.quantize import Plan, TensorReport

_RECIPES = "Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_1, Q4_0, Q3_K_M"


Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="GGUF file (path or catalogue name), or Hugging Face folder.")
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="GGUF file to write.")]
Recipe = Annotated[str, typer.Option("--type", metavar="TYPE", help=f"{_RECIPES}.")]
Calibrate = Annotated[
    str | None, typer.Option(metavar="FILE", help="Measure an importance matrix on this text; - for stdin.")
]
Imatrix = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Use this importance matrix; llama.cpp's are read too.")
]
SaveImatrix = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep what --calibrate measures; a stopped run goes on from it.")
]
Chunk = Annotated[int, typer.Option("--ctx", "-c", metavar="N", help="Tokens in a chunk of --calibrate.")]
OutputType = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Type of the output matrix.", show_default="the recipe's")
]
EmbeddingType = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Type of the token embedding.", show_default="the recipe's")
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", metavar="", help="Take a source of fewer bits than Q8_0.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", metavar="", help="Print types and size; write nothing.")]
Report = Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the errors by layer, and the size by type.")]


def quantize(
    source: Source,
    target: Target,
    type: Recipe = "Q4_K_M",
    calibrate: Calibrate = None,
    imatrix: Imatrix = None,
    save_imatrix: SaveImatrix = None,
    ctx: Chunk = 512,
    output_type: OutputType = None,
    embedding_type: EmbeddingType = None,
    allow_requantize: AllowRequantize = False,
    dry_run: DryRun = False,
    report: Report = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Quantise a model, and say how well each tensor was kept."""
    from phial.cli import quantize_report
    from phial.gguf import mixes
    from phial.gguf import quantize as quantizing
    from phial.threads import checked_threads

    threads = checked_threads("threads", threads)
    recipe = mixes.find_recipe(type)
    wanted = [None if name is None else mixes.find_type(name) for name in (output_type, embedding_type)]
    path = _checked(source, target, calibrate, imatrix, save_imatrix, report, dry_run=dry_run)
    with contextlib.ExitStack() as stack:
        if calibrate is not None and not dry_run:
            path = _runnable(stack, path, target)
        with quantizing.open_source(path) as opened:  # before calibrating: what cannot be quantised is said at once
            plan = quantizing.plan(
                opened,
                recipe,
                importance=calibrate is not None or imatrix is not None,
                output_type=wanted[0],
                embedding_type=wanted[1],
                allow_requantize=allow_requantize,
            )
            matrix = _matrix(path, calibrate, imatrix, save_imatrix, ctx, threads, dry_run=dry_run)
            if matrix is not None:
                plan = quantizing.with_matrix(plan, matrix, str(imatrix or save_imatrix or ""))
            for note in opened.notes:
                console.note(f"note: {note}")
            if dry_run:
                quantize_report.show_plan(plan, as_json=as_json)
                return
            reports = _write(plan, target, threads)
    _show(plan, reports, target, report, as_json)


def _checked(
    source: str,
    target: Path,
    calibrate: str | None,
    imatrix: Path | None,
    save_imatrix: Path | None,
    report: Path | None,
    *,
    dry_run: bool,
) -> Path:
    """The source's path; ArgumentError for arguments that contradict each other or cannot be written to."""
    from phial import hub
    from phial.cli.calibrate import check_save

    if calibrate is not None and imatrix is not None:
        raise ArgumentError("--calibrate and --imatrix exclude each other", "--imatrix takes what was measured before")
    if save_imatrix is not None and calibrate is None:
        raise ArgumentError("--save-imatrix has nothing to save", "it goes with --calibrate FILE")
    path = Path(source) if Path(source).is_dir() else hub.resolve(source)
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder", f"name a file, as {target / 'model.gguf'}")
    if target.exists() and os.path.samefile(path, target):
        raise ArgumentError(f"{target} is the source itself", "name another file")
    for file in (target, report):
        if file is not None and not file.parent.is_dir() and not dry_run:
            raise ArgumentError(f"{file.parent} is no folder", "make it first")
    if report is not None:
        from phial.cli.quantize_picture import check_drawing

        check_drawing(report)
    if not dry_run:
        check_save(save_imatrix)
    return path


def _runnable(stack: contextlib.ExitStack, path: Path, target: Path) -> Path:
    """A file that the engine can open: a folder is converted beside the target, without loss, for as long as needed."""
    if not path.is_dir():
        return path
    from phial.gguf import convert

    made = target.with_name(f".{target.name}.{os.getpid()}.source.gguf")
    stack.callback(made.unlink, missing_ok=True)
    dtypes = {stored.dtype.lower() for stored in convert.read_model(path).sources.values()}
    for note in convert.hf_to_gguf(path, made, dtypes.pop() if len(dtypes) == 1 else "f32"):
        console.note(f"note: {note}")
    return made


def _matrix(
    path: Path,
    calibrate: str | None,
    imatrix: Path | None,
    save: Path | None,
    ctx: int,
    threads: int | None,
    *,
    dry_run: bool,
) -> ImportanceMatrix | None:
    """The importance matrix asked for: read, or measured."""
    if imatrix is not None:
        from phial.gguf.imatrix import load

        return load(imatrix)
    if calibrate is None or dry_run:
        return None
    from phial.cli.calibrate import calibrate as measure

    return measure(path, calibrate, ctx, threads, save)


def _write(plan: Plan, target: Path, threads: int | None) -> list[TensorReport]:
    from phial.gguf import quantize as quantizing

    total = sum(math.prod(tensor.shape) for tensor in plan.source.tensors.values())
    with progress("quantising", total, counted=False) as show:

        def tell(name: str, done: int, total: int) -> None:
            show(done, f"quantising {name}" if name else "quantised")

        return quantizing.write(plan, target, n_threads=threads, progress=tell)


def _show(plan: Plan, reports: list[TensorReport], target: Path, report: Path | None, as_json: bool) -> None:
    """Everything that is said once the file is there."""
    from phial.cli import quantize_report

    quantize_report.show_errors(plan, reports, target, as_json=as_json)
    if report is not None:
        from phial.cli.quantize_picture import draw

        try:
            draw(plan, reports, report, title=f"{plan.source.config.name or target.stem} as {plan.recipe}")
        except OSError as error:
            raise PhialError(
                f"cannot write {report}: {error.strerror or error}", "the model itself is written"
            ) from error
        console.note(f"drew {report}")
    console.note(f"wrote {target}: {quantize_report.summary(plan)}")
