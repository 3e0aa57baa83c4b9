"""`phial info`: what this machine offers and what this installation uses; the first thing to put into a bug report."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from phial import __version__
from phial.cli import console, options


def info(as_json: options.Json = False) -> None:
    """Show CPU, kernels, versions and the model store."""
    facts = _facts()
    if as_json:
        console.write_json(facts)
        return
    rows = [[name, _shown(value)] for name, value in facts.items()]
    width = max(len(name) for name, _ in rows)
    console.write("".join(f"{name.replace('_', ' '):<{width}}  {console.one_line(value)}\n" for name, value in rows))


def _facts() -> dict[str, Any]:
    import numpy

    from phial import hub, threads
    from phial.cli.models import stored
    from phial.engine import hardware

    core = hardware.core()
    return {
        "phial": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "threads": threads.available_cores(),
        "cpu_features": list(core.cpu_features) if core else [],
        "kernel_sets": list(core.kernel_sets) if core else [],
        "kernels": core.kernels if core else None,
        "store": str(hub.home()),
        "models": [model["name"] for model in stored()],
    }


def _cpu_name() -> str:
    """The processor's name as Linux and macOS give it, else the machine type."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none: no compiled core, the slow numpy reference runs" if value is None else str(value)
