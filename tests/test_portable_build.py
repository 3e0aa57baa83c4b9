"""The compiled core runs on any x86-64-v2 machine: instructions beyond that stay inside the kernel files.

Two ways it could leak are watched: an inline function compiled in a kernel file and shared with the rest by the linker
(the object files would export it), and code run before the kernels are chosen (an emulated old processor would stop).
The emulator is Debian's qemu-user; without it the second test is skipped.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MACHINE_SPECIFIC = ("avx2", "avx512vnni", "neon_dotprod", "neon_i8mm")
LINKABLE = set("TWVuDBR")  # nm's letters for symbols other object files can see

PROGRAM = """
import sys
from phial import _native, Engine
with Engine.open(sys.argv[1], n_threads=1) as engine:
    print(",".join(_native.kernel_sets()), int(engine.session(64).eval([1, 300, 301]).argmax()))
"""


def kernel_objects(repository: Path) -> list[Path]:
    """Object files of the machine-specific kernels in the editable build."""
    objects = (repository / "build").glob("editable-*/CMakeFiles/phial_core.dir/native/kernels/**/*.o*")
    return [path for path in objects if str(path).rsplit("/kernels/", 1)[1].startswith(MACHINE_SPECIFIC)]


def exported(path: Path) -> list[str]:
    """Symbols of an object file the linker may use elsewhere, demangled."""
    lines = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    symbols = [line[17:] for line in lines if line[:1] != " "]
    return [text[2:] for text in symbols if text[0] in LINKABLE]


def test_a_kernel_file_exports_nothing_but_its_table(repository: Path) -> None:
    objects = kernel_objects(repository)
    if not objects or not shutil.which("nm"):
        pytest.skip("no editable build with kernel objects here, or no nm (make test builds one)")
    shared = {path.name: [name for name in exported(path) if not name.endswith("_kernels()")] for path in objects}
    assert {name: symbols for name, symbols in shared.items() if symbols} == {}


@pytest.mark.parametrize(
    ("processor", "kernel_sets"), [("Nehalem", "scalar"), ("Haswell", "scalar,avx2")], ids=["x86-64-v2", "AVX2"]
)
def test_an_old_processor_runs_a_model_to_the_same_token(
    tiny: dict[str, Path], processor: str, kernel_sets: str
) -> None:
    emulator = shutil.which("qemu-x86_64")
    if platform.machine() != "x86_64" or not emulator:
        pytest.skip("needs an x86-64 machine with qemu-x86_64 (Debian: qemu-user)")
    program = [sys.executable, "-c", PROGRAM, str(tiny["phi3"])]
    # numpy's BLAS misjudges an emulated processor; it is told what it is on.
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem"}
    old = subprocess.run([emulator, "-cpu", processor, *program], capture_output=True, text=True, env=environment)
    assert old.returncode == 0, old.stderr
    sets, token = old.stdout.split()
    assert sets == kernel_sets
    here = subprocess.run(program, capture_output=True, text=True, check=True)
    assert token == here.stdout.split()[1]
