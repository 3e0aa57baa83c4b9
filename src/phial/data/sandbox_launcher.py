"""Run as a program by phial.data.sandbox: closes the doors one by one, then starts the program behind them.

Argument: one JSON object (see sandbox._launch). On descriptor `status` it writes one JSON line with the doors that it
could close, then one with how the program ended, or why it could not be started. Standard library only; imports nothing
of phial.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # one number on every architecture of Linux
NOBODY = 65534


def main() -> None:
    """Isolate, start, wait, report; the caller kills this process's group when it takes too long."""
    options = json.loads(sys.argv[1])
    status = options["status"]
    closed = isolate(options) if sys.platform == "linux" else []
    os.write(status, json.dumps({"closed": closed}).encode() + b"\n")
    child = os.fork()  # the first in the new process space: when it ends, the system kills whatever is left there
    if not child:
        die_with_parent()
        run_and_report(options, closed)
    os.waitpid(child, 0)


def isolate(options: dict[str, Any]) -> list[str]:
    """Close what this system lets us close; the names of the closed doors."""
    libc = ctypes.CDLL(None, use_errno=True)
    closed = []
    if os.geteuid() == 0:  # the limit of processes does not bind root
        borrow_interpreter(libc, options)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self belongs to root
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEWUSER | NEWNS | NEWNET | NEWPID | NEWIPC | NEWUTS) == 0:
        closed += ["network", "processes"]
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {user} 1")  # not 0: starting the program then drops every capability
        write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        if read_only(libc, options):
            closed.append("files")
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return closed


def borrow_interpreter(libc: Any, options: dict[str, Any]) -> None:
    """Show root's interpreter, which may lie in a folder closed to others, under a path open to them."""
    place = options["interpreter_mount"]
    if libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return
    prefix = options["prefix"]
    if libc.mount(prefix.encode(), place.encode(), None, MS_BIND | MS_REC, None) == 0:
        options["python"] = os.path.join(place, os.path.relpath(options["python"], prefix))


def read_only(libc: Any, options: dict[str, Any]) -> bool:
    """Make every mounted file system read-only but a small one in memory at `home`."""
    home = options["home"].encode()
    size = f"size={options['disk_bytes']},nr_inodes={options['inodes']},mode=0700".encode()
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY, 0, 0, 0)
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), 32):
        return False
    return int(libc.mount(b"none", home, b"tmpfs", MS_NOSUID | MS_NODEV, size)) == 0


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_and_report(options: dict[str, Any], closed: list[str]) -> None:
    """Start the program, wait for it, say how it ended; never returns."""
    status = options["status"]
    program = os.fork()
    if not program:
        os.set_inheritable(status, False)
        try:
            start(options, closed)
        except Exception as error:  # of ours, not of the program
            os.write(status, json.dumps({"broken": str(error)}).encode() + b"\n")
        finally:
            os._exit(127)
    _, ended = os.waitpid(program, 0)
    os.write(status, json.dumps({"code": os.waitstatus_to_exitcode(ended)}).encode() + b"\n")
    os._exit(0)


def start(options: dict[str, Any], closed: list[str]) -> None:
    """Become the program, under its limits and with an empty environment."""
    die_with_parent()
    os.chdir(options["home"])
    limits = dict(options["limits"])
    if "processes" not in closed:  # the limit counts everything this user runs
        limits["NPROC"] += tasks_of(os.getuid())
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))
    python = options["python"]
    os.execve(python, [python, "-I", "-S", "-B", "-c", options["harness"], str(options["verdict"])], {})


def tasks_of(user: int) -> int:
    """How many tasks the user has; a large number where the system does not say."""
    total = 0
    try:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.stat(f"/proc/{entry}").st_uid == user:
                        total += len(os.listdir(f"/proc/{entry}/task"))
                except OSError:
                    continue
    except OSError:
        return 4096
    return total


def write(path: str, text: str) -> None:
    """Write a file of /proc; bytes, because a text file would import a codec that may lie out of reach by now."""
    with open(path, "wb") as file:
        file.write(text.encode())


if __name__ == "__main__":
    main()
