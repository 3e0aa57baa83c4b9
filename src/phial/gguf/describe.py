"""What `phial inspect` shows of a GGUF file, as a plain dict that JSON can hold. Printing is the command line's job.

Text from the file is escaped where a terminal would act on it. Memory use is not here: it depends on the engine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from phial.gguf.container import GGUFFile
from phial.gguf.layout import ValueType

SHOWN_ELEMENTS = 8  # of an array
SHOWN_CHARACTERS = 4096  # of a text; chat templates are shown whole up to here


def describe(file: GGUFFile) -> dict[str, Any]:
    """Metadata, tensors, totals per type and the parameter count of an open file.

    Keys: path, bytes, version, alignment, metadata (key -> scalar, text, or {"type", "length", "first"} for an
    array and {"length", "first"} for a long text), tensors ([{name, shape, type, bytes}], shape in numpy order),
    types (type -> {tensors, parameters, bytes}, most bytes first), n_tensors, n_parameters, tensor_bytes.
    """
    tensors = list(file.tensors.values())
    types: dict[str, dict[str, int]] = {}
    for info in tensors:
        total = types.setdefault(info.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        total["tensors"] += 1
        total["parameters"] += math.prod(info.shape)
        total["bytes"] += info.n_bytes
    return {
        "path": str(file.path),
        "bytes": file.size,
        "version": file.version,
        "alignment": file.alignment,
        "metadata": {key: _shown(value, file.value_types[key]) for key, value in file.metadata.items()},
        "tensors": [
            {"name": info.name, "shape": list(info.shape), "type": info.type.name, "bytes": info.n_bytes}
            for info in tensors
        ],
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        "n_tensors": len(tensors),
        "n_parameters": sum(total["parameters"] for total in types.values()),
        "tensor_bytes": sum(total["bytes"] for total in types.values()),
    }


def _shown(value: Any, kind: ValueType) -> Any:
    if isinstance(value, str):
        if len(value) <= SHOWN_CHARACTERS:
            return printable(value)
        return {"length": len(value), "first": printable(value[:SHOWN_CHARACTERS])}
    if kind == ValueType.ARRAY:
        element = value.dtype.name if isinstance(value, np.ndarray) else "string"
        first = [_scalar(item) for item in value[:SHOWN_ELEMENTS]]
        return {"type": element, "length": len(value), "first": first}
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """A JSON value: numpy scalars become Python's; NaN and infinities, which JSON lacks, become text."""
    if isinstance(value, str):
        return printable(value[:SHOWN_CHARACTERS])
    plain = value.item() if isinstance(value, np.generic) else value
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


def printable(text: str) -> str:
    r"""Text safe to print: control characters (but newline, tab) and undecodable bytes become \x.. escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
