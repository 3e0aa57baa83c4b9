"""A tiny model, and the program run as a person runs it: own process, stdin, stdout, stderr and store."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.tiny_models import write_tiny

from phial.cli import console
from phial.cli.app import app

Phial = Callable[..., "Ended"]


@dataclass
class Ended:
    """What came of one run of the program."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model that answers noise."""
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of the program: an empty store, no network, no colour forced, plain English."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PHIAL_", "HF_")) and k != "FORCE_COLOR"}
    return {
        **kept,
        "PHIAL_HOME": str(tmp_path / "store"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PYTHONIOENCODING": "utf-8",
    }


@pytest.fixture
def phial(environment: dict[str, str], tmp_path: Path) -> Phial:
    """Runs `phial ARGUMENTS...` as a process of its own; `stdin` is what is piped in."""

    def run(*arguments: str, stdin: str | bytes = "", **extra: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "phial", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            cwd=tmp_path,
            env={**environment, **extra},
            timeout=120,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def invoke(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Phial:
    """The same in this process, which is faster; what only a process can show needs `phial`."""

    def run(*arguments: str, stdin: str | bytes = "") -> Ended:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.chdir(tmp_path)
        for name in ("PHIAL_HOME", "HF_ENDPOINT", "PIP_INDEX_URL"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.delenv("PHIAL_DEBUG", raising=False)
        status = console.run(app, list(arguments))
        return Ended(status, *capsys.readouterr())

    return run
