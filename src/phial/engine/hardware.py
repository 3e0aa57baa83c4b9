"""What the compiled core finds on this machine: its kernel sets and the memory bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from phial.threads import checked_threads

try:
    from phial import _native
except ImportError:  # an installation without the compiled core
    _native = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Core:
    """The compiled core on this CPU: extensions it knows, kernel sets it can run (slowest first), the one in use."""

    cpu_features: tuple[str, ...]
    kernel_sets: tuple[str, ...]
    kernels: str


def core() -> Core | None:
    """The compiled core, or None where this installation has none."""
    if _native is None:
        return None
    return Core(tuple(_native.cpu_features()), tuple(_native.kernel_sets()), _native.current_kernels())


def read_bandwidth(n_threads: int | None, seconds: float = 0.5) -> float | None:
    """Memory read bandwidth in bytes per second, measured now; None where there is no compiled core to measure with."""
    if _native is None:
        return None
    return _native.read_bandwidth(checked_threads("n_threads", n_threads), seconds) * 1e9
