"""How many threads to use: the physical cores this process may run on, within its container's limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from phial.errors import ArgumentError

MAX_THREADS = 255  # the native core's limit
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """Return the number of logical processors this process may run on, hardware threads counted singly."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_cores(cpus: Path = _CPUS, cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Return the number of physical cores this process may use, at least 1.

    Two hardware threads of a core count once: they share the units that the kernels keep busy.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            cores.add((cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:  # not Linux, or a system that hides its topology
            cores.add(str(cpu))
    try:
        quota, period = cgroup_limit.read_text().split()
        limit = len(cores) if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        limit = len(cores)
    return max(1, min(len(cores), limit))


def checked_threads(name: str, value: int | None) -> int:
    """Return the number of threads to use; None means all available cores.

    More threads than processors would only wait for each other at every barrier: they are not started, which is said
    on stderr. The result does not depend on the number.
    """
    if value is None:
        return min(available_cores(), MAX_THREADS)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_THREADS:
        raise ArgumentError(f"{name} is {value!r}", f"use 1 to {MAX_THREADS} (this machine: {available_cores()})")
    cpus = available_cpus()
    if value > cpus:
        print(f"phial: {name} is {value}, but {cpus} processors are available: using {cpus}", file=sys.stderr)
    return min(value, cpus)
