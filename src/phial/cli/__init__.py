"""The command line. `main` is the entry point; one small file per command group, imported late."""

from __future__ import annotations

from phial.cli.app import main

__all__ = ["main"]
