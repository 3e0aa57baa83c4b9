"""llama.cpp's own quantiser, for tensors and for whole files: `make peers` builds it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.gguf.formats import GGMLType, n_bytes
from phial.gguf.imatrix import load

PEERS = Path(os.environ.get("PHIAL_PEERS") or Path.home() / ".cache" / "phial-peers")


class PeerQuantizer:
    """ggml_quantize_chunk of the libggml-base beside llama-cpp-python. FileNotFoundError where there is none."""

    def __init__(self, peers: Path = PEERS) -> None:
        found = sorted(peers.glob("lib/python3*/site-packages/llama_cpp/lib/libggml-base.*"))
        if not found:
            raise FileNotFoundError(f"no llama.cpp in {peers} (make peers)")
        packages = found[0].parents[2]
        self.version = next(packages.glob("llama_cpp_python-*.dist-info")).name.removesuffix(".dist-info").split("-")[1]
        self._library = ctypes.CDLL(str(found[0]))
        self._quantize = self._library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def __call__(
        self, x: NDArray[np.float32], type: GGMLType, importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """The blocks of x (rows, columns), C-contiguous float32; importance: (columns,)."""
        rows, columns = x.shape
        assert x.flags.c_contiguous and x.dtype == np.float32
        out = np.zeros(n_bytes(type, x.shape), np.uint8)
        matrix = None if importance is None else importance.ctypes.data
        written = self._quantize(int(type), x.ctypes.data, out.ctypes.data, 0, rows, columns, matrix)
        assert written == out.size
        return out


# Run by the interpreter that has llama-cpp-python.
_FILE = """
import ctypes, sys
import llama_cpp, numpy as np
source, target, file_type, threads, matrix = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(file_type), int(threads)
weights = dict(np.load(matrix)) if matrix else {}
entries = (llama_cpp.llama_model_imatrix_data * (len(weights) + 1))()
alive = [np.ascontiguousarray(w, np.float32) for w in weights.values()]
for entry, name, w in zip(entries, weights, alive):
    entry.name, entry.size = name.encode(), w.size
    entry.data = w.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
if weights:
    parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))
"""


def quantize_file(
    peers: Path, source: Path, target: Path, file_type: int, threads: int, matrix: Path | None = None
) -> None:
    """Run llama.cpp's llama_model_quantize in a process of its own. matrix: an importance matrix's GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        weights = ""
        if matrix is not None:
            weights = str(Path(folder) / "weights.npz")
            loaded = load(matrix)
            np.savez(weights, **{name: loaded.weights(name) for name in loaded.sums})  # type: ignore[arg-type]
        python = str(peers / "bin" / "python")
        command = [python, "-c", _FILE, str(source), str(target), str(file_type), str(threads), weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
