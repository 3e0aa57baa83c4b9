"""Coverage-guided fuzz target for the GGUF reader: `python tests/fuzz/fuzz_gguf.py CORPUS -max_total_time=60`.

Any exception but PhialError, a hang or a large allocation is a finding; libFuzzer then writes the input to a file.
Needs the PyPI package atheris. test_atheris.py runs it with a fixed budget.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import atheris

from phial.errors import PhialError
from phial.gguf.container import read_gguf
from phial.gguf.describe import describe

PATH = os.path.join(tempfile.mkdtemp(), "fuzz.gguf")


def read_all(content: bytes) -> None:
    """Read the bytes as a file and use all of it."""
    with open(PATH, "wb") as file:
        file.write(content)
    try:
        with read_gguf(PATH) as opened:
            json.dumps(describe(opened), allow_nan=False).encode()
            for name, info in opened.tensors.items():
                assert opened.dequantized(name).shape == info.shape
    except PhialError as error:
        assert error.message


if __name__ == "__main__":
    atheris.instrument_all()  # instrument_imports() sees nothing through the loader of an editable install
    atheris.Setup(sys.argv, read_all)
    atheris.Fuzz()
