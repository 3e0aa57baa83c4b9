"""Two-layer models with random weights and a small vocabulary, for tests that need a whole GGUF file in no time.

`python -m tests.tiny_models out.gguf` writes one, for programs. Their text is noise; their shapes, keys and tokenizer
are those of the real families. Not for parity with transformers: those tests write their own weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import write_gguf

ARCHITECTURES = ("phi3", "llama", "qwen2")
WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 256, 512, 2, 4, 2, 64
SPECIAL = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and token types of a byte-fallback SentencePiece vocabulary over English letters and syllables."""
    normal, unknown, control, byte = 1, 2, 3, 6
    letters = [chr(c) for c in range(33, 127)]
    syllables = [a + b for a in "bcdfghklmnprstw" for b in "aeiou"]
    words = ["\u2581" + w for w in ("the", "a", "once", "upon", "time", "and", "of", "to", "in", "he", "she", "it")]
    merges = ["th", "on", "an", "in", "he", "ti", "me", "\u2581t", "\u2581th", "\u2581a"]
    pieces = ["\u2581", *letters, *dict.fromkeys([*merges, *syllables, *words])]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{v:02X}>" for v in range(256)), *pieces, *SPECIAL]
    types = [unknown, control, control, *[byte] * 256, *[normal] * len(pieces), *[control] * len(SPECIAL)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * len(SPECIAL)
    return tokens, scores, types


def metadata(architecture: str) -> dict[str, Any]:
    """The keys a converter would write."""
    tokens, scores, types = vocabulary()
    a = architecture
    return {
        "general.architecture": a,
        "general.name": f"tiny {a}",
        f"{a}.context_length": 512,
        f"{a}.embedding_length": WIDTH,
        f"{a}.feed_forward_length": INNER,
        f"{a}.block_count": LAYERS,
        f"{a}.attention.head_count": HEADS,
        f"{a}.attention.head_count_kv": KV_HEADS,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": HEAD,
        f"{a}.rope.freq_base": 10000.0,
        **({f"{a}.rope.scaling.original_context_length": 512} if a == "phi3" else {}),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def shapes(architecture: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensor names and shapes (rows, columns)."""
    n_vocab, q, kv = len(vocabulary()[0]), HEADS * HEAD, KV_HEADS * HEAD
    yield "token_embd.weight", (n_vocab, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (WIDTH,)
        if architecture == "phi3":
            yield block + "attn_qkv.weight", (q + 2 * kv, WIDTH)
            yield block + "ffn_up.weight", (2 * INNER, WIDTH)
        else:
            for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                yield f"{block}{name}.weight", (rows, WIDTH)
                if architecture == "qwen2":
                    yield f"{block}{name}.bias", (rows,)
            yield block + "ffn_gate.weight", (INNER, WIDTH)
            yield block + "ffn_up.weight", (INNER, WIDTH)
        yield block + "attn_output.weight", (WIDTH, q)
        yield block + "ffn_norm.weight", (WIDTH,)
        yield block + "ffn_down.weight", (WIDTH, INNER)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (n_vocab, WIDTH)


def write_tiny(path: Path, architecture: str = "phi3", kind: GGMLType = GGMLType.Q8_0, seed: int = 1) -> Path:
    """Write a tiny model with matrices of the given type (vectors stay F32) and return its path."""
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in shapes(architecture):
        if len(shape) == 1:
            level = 0.0 if name.endswith("bias") else 1.0
            values, stored = (level + 0.1 * rng.standard_normal(shape)).astype(np.float32), GGMLType.F32
        else:
            values, stored = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32), kind
        tensors.append((name, shape, stored, quantize(values, stored)))
    write_gguf(path, metadata(architecture), tensors)
    return path


def write_tiny_adapter(path: Path, architecture: str = "phi3", rank: int = 4, seed: int = 1) -> Path:
    """Write a GGUF LoRA adapter for every matrix of the tiny model, about as large as its weights; return its path."""
    rng, tensors = np.random.default_rng(seed), []
    for name, shape in shapes(architecture):
        if len(shape) == 2 and name != "token_embd.weight":
            a = rng.standard_normal((rank, shape[1]), np.float32) / np.float32(shape[1] ** 0.5)
            b = rng.standard_normal((shape[0], rank), np.float32) / np.float32(rank**0.5)
            for half, values in (("a", a), ("b", b)):
                tensors.append((f"{name}.lora_{half}", values.shape, GGMLType.F32, quantize(values, GGMLType.F32)))
    keys = {"general.type": "adapter", "general.architecture": architecture, "general.name": path.stem}
    write_gguf(path, keys | {"adapter.type": "lora", "adapter.lora.alpha": float(rank)}, tensors)
    return path


if __name__ == "__main__":
    print(write_tiny(Path(sys.argv[1])))
