"""The public face of the package: every promised name is there, and importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import phial


def in_fresh_interpreter(code: str) -> str:
    """Run `code` in a new interpreter and return its stdout."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", phial.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(phial, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Lama"):
        _ = phial.Lama


def test_importing_phial_loads_no_third_party_package_and_prints_nothing() -> None:
    heavy = {"numpy", "torch", "transformers", "sentencepiece", "tokenizers", "jinja2", "huggingface_hub", "typer"}
    printed = in_fresh_interpreter(f"import sys, phial; print(sorted({heavy} & set(sys.modules)))")
    assert printed == "[]\n"


def test_the_engine_needs_no_training_library() -> None:
    code = "import sys; from phial import Engine, Llama; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert in_fresh_interpreter(code) == "[]\n"
