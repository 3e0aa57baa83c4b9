"""Records the error llama.cpp's quantiser leaves on made-up weights, so that the tests need no llama.cpp.

    python -m tests.golden.record_llama_scales

Needs `make peers`. Root mean square errors without and with an importance matrix; the weights are those of
tests/gguf/made_weights.py, 32 rows of 1024 columns.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.peer_quantizer import PeerQuantizer
from tests.gguf.made_weights import KINDS, importances, rmse, tensor

from phial.gguf.formats import FORMATS

ROWS, COLUMNS = 32, 1024


def main() -> None:
    """Write llama_scales.json beside this file."""
    peer = PeerQuantizer()
    errors: dict[str, dict[str, list[float]]] = {}
    for type in FORMATS:
        for kind in KINDS:
            x, matrices = tensor(kind, ROWS, COLUMNS), (None, importances(COLUMNS))
            found = [rmse(x, peer(x, type, matrix), type, matrix) for matrix in matrices]
            errors.setdefault(type.name, {})[kind] = [float(f"{error:.6g}") for error in found]
    record = {"recorded_by": __spec__.name, "llama_cpp_python": peer.version, "shape": [ROWS, COLUMNS], "rmse": errors}
    path = Path(__file__).with_name("llama_scales.json")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
