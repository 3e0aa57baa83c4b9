"""What has been made in a recipe's folder, and from what: a stage whose inputs and outputs are unchanged is not run.

OUTPUT/manifest.json: for each stage its settings, the sha256 of what it read and of what it wrote, its numbers, how
long it took, where and with which versions.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from phial.errors import PhialError
from phial.manifest import sha256_of, write_json

MANIFEST = "manifest.json"
_RECORDED = {"settings", "inputs", "outputs", "metrics"}
_LIBRARIES = ("phial", "torch", "numpy", "tokenizers", "datatrove")
Say = Callable[[str], None]


class Stages:
    """The stages of one folder. Raises PhialError where its manifest is none."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self._say = folder, say
        try:
            self.made: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))["stages"]
            if not all(stage.keys() >= _RECORDED for stage in self.made.values()):
                raise KeyError("of a stage")
        except FileNotFoundError:
            self.made = {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PhialError(f"{folder / MANIFEST} is no manifest: {error!r:.80}", "use another folder") from error

    def make(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Iterable[Path],
        outputs: Callable[[], Iterable[Path]],
        work: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Run a stage unless it stands as it would be made.

        Args:
            inputs: files whose bytes decide the result. outputs: files that stand for it, once it is there.
            work: makes it; its numbers go into the manifest.
        """
        settings = json.loads(json.dumps(settings, default=str))
        read = self._digests(inputs)
        if self._stands(name, settings, read):
            self.made[name] = self.made.pop(name)  # in the order of this recipe
            self._say(f"{name}: as it was")
            return
        self._say(f"{name} ...")
        started = time.perf_counter()
        numbers = work()
        self.made.pop(name, None)
        self.made[name] = {
            "settings": settings,
            "inputs": read,
            "outputs": self._digests(outputs()),
            "metrics": json.loads(json.dumps(numbers, default=str)),
            "seconds": round(time.perf_counter() - started, 2),
            **_here(),
        }
        write_json(self.folder / MANIFEST, {"stages": self.made})
        self._say(f"{name}: {self.made[name]['seconds']:.0f} s")

    def _stands(self, name: str, settings: Mapping[str, Any], read: Mapping[str, str]) -> bool:
        made = self.made.get(name)
        if made is None or made["settings"] != settings or made["inputs"] != read:
            return False
        paths = [self.folder / path for path in made["outputs"]]
        return all(path.is_file() for path in paths) and self._digests(paths) == made["outputs"]

    def _digests(self, paths: Iterable[Path]) -> dict[str, str]:
        """sha256 of each file by its place in, or seen from, the folder."""
        return {os.path.relpath(path, self.folder): sha256_of(path) for path in sorted(paths)}


def _here() -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
        "host": {"name": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
