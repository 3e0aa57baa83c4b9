"""Small language models on the machine in front of you.

    from phial import Llama

    llm = Llama(model_path="Phi-3-mini-4k-instruct-q4.gguf", n_ctx=4096)
    print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])

The names below are loaded when first used, so `import phial` costs nothing and needs nothing beyond Python itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["Engine", "Llama", "LlamaGrammar", "ModelConfig", "PhialError", "SamplingParams", "Tokenizer", "__version__"]

if TYPE_CHECKING:
    from phial.config import ModelConfig
    from phial.engine.engine import Engine
    from phial.engine.grammar import LlamaGrammar
    from phial.engine.llama import Llama
    from phial.engine.sampling import SamplingParams
    from phial.errors import PhialError
    from phial.tokenizer.tokenizer import Tokenizer

_HOME = {
    "Engine": "phial.engine.engine",
    "Llama": "phial.engine.llama",
    "LlamaGrammar": "phial.engine.grammar",
    "ModelConfig": "phial.config",
    "PhialError": "phial.errors",
    "SamplingParams": "phial.engine.sampling",
    "Tokenizer": "phial.tokenizer.tokenizer",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'phial' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
