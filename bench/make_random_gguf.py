"""Write a Phi-3-mini-shaped GGUF file with random weights: `python bench/make_random_gguf.py q4_k_m out.gguf`.

Speed depends on shapes and types, not on what the weights say, so benchmarks need no download. The layouts are the
published ones: Q4_0 everywhere but Q6_K for the output, or llama.cpp's Q4_K_M mixture (81 Q4_K, 32 Q5_K, 17 Q6_K); any
other type is used for every matrix alike. `--layers 8` makes a file a quarter the size, to compare types with.
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
# llama.cpp's numbers for general.file_type
FILE_TYPE = {"f16": 1, "q4_0": 2, "q4_k_m": 15, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q8_0": 7}
FILE_TYPE |= {"q2_k": 10, "q3_k": 12, "q4_k": 14, "q5_k": 17, "q6_k": 18}
POOL_BYTES = 4 << 20
Tensor = tuple[str, tuple[int, ...], GGMLType]


def gets_more_bits(layer: int, layers: int = LAYERS) -> bool:
    """llama.cpp's rule for the layers whose ffn_down is Q6_K in Q4_K_M: first and last eighth, every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= layers - eighth or (layer - eighth) % 3 == 2


def layout(mixture: str, layers: int = LAYERS) -> list[Tensor]:
    """Every tensor of the file: GGUF name, shape in numpy order (rows, columns), type."""
    base = GGMLType.Q4_K if mixture == "q4_k_m" else GGMLType[mixture.upper()]
    qkv = GGMLType.Q5_K if mixture == "q4_k_m" else base
    head = GGMLType.Q6_K if mixture in ("q4_0", "q4_k_m") else base
    tensors: list[Tensor] = [("token_embd.weight", (VOCABULARY, WIDTH), base)]
    for layer in range(layers):
        down = GGMLType.Q6_K if mixture == "q4_k_m" and gets_more_bits(layer, layers) else base
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
        ("output.weight", (VOCABULARY, WIDTH), head),
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


def metadata(mixture: str, layers: int, vocabulary: Path | None) -> dict[str, Any]:
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
        "phi3.block_count": layers,
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
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    data = RandomData(arguments.seed)
    tensors = [
        (name, shape, kind, data.chunks(shape, kind))
        for name, shape, kind in layout(arguments.mixture, arguments.layers)
    ]
    write_gguf(arguments.output, metadata(arguments.mixture, arguments.layers, arguments.vocabulary), tensors)
    counts = Counter(kind.name for _, _, kind, _ in tensors)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e9:.2f} GB, {dict(counts)}")


if __name__ == "__main__":
    main()
