"""The program of test_neon.py on this machine: it covers the elementwise kernels, which Python cannot call.

Linked with the core library of the editable build. Leaves out other machines: see test_neon.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

native = pytest.importorskip("phial._native", reason="the compiled core is not built", exc_type=ImportError)


@pytest.fixture(scope="module")
def kernel_check(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    libraries = sorted((repository / "build").glob("editable-*/libphial_core.a"), key=lambda p: p.stat().st_mtime)
    compiler = shutil.which("c++")
    if not libraries or not compiler:
        pytest.skip("ELEMENTWISE KERNELS WERE NOT TESTED: no editable build of the core here, or no c++")
    program = tmp_path_factory.mktemp("kernels") / "kernel_check"
    source = repository / "tests" / "native" / "kernel_check.cpp"
    command = [compiler, "-std=c++20", "-I", repository / "native", source, libraries[-1], "-pthread", "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def test_every_set_of_this_machine_computes_what_it_should(kernel_check: Path) -> None:
    done = subprocess.run([kernel_check, *native.kernel_sets()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = [line.split(", ") for line in done.stdout.splitlines()]
    assert [line[0] for line in checked] == [f"{name}: 13 types" for name in native.kernel_sets()]
    assert all(line[2] == "ok" for line in checked)


def test_a_set_that_does_not_exist_is_refused(kernel_check: Path) -> None:
    done = subprocess.run([kernel_check, "nope"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "nope is not usable on this CPU\n")
