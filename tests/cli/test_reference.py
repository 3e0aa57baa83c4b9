"""The reference page is what the commands say."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_reference_page_is_current(repository: Path) -> None:
    script = repository / "docs" / "generate_cli_reference.py"
    spec = importlib.util.spec_from_file_location("generate_cli_reference", script)
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text("utf-8") == generator.page(), f"run python {script.relative_to(repository)}"
