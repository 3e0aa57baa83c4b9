"""Tokenizer files of a Hugging Face folder from GGUF metadata.

tokenizer.json says everything transformers needs, for byte-level BPE and for SentencePiece, whose tokenizer.model is
written beside it for programs that want that. What the GGUF file never held (normalisers, which special tokens strip
whitespace beyond phi3-spec §2.2's rule) is not invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phial.gguf.sentencepiece_file import merges_of, write_model
from phial.hf.folder import write_json
from phial.tokenizer.pretokenizers import IGNORE_MERGES, patterns_for
from phial.tokenizer.special_tokens import rstrip_ids
from phial.tokenizer.vocabulary import TokenType, Vocabulary, read_vocabulary

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def write_hf_tokenizer(folder: Path, metadata: Mapping[str, Any], context: int) -> Vocabulary:
    """Write tokenizer.json, tokenizer_config.json and, for SentencePiece, tokenizer.model; returns the vocabulary.

    context: the model's longest sequence. FormatError where the metadata describe no usable vocabulary.
    """
    vocabulary = read_vocabulary(metadata)
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary))
    write_json(folder / "tokenizer_config.json", _settings(vocabulary, metadata, context))
    if vocabulary.model == "llama":
        (folder / "tokenizer.model").write_bytes(write_model(vocabulary))
    return vocabulary


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizers` library's file for a vocabulary."""
    parts = _sentencepiece(vocabulary) if vocabulary.model == "llama" else _byte_level(vocabulary)
    used = [i for i, kind in enumerate(vocabulary.types) if kind not in (TokenType.UNUSED, TokenType.UNDEFINED)]
    model = {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **parts.pop("model"),
        "vocab": {vocabulary.tokens[i]: i for i in used},
        "merges": [list(pair) for pair in parts.pop("merges")],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        **parts,
        "post_processor": _post_processor(vocabulary),
        "model": model,
    }


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns_for(vocabulary.pre)
    ]
    words = {text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind is TokenType.NORMAL}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, _BYTE_LEVEL]},
        "decoder": _BYTE_LEVEL,
        "model": {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.pre in IGNORE_MERGES,
        },
        # merges that could spell a special token are left out, as phial's own encoder does
        "merges": [pair for pair in vocabulary.merges if {*pair, "".join(pair)} <= words],
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    assert vocabulary.scores is not None
    marks = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decode: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decode += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if vocabulary.add_space_prefix:
        marks.insert(0, {"type": "Prepend", "prepend": "▁"})
        decode.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": marks},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decode},
        "model": {
            "unk_token": None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
        "merges": merges_of(vocabulary.tokens, vocabulary.scores.tolist(), vocabulary.types),
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    strips = rstrip_ids(vocabulary, "auto")
    return [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": i in strips,
            "normalized": False,
            "special": vocabulary.types[i] is not TokenType.USER_DEFINED,
        }
        for text, i in sorted(vocabulary.special_tokens().items(), key=lambda item: item[1])
    ]


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """What puts BOS before a text, where the model's rule asks for it."""
    if not vocabulary.add_bos or vocabulary.bos_id is None:
        return None
    bos = vocabulary.tokens[vocabulary.bos_id]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, texts[0], {"SpecialToken": {"id": bos, "type_id": 1}}, texts[1]],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
    }


def _settings(vocabulary: Vocabulary, metadata: Mapping[str, Any], context: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_bos_token": vocabulary.add_bos,
        "clean_up_tokenization_spaces": False,
    }
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "unk": vocabulary.unk_id, "pad": vocabulary.pad_id}
    settings |= {f"{name}_token": vocabulary.tokens[i] for name, i in ids.items() if i is not None}
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings
