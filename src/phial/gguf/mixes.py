"""Which type each tensor gets in a quantised file: llama.cpp's mixtures, as llama-cpp-python 0.3.36 has them.

A recipe has one type for most matrices and wider ones where errors cost most: the output, attn_v (or the fused
attn_qkv) and ffn_down, in some layers. tests/golden/quantize_types.json holds what llama.cpp itself chose. Older
versions gave the fused attn_qkv of every layer Q5_K in Q4_K_M and Q6_K in Q5_K_M; published Phi-3 files have that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from phial.config import ModelConfig
from phial.errors import ArgumentError
from phial.gguf.formats import BLOCK_SIZES, GGMLType

F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (
    GGMLType.F16, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q8_0,
)  # fmt: skip
Q3_K, Q4_K, Q5_K, Q6_K = GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K


@dataclass(frozen=True)
class Recipe:
    """base: the type of most matrices. file_type: what general.file_type says."""

    base: GGMLType
    file_type: int


RECIPES = {
    "Q8_0": Recipe(Q8_0, 7),
    "Q6_K": Recipe(Q6_K, 18),
    "Q5_K_M": Recipe(Q5_K, 17),
    "Q4_K_M": Recipe(Q4_K, 15),
    "Q4_K_S": Recipe(Q4_K, 14),
    "Q4_1": Recipe(Q4_1, 3),
    "Q4_0": Recipe(Q4_0, 2),
    "Q3_K_M": Recipe(Q3_K, 12),
}
# Where the columns do not fill blocks of 256: the type of 32 with the next more bits.
_FALLBACK = {GGMLType.Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}


def find_recipe(name: str) -> str:
    """The recipe's name as RECIPES spells it. ArgumentError where there is none."""
    if name.upper() not in RECIPES:
        raise ArgumentError(f"type {name!r} is no recipe", f"one of {', '.join(RECIPES)}")
    return name.upper()


def find_type(name: str) -> GGMLType:
    """A tensor type by name. ArgumentError where there is none."""
    try:
        return GGMLType[name.upper()]
    except KeyError:
        readable = ", ".join(kind.name for kind in BLOCK_SIZES)
        raise ArgumentError(f"there is no tensor type {name!r}", f"one of {readable}") from None


def choose_types(
    recipe: str,
    config: ModelConfig,
    *,
    importance: bool = False,
    output_type: GGMLType | None = None,
    embedding_type: GGMLType | None = None,
) -> dict[str, GGMLType]:
    """The type of every matrix of the model by GGUF name; vectors are not quantised.

    Args:
        recipe: a key of RECIPES.
        importance: whether there is an importance matrix; Q4_0 then widens its first ffn_down.
        output_type, embedding_type: instead of the recipe's for output.weight and token_embd.weight. A tied embedding
            is both; embedding_type goes first.

    Raises:
        ArgumentError: a type asked for whose blocks the columns do not fill.
    """
    asked = {"output.weight": output_type, "token_embd.weight": embedding_type}
    if config.tie_embeddings and embedding_type is None:
        asked["token_embd.weight"] = output_type
    types: dict[str, GGMLType] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) < 2:
            continue
        wanted = asked.get(name)
        if wanted is None:
            types[name] = _fitting(_chosen(recipe, name, config, importance), shape[-1])
        elif shape[-1] % BLOCK_SIZES[wanted][0]:
            block = BLOCK_SIZES[wanted][0]
            raise ArgumentError(
                f"{name} cannot be {wanted.name}: its rows of {shape[-1]} do not fill blocks of {block}",
                "choose a type of smaller blocks, as Q8_0 or F16",
            )
        else:
            types[name] = wanted
    return types


def _fitting(kind: GGMLType, columns: int) -> GGMLType:
    """The type itself where the columns fill its blocks, else the one that takes its place."""
    if columns % BLOCK_SIZES[kind][0]:
        kind = _FALLBACK.get(kind, kind)
    return F16 if columns % BLOCK_SIZES[kind][0] else kind


def _chosen(recipe: str, name: str, config: ModelConfig, importance: bool) -> GGMLType:
    """The recipe's type of one matrix, whatever its shape."""
    base = RECIPES[recipe].base
    if name == "output.weight" or (name == "token_embd.weight" and config.tie_embeddings):
        return base if base == Q8_0 else Q6_K
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None:  # an embedding that is only looked up
        return base
    layer, stem, n_layer = int(match[1]), match[2], config.n_layer
    more = _gets_more_bits(layer, n_layer)
    if stem in ("attn_v", "attn_qkv"):
        kind = {
            "Q5_K_M": Q6_K if more else base,
            "Q4_K_M": Q6_K if more else base,
            "Q4_K_S": Q5_K if layer < 4 else base,
            "Q3_K_M": Q5_K if layer < 2 else Q4_K,
        }.get(recipe, base)
        return Q5_K if kind in (Q3_K, Q4_K) and _shares_values_widely(config) else kind
    if stem == "ffn_down":
        return {
            "Q5_K_M": Q6_K if more else base,
            "Q4_K_M": Q6_K if more else base,
            "Q4_K_S": Q5_K if layer < n_layer // 8 else base,
            "Q4_0": Q4_1 if importance and layer < n_layer // 8 else base,
            "Q3_K_M": Q5_K if layer < n_layer // 16 else Q4_K,
        }.get(recipe, base)
    return Q4_K if stem == "attn_output" and recipe == "Q3_K_M" else base


def _gets_more_bits(layer: int, n_layer: int) -> bool:
    """The first and last eighth of the layers and every third between."""
    return layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2


def _shares_values_widely(config: ModelConfig) -> bool:
    """llama.cpp's "70B": 80 layers, where attn_v is small beside the rest."""
    shared = config.architecture == "qwen2" or config.n_head != config.n_head_kv
    return config.n_layer == 80 and config.architecture != "phi3" and shared
