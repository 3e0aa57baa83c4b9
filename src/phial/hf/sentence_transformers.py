"""How a folder's model embeds: the files of sentence-transformers, which llama.cpp's converter reads too.

modules.json                      the model, then pooling, then scaling to length 1
1_Pooling/config.json             which hidden states make the vector
sentence_bert_config.json         tokens of a text
config_sentence_transformers.json what goes before queries and documents
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phial.errors import FormatError
from phial.hf.folder import read_json, write_json

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
_MODES = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_OTHERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
_TYPES = {"mean": 1, "first": 2, "last": 3}  # GGUF's pooling_type


def write_embedder(folder: Path, pooling: str, width: int, prefixes: Mapping[str, str], length: int) -> None:
    """Write beside a model how it embeds.

    Args:
        pooling: mean, first or last.
        width: of a vector.
        prefixes: what goes before a "query" and a "document".
        length: tokens of a text.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    modes = {mode: name == pooling for name, mode in _MODES.items()} | dict.fromkeys(_OTHERS, False)
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / POOLING, {"word_embedding_dimension": width, **modes, "include_prompt": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    prompts = {"prompts": dict(prefixes), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", prompts)
    write_json(folder / MODULES, modules)


def pooling_name(kind: object) -> str | None:
    """The name of GGUF's pooling_type; None for none, or one that folders have no word for."""
    return next((name for name, number in _TYPES.items() if number == kind), None)


def pooling_type(folder: Path) -> int | None:
    """GGUF's number for how a folder's model pools; None where it does not say.

    Raises FormatError for a way that GGUF has no number for, or more than one.
    """
    if not (folder / POOLING).is_file():
        return None
    values = read_json(folder / POOLING)
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
    named = {mode: name for name, mode in _MODES.items()}
    if len(chosen) != 1 or chosen[0] not in named:
        raise FormatError(f"{folder / POOLING} pools by {chosen}", f"GGUF knows one of {', '.join(named)}")
    return _TYPES[named[chosen[0]]]
