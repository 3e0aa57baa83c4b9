"""llama.cpp's own quantiser, called in its shared library: `make peers` builds it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.gguf.formats import GGMLType, n_bytes

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
        out = np.zeros(n_bytes(type, x.shape), np.uint8)
        matrix = None if importance is None else importance.ctypes.data
        written = self._quantize(int(type), x.ctypes.data, out.ctypes.data, 0, rows, columns, matrix)
        assert written == out.size
        return out
