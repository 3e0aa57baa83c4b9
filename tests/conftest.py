"""What every test may ask for: tiny models made on the spot; the data folder and a real model where they are present.

A test that cannot have what it needs is skipped with the reason, which `pytest -ra` prints. None fails for it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder: PHIAL_SHARED, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PHIAL_SHARED") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set PHIAL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model, SmolLM2-135M-Instruct Q4_1: PHIAL_TEST_MODEL, else the one `phial pull smollm2-135m` stored."""
    named = os.environ.get("PHIAL_TEST_MODEL")
    if named:
        assert Path(named).is_file(), f"PHIAL_TEST_MODEL={named} is no file"
        return Path(named)
    from phial.hub import stored_path

    path = stored_path("smollm2-135m")
    if path is None:
        pytest.skip("no SmolLM2 in the store (phial pull smollm2-135m) and PHIAL_TEST_MODEL is not set")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two-layer random models by architecture: phi3, llama, qwen2 (see tests/tiny_models.py)."""
    from tests.tiny_models import ARCHITECTURES, write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny(folder / f"{name}.gguf", name) for name in ARCHITECTURES}
