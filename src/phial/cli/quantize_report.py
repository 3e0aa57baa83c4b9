"""What `phial quantize` tells: the plan of a dry run, and how well each matrix was kept, as tables and as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phial.cli import console

if TYPE_CHECKING:
    from phial.gguf.quantize import Plan, TensorReport


def summary(plan: Plan) -> str:
    """The size in a line."""
    parameters = sum(math.prod(tensor.shape) for tensor in plan.source.tensors.values())
    return f"{plan.recipe}, {plan.size / 1e6:,.1f} MB, {8 * plan.size / parameters:.2f} bits a parameter"


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """The types that would be written, and the size of the file, on stdout."""
    from phial.gguf.formats import n_bytes

    tensors = plan.source.tensors
    if as_json:
        listed = [
            {
                "name": name,
                "shape": list(tensor.shape),
                "source_type": tensor.type.name,
                "type": plan.types[name].name,
                "bytes": n_bytes(plan.types[name], tensor.shape),
            }
            for name, tensor in tensors.items()
        ]
        console.write_json({**_head(plan), "tensors": listed})
        return
    rows = [
        [n, " x ".join(map(str, t.shape)), t.type.name, plan.types[n].name, f"{n_bytes(plan.types[n], t.shape):,}"]
        for n, t in tensors.items()
    ]
    console.write_table(["TENSOR", "SHAPE", "FROM", "TO", "BYTES"], rows, right=["SHAPE", "BYTES"])
    console.write(f"\n{summary(plan)}\n")


def show_errors(plan: Plan, reports: list[TensorReport], target: Path, *, as_json: bool) -> None:
    """How well each matrix was kept: a table for the person, or JSON on stdout."""
    from phial.gguf.quantize import WORST, worst

    marked = worst(reports, WORST)
    if as_json:
        listed = [
            {
                "name": r.name,
                "shape": list(r.shape),
                "source_type": r.source_type.name,
                "type": r.type.name,
                "bytes": r.n_bytes,
                "bits_per_weight": r.bits,
                "weighted_rmse": r.rmse,
                "relative_rmse": r.relative,
                "worst": r.name in marked,
            }
            for r in reports
        ]
        console.write_json({"file": str(target), **_head(plan), "tensors": listed})
        return
    rows = [
        [r.name, r.type.name, f"{r.bits:.2f}", f"{r.rmse:.3g}", f"{100 * r.relative:.2f}", "*" * (r.name in marked)]
        for r in reports
    ]
    columns = ["TENSOR", "TYPE", "BITS", "RMSE", "% OF RMS", ""]
    console.write_table(columns, rows, right=columns[2:5], to_stderr=True)
    if marked:
        weighted = "weighted by the importance matrix, " if plan.matrix is not None else ""
        console.note(f"* the {len(marked)} largest errors, {weighted}of the tensor's root mean square")


def _head(plan: Plan) -> dict[str, Any]:
    """What stands above the tensors."""
    matrix = plan.matrix
    measured = (
        {"chunks": matrix.chunk_count, "chunk_size": matrix.chunk_size, "entries": len(matrix.sums)} if matrix else None
    )
    parameters = sum(math.prod(tensor.shape) for tensor in plan.source.tensors.values())
    return {
        "type": plan.recipe,
        "bytes": plan.size,
        "bits_per_parameter": 8 * plan.size / parameters,
        "matrix": measured,
    }
