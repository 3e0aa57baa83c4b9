"""The NEON kernels, cross-compiled and run under an emulator: kernel_check.cpp checks each set against plain loops.

Needs Debian's g++-aarch64-linux-gnu and qemu-user; without them NOTHING of NEON is tested and the skip says so.
Compiling takes a minute or two the first time (build/aarch64 keeps the objects). Leaves out speed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def kernel_check(repository: Path) -> Path:
    """kernel_check for 64-bit ARM, statically linked, so that the emulator needs no ARM libraries."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    missing = [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)] + ([] if cmake else ["cmake"])
    if missing:
        pytest.skip(
            f"NEON KERNELS WERE NOT TESTED: no {', '.join(missing)} (apt-get install g++-{COMPILER[:-4]} qemu-user)"
        )
    folder = repository / "build" / "aarch64"
    configure = [
        cmake, "-S", repository, "-B", folder, "-DPHIAL_MODULE=OFF", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static",
    ]  # fmt: skip
    for command in (configure, [cmake, "--build", folder, "--target", "kernel_check", "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "kernel_check"


@pytest.mark.parametrize(
    ("cpu", "sets"),
    [
        ("max", ["scalar", "neon_dotprod", "neon_i8mm"]),
        ("neoverse-n1", ["scalar", "neon_dotprod"]),
        ("cortex-a72", ["scalar"]),
    ],
)
def test_every_set_the_cpu_offers_computes_what_it_should(kernel_check: Path, cpu: str, sets: list[str]) -> None:
    done = subprocess.run([EMULATOR, "-cpu", cpu, kernel_check, *sets], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = [line.split(", ") for line in done.stdout.splitlines()]
    assert [line[0] for line in checked] == [f"{name}: 13 types" for name in sets]
    assert all(line[2] == "ok" for line in checked)


@pytest.mark.parametrize(("cpu", "name"), [("cortex-a72", "neon_dotprod"), ("neoverse-n1", "neon_i8mm")])
def test_a_set_beyond_the_cpu_is_not_usable(kernel_check: Path, cpu: str, name: str) -> None:
    done = subprocess.run([EMULATOR, "-cpu", cpu, kernel_check, name], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, f"{name} is not usable on this CPU\n")
