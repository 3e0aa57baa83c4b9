"""Metadata of the vocabularies the tokenizer tests read: Phi-3's and Llama 2's from the data folder, SmolLM2's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phial.gguf.container import read_gguf
from phial.tokenizer.tokenizer import Tokenizer


def metadata_of(path: Path) -> dict[str, Any]:
    with read_gguf(path) as file:
        return dict(file.metadata)


@pytest.fixture(scope="session")
def phi3_metadata(shared_data: Path) -> dict[str, Any]:
    return metadata_of(shared_data / "tokenizer/phi-3/ggml-vocab-phi-3.gguf")


@pytest.fixture(scope="session")
def llama2_metadata(shared_data: Path) -> dict[str, Any]:
    return metadata_of(shared_data / "tokenizer/llama-spm/ggml-vocab-llama-spm.gguf")


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2: Path) -> dict[str, Any]:
    return metadata_of(smollm2)


@pytest.fixture(scope="session")
def phi3(phi3_metadata: dict[str, Any]) -> Tokenizer:
    """The GGUF rule: variant B, the name contains "phi3"."""
    return Tokenizer.from_gguf(phi3_metadata)


@pytest.fixture(scope="session")
def llama2(llama2_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(llama2_metadata)


@pytest.fixture(scope="session")
def smol(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata)
