"""Exercises run behind limits: honest outcomes, and nothing gets out. What this system cannot isolate is skipped."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from phial.data import sandbox
from phial.data.sandbox import DOORS, Limits, Outcome, closable_doors, run_exercise
from phial.errors import PhialError

QUICK = Limits(cpu_seconds=1, wall_seconds=20)
SHORT = Limits(wall_seconds=3)


def run(solution: str, tests: str = "", limits: Limits = QUICK, stub: bool = False) -> Outcome:
    return run_exercise(solution, tests, limits=limits, stub=stub, allow_weak=True)


def needs(door: str) -> None:
    if door not in closable_doors():
        pytest.skip(f"this system does not isolate: {door}")


@pytest.mark.parametrize(
    ("solution", "tests", "name", "detail"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed", ""),
        ("def f(x): return x", "assert f(1) == 2, 'one more'", "failed", "AssertionError: one more"),
        ("def f(x): return y", "assert f(1) == 2", "tests_error", "NameError: name 'y' is not defined"),
        ("def f(x: return x", "", "solution_error", "SyntaxError"),
        ("import no_such_module", "", "solution_error", "ModuleNotFoundError"),
        ("import numpy", "", "solution_error", "ModuleNotFoundError"),  # the standard library only
        ("assert False", "", "solution_error", "AssertionError"),
        ("import sys; sys.exit(0)", "assert False", "exited", "exit status 0"),
        ("import os; os._exit(0)", "assert False", "exited", "exit status 0"),
        ("print('fine')", "assert True", "passed", ""),
    ],
)
def test_the_outcome_is_honest(solution: str, tests: str, name: str, detail: str) -> None:
    outcome = run(solution, tests)
    assert outcome.name == name
    assert outcome.detail.startswith(detail)


def test_tests_that_ignore_the_solution_pass_with_its_functions_emptied() -> None:
    assert run("def f(x): return x + 1", "assert True", stub=True).passed
    assert not run("def f(x): return x + 1", "assert f(1) == 2", stub=True).passed


def test_an_infinite_loop_ends_with_its_processor_time() -> None:
    outcome = run("while True: pass")
    assert outcome.name == "timeout"
    assert "CPU" in outcome.detail


def test_a_sleeper_ends_with_the_wall_time() -> None:
    started = time.monotonic()
    assert run("import time; time.sleep(1000)", limits=SHORT).name == "timeout"
    assert time.monotonic() - started < 30


def test_memory_is_bounded() -> None:
    assert run("x = [0] * 10**9").name == "memory"
    assert run("x = []\nwhile True: x.append(bytearray(10**7))", limits=Limits()).name == "memory"


def test_output_is_bounded() -> None:
    outcome = run("while True: print('x' * 10000)", limits=Limits(output_bytes=50_000))
    assert outcome.name == "output"


def test_a_fork_bomb_finds_no_room_and_leaves_nothing() -> None:
    needs("processes")
    bomb = "import os, time\nfor _ in range(50):\n    if not os.fork(): time.sleep(1000)"
    outcome = run(bomb)
    assert (outcome.name, outcome.detail.split(":")[0]) == ("solution_error", "BlockingIOError")
    assert run("import os\nwhile True: os.fork()").name in {"solution_error", "timeout", "exited"}


def test_a_copy_that_the_program_makes_of_itself_does_not_spoil_the_outcome() -> None:
    assert run("import os\nif os.fork(): os.wait()", "assert True").passed


def test_threads_are_bounded() -> None:
    needs("processes")
    threads = "import threading, time\nfor _ in range(50): threading.Thread(target=time.sleep, args=(1000,)).start()"
    assert run(threads).detail.startswith("RuntimeError")


def test_a_process_that_leaves_its_group_dies_with_the_run() -> None:
    needs("processes")
    mark = f"left-behind-{os.getpid()}"
    deserter = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    os.close(1)\n    os.close(2)\n"
        f"    os.execv('/proc/self/exe', ['{mark}', '-I', '-S', '-c', 'import time; time.sleep(1000)'])\n"
        "time.sleep(0.3)"
    )
    assert run(deserter).passed
    deadline = time.monotonic() + 10  # the system kills what is left after the run's first process has gone
    while (found := _named(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []


def _named(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if command.startswith(mark.encode()):
            found.append(str(path))
    return found


def test_only_its_own_small_folder_can_be_written(tmp_path: Path) -> None:
    needs("files")
    victim = tmp_path / "victim"
    victim.write_text("kept")
    tmp_path.chmod(0o777)
    victim.chmod(0o666)
    for harm in (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})", "open('/dev/shm/x', 'w')"):
        assert run(harm).name == "solution_error", harm
    assert victim.read_text() == "kept"
    assert run("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'").passed


def test_file_sizes_and_the_disk_are_bounded() -> None:
    assert (
        "File too large"
        in run("open('x', 'wb', 0).write(b'a' * (4 << 20))\nopen('x', 'ab', 0).write(b'a' * 10**6)").detail
    )
    needs("files")
    fill = "for n in range(100): open(str(n), 'wb').write(b'a' * 10**6)"
    assert "No space left" in run(fill).detail


def test_open_files_are_bounded() -> None:
    assert "Too many open files" in run("files = [open('/dev/null') for _ in range(100)]").detail


def test_there_is_no_network() -> None:
    needs("network")
    call = "import socket\nsocket.create_connection(('127.0.0.1', {}), 2)"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # it would answer outside
        outcome = run(call.format(server.getsockname()[1]))
    assert outcome.name == "solution_error"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    assert run("import os\nassert 'SECRET_OF_THE_USER' not in os.environ, 'seen'\nassert os.listdir('.') == []").passed


def test_python_is_isolated_from_its_folder_and_from_packages() -> None:
    assert run("import sys\nassert sys.flags.isolated and sys.flags.no_site\nassert '' not in sys.path").passed


def test_without_isolation_nothing_is_run_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "closable_doors", lambda: DOORS - {"files"})
    with pytest.raises(PhialError, match="no isolation of files"):
        run_exercise("", "")


def test_the_folder_of_a_run_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    assert run("open('x', 'w')").passed
    assert list(tmp_path.iterdir()) == []
