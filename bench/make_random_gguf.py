"""Write a Phi-3-mini-shaped GGUF file with random weights: `python bench/make_random_gguf.py q4_k_m out.gguf`.

Speed depends on shapes and types, not on what the weights say, so benchmarks need no download. The layouts are the
published ones: Q4_0 everywhere but Q6_K for the output, or llama.cpp's Q4_K_M mixture (81 Q4_K, 32 Q5_K, 17 Q6_K).
Random blocks are drawn once per type and cut up differently for each tensor; the text such a model writes is noise.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.gguf.blocks import BLOCK_SIZES, GGMLType, n_bytes, random_blocks
from phial.gguf.container import read_gguf, write_gguf

VOCABULARY, WIDTH, LAYERS, HEADS, INNER = 32064, 3072, 32, 32, 8192
FILE_TYPE = {"q4_0": 2, "q4_k_m": 15}  # llama.cpp's numbers for general.file_type
POOL_BYTES = 4 << 20
Tensor = tuple[str, tuple[int, ...], GGMLType]


def gets_more_bits(layer: int, layers: int = LAYERS) -> bool:
    """llama.cpp's rule for the layers whose ffn_down is Q6_K in Q4_K_M: first and last eighth, every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= layers - eighth or (layer - eighth) % 3 == 2


def layout(mixture: str) -> list[Tensor]:
    """Every tensor of the file: GGUF name, shape in numpy order (rows, columns), type."""
    base = GGMLType.Q4_0 if mixture == "q4_0" else GGMLType.Q4_K
    qkv = base if mixture == "q4_0" else GGMLType.Q5_K
    tensors: list[Tensor] = [("token_embd.weight", (VOCABULARY, WIDTH), base)]
    for layer in range(LAYERS):
        down = GGMLType.Q6_K if mixture == "q4_k_m" and gets_more_bits(layer) else base
        tensors += [
            (f"blk.{layer}.attn_norm.weight", (WIDTH,), GGMLType.F32),
            (f"blk.{layer}.attn_qkv.weight", (3 * WIDTH, WIDTH), qkv),
            (f"blk.{layer}.attn_output.weight", (WIDTH, WIDTH), base),
            (f"blk.{layer}.ffn_norm.weight", (WIDTH,), GGMLType.F32),
            (f"blk.{layer}.ffn_up.weight", (2 * INNER, WIDTH), base),
            (f"blk.{layer}.ffn_down.weight", (WIDTH, INNER), down),
        ]
    return [
        *tensors,
        ("output_norm.weight", (WIDTH,), GGMLType.F32),
        ("output.weight", (VOCABULARY, WIDTH), GGMLType.Q6_K),
    ]


class RandomData:
    """Bytes for any tensor, in chunks cut from one pool of random blocks per type."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[GGMLType, NDArray[np.uint8]] = {}

    def pool(self, kind: GGMLType) -> NDArray[np.uint8]:
        if kind not in self.pools:
            elements, size = BLOCK_SIZES[kind]
            blocks = POOL_BYTES // size
            self.pools[kind] = random_blocks(kind, (blocks, elements), self.rng, scale=0.02).reshape(blocks, size)
        return self.pools[kind]

    def chunks(self, shape: tuple[int, ...], kind: GGMLType) -> Iterator[NDArray[np.uint8]]:
        """The tensor's bytes: runs of the pool, each from a random start, so that no two tensors are alike."""
        if kind is GGMLType.F32:  # norm weights
            yield self.rng.uniform(0.8, 1.2, shape).astype("<f4").view(np.uint8)
            return
        pool = self.pool(kind)
        left = n_bytes(kind, shape) // pool.shape[1]
        while left:
            start = int(self.rng.integers(len(pool) // 2))
            run = pool[start : start + left]
            yield run.reshape(-1)
            left -= len(run)


def tokenizer_metadata(vocabulary: Path | None) -> dict[str, Any]:
    """The tokenizer keys of a Phi-3 GGUF file, or of a made-up vocabulary of the same size where there is none."""
    if vocabulary is not None:
        with read_gguf(vocabulary) as file:
            return {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    control, byte, normal = 3, 6, 1
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "\u2581"]
    kinds = [2, control, control, *[byte] * 256, normal]
    tokens += [f"\u2581w{i}" for i in range(VOCABULARY - len(tokens))]
    kinds += [normal] * (VOCABULARY - len(kinds))
    tokens[32000], kinds[32000] = "<|endoftext|>", control  # llama.cpp looks it up where the name says Phi-3
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(VOCABULARY, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def metadata(mixture: str, vocabulary: Path | None) -> dict[str, Any]:
    """All keys of the file, as the published conversions have them."""
    return {
        "general.architecture": "phi3",
        "general.name": "Phi3 random weights",
        "general.file_type": FILE_TYPE[mixture],
        "general.quantization_version": 2,
        "phi3.context_length": 4096,
        "phi3.rope.scaling.original_context_length": 4096,
        "phi3.embedding_length": WIDTH,
        "phi3.feed_forward_length": INNER,
        "phi3.block_count": LAYERS,
        "phi3.attention.head_count": HEADS,
        "phi3.attention.head_count_kv": HEADS,
        "phi3.attention.layer_norm_rms_epsilon": 1e-5,
        "phi3.attention.sliding_window": 2047,
        "phi3.rope.dimension_count": WIDTH // HEADS,
        "phi3.rope.freq_base": 10000.0,
        **tokenizer_metadata(vocabulary),
    }


def find_vocabulary() -> Path | None:
    """The Phi-3 vocabulary of the data folder, if it is there."""
    data = Path(os.environ.get("PHIAL_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
    path = data / "tokenizer" / "phi-3" / "ggml-vocab-phi-3.gguf"
    return path if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Phi-3-mini-shaped GGUF file with random weights.")
    parser.add_argument("mixture", choices=sorted(FILE_TYPE))
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=Path, default=find_vocabulary(), help="GGUF file whose tokenizer to take")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    data = RandomData(arguments.seed)
    tensors = [(name, shape, kind, data.chunks(shape, kind)) for name, shape, kind in layout(arguments.mixture)]
    write_gguf(arguments.output, metadata(arguments.mixture, arguments.vocabulary), tensors)
    counts = Counter(kind.name for _, _, kind, _ in tensors)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e9:.2f} GB, {dict(counts)}")


if __name__ == "__main__":
    main()
