"""Small vocabularies made by hand, so that most tokenizer tests need no file."""

from __future__ import annotations

from typing import Any

import numpy as np

from phial.tokenizer.byte_level import CHARACTER_OF_BYTE

SPECIALS = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>"]


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """Llama-like: unk, bos, eos, 256 bytes, letters and a few words, Phi-3's control tokens, one user-defined token."""
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz<>|/", "▁a", "▁h", "el", "lo", "▁hel", "▁hello", "hel", "hello"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *SPECIALS, "::tool::"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(words) + [3] * len(SPECIALS) + [4]
    metadata = {
        "general.name": "tiny",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.array([float(len(t)) for t in texts], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return _changed(metadata, changes)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """GPT-2-like: all bytes, a few merges, ChatML's and Phi-3's control tokens, one user-defined token."""
    specials = [*SPECIALS, "<|im_start|>", "<|im_end|>"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ċ Ċ"]
    texts = [*CHARACTER_OF_BYTE.values(), *(m.replace(" ", "") for m in merges), *specials, "::tool::"]
    types = [1] * (256 + len(merges)) + [3] * len(specials) + [4]
    metadata = {
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.eos_token_id": texts.index("<|endoftext|>"),
    }
    return _changed(metadata, changes)


def _changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` by the last part of the key; None removes it."""
    for name, value in changes.items():
        key = name.replace("__", ".") if "__" in name else f"tokenizer.ggml.{name}"
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    return metadata
