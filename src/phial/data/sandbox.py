"""Python exercises of a model, executed: a solution and its tests in a process with limits, and an honest outcome.

What contains the program:
* limits of the system (setrlimit): CPU seconds, address space, tasks, size of a file, open files, no core files; a
  limit on wall time and on what it prints, after which everything it started is killed;
* `python -I -S -B` with an empty environment, in an empty folder: the standard library and nothing else;
* on Linux, namespaces: no network ("network"); a process space that dies as one, so that nothing outlives the run, with
  a count of tasks of its own ("processes"); every file system read-only but a few MB in memory ("files"). Root becomes
  nobody first. Where the system refuses one of them, `run_exercise` refuses to run, unless `allow_weak` is set.

What it does not guard against: reading files that the user (as root: nobody) may read; faults of the kernel that a
namespace or a limit does not stop; side channels; up to `tasks` × `address_space` of memory and as many processors for
the wall time; a program that looks for the harness in its own process and forges the outcome. With `allow_weak` where
"files" is missing, also writing and deleting the user's files; where "network" is missing, the network; where
"processes" is missing, processes that leave their group and outlive the run. It is for careless programs, not for
determined attackers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from phial.errors import PhialError

DOORS = frozenset({"network", "processes", "files"})
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Limits:
    """What one run may use. Bytes, seconds, counts."""

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    address_space: int = 256 << 20
    tasks: int = 8  # processes and threads, two of them ours
    file_bytes: int = 4 << 20
    disk_bytes: int = 16 << 20
    open_files: int = 32
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """How an exercise ended.

    Attributes:
        name: passed; failed (an assertion of the tests); solution_error or tests_error (another exception, a syntax
            error too); timeout (CPU or wall); memory; output (printed too much); exited (left before the tests' end);
            killed (a signal).
        detail: the exception or the signal, for people.
        closed: the doors that were closed, of DOORS.
    """

    name: str
    detail: str
    closed: frozenset[str]

    @property
    def passed(self) -> bool:
        """Whether the tests ran to their end."""
        return self.name == "passed"


def run_exercise(
    solution: str, tests: str, *, limits: Limits | None = None, stub: bool = False, allow_weak: bool = False
) -> Outcome:
    """Execute the solution, then the tests in the same module.

    Args:
        stub: replace the solution's functions and classes by functions that return None before the tests; tests that
            still pass test nothing.
        allow_weak: run even where a door of DOORS stays open; read the module's text first.

    Raises:
        PhialError: a door cannot be closed on this system and `allow_weak` is not set.
    """
    if not allow_weak and (missing := DOORS - closable_doors()):
        raise PhialError(
            f"Python exercises cannot be executed safely here: no isolation of {', '.join(sorted(missing))}",
            "allow user namespaces, leave out what runs them, or accept the risk: --weak-sandbox, weak_sandbox = true",
        )
    return _run(solution, tests, limits or Limits(), stub)


@functools.cache
def closable_doors() -> frozenset[str]:
    """The doors of DOORS that this system lets us close, found by trying once."""
    return _run("", "", Limits(), False).closed


def _run(solution: str, tests: str, limits: Limits, stub: bool) -> Outcome:
    token = secrets.token_hex(16)
    given = json.dumps({"solution": solution, "tests": tests, "token": token, "stub": stub}).encode()
    with (
        tempfile.TemporaryDirectory(prefix="phial-sandbox-", dir=_place()) as folder,
        tempfile.TemporaryFile() as stdin,
    ):
        stdin.write(given)
        stdin.seek(0)
        heard = _launch(Path(folder), stdin, limits)
    lines: list[dict[str, Any]] = [json.loads(line) for line in heard.status.splitlines()]
    closed = frozenset(lines[0]["closed"]) if lines else frozenset()
    if broken := next((line["broken"] for line in lines if "broken" in line), None):
        raise PhialError(f"the sandbox cannot start Python: {broken}", "another TMPDIR or interpreter may help")
    code = lines[1]["code"] if len(lines) > 1 else None
    return Outcome(*_judge(heard, code, token), closed)


def _place() -> str | None:
    """Where to make the folder: None for the usual place; where that is closed to nobody, who runs root's, another."""
    usual = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() == 0 and not all(path.stat().st_mode & 0o001 for path in (usual, *usual.parents)):
        return "/tmp"
    return None


@dataclass
class _Heard:
    """What came out of the process and why we stopped listening."""

    status: bytes
    verdict: bytes
    printed: bytes
    stopped: str  # "", "timeout" or "output"


def _launch(folder: Path, stdin: IO[bytes], limits: Limits) -> _Heard:
    """Start the launcher with three pipes, listen until it ends or a limit is passed, then kill what is left."""
    home, mount = folder / "home", folder / "python"
    for path in (home, mount):
        path.mkdir()
    folder.chmod(0o711)
    if os.geteuid() == 0:
        os.chown(home, 65534, 65534)
    pipes = [os.pipe() for _ in range(3)]  # printed, status, verdict
    writes = [write for _, write in pipes]
    arguments = _arguments(home, mount, limits, status=writes[1], verdict=writes[2])
    program = (_HERE / "sandbox_launcher.py").read_text("utf-8")
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, arguments],
            stdin=stdin,
            stdout=writes[0],
            stderr=writes[0],
            pass_fds=writes[1:],
            env={},
            cwd=home,
            start_new_session=True,
        )
    finally:
        for write in writes:
            os.close(write)
    try:
        return _listen([read for read, _ in pipes], limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for read, _ in pipes:
            os.close(read)


def _arguments(home: Path, mount: Path, limits: Limits, status: int, verdict: int) -> str:
    """What the launcher is told, as JSON."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    told: dict[str, Any] = {
        "home": str(home),
        "interpreter_mount": str(mount),
        "prefix": os.path.realpath(sys.base_prefix),
        "python": python,
        "status": status,
        "verdict": verdict,
        "harness": (_HERE / "sandbox_harness.py").read_text("utf-8"),
        "disk_bytes": limits.disk_bytes,
        "inodes": 256,
        "limits": {
            "CPU": limits.cpu_seconds,
            "AS": limits.address_space,
            "NPROC": limits.tasks,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.open_files,
            "CORE": 0,
        },
    }
    return json.dumps(told)


def _listen(pipes: list[int], limits: Limits) -> _Heard:
    """Read all three pipes to their ends, or until the time is over or too much was printed."""
    heard = [bytearray() for _ in pipes]
    deadline = time.monotonic() + limits.wall_seconds
    stopped = ""
    with selectors.DefaultSelector() as selector:
        for place, pipe in enumerate(pipes):
            selector.register(pipe, selectors.EVENT_READ, place)
        while selector.get_map() and not stopped:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                heard[key.data] += data
            if sum(map(len, heard)) > limits.output_bytes:
                stopped = "output"
            elif time.monotonic() >= deadline:
                stopped = "timeout"
            elif heard[1].count(b"\n") > 1:  # the program has ended; what it left behind does not matter
                break
    return _Heard(bytes(heard[1]), bytes(heard[2]), bytes(heard[0]), stopped)


def _judge(heard: _Heard, code: int | None, token: str) -> tuple[str, str]:
    """Name and detail of the outcome."""
    if heard.stopped:
        return heard.stopped, f"stopped after {len(heard.printed)} bytes of output"
    verdict: dict[str, str] = {}
    with contextlib.suppress(ValueError):
        verdict = json.loads(heard.verdict)
    if verdict.get("token") == token:
        return verdict["outcome"], verdict["detail"]
    if code in (-signal.SIGXCPU, -signal.SIGKILL):  # SIGKILL is what the hard limit on CPU time sends
        return "timeout", "out of CPU time"
    if code is None or code < 0:
        return "killed", "" if code is None else f"signal {-code}"
    if b"MemoryError" in heard.printed:
        return "memory", "MemoryError"
    return "exited", f"exit status {code}"


def describe(limits: Limits) -> dict[str, Any]:
    """The limits as a report shows them."""
    return asdict(limits)
