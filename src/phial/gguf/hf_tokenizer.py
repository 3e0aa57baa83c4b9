"""The tokenizer of a Hugging Face folder as GGUF metadata (phi3-spec §2.1-2.2).

tokenizer.model (SentencePiece) is preferred where present, because it holds the scores; otherwise tokenizer.json,
byte-level or with byte fallback. What GGUF has no words for is an error, or a note where the ids of ordinary text stay
the same. The way back is in hf_tokenizer_files.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phial.errors import FormatError
from phial.gguf.sentencepiece_file import Pieces, read_model, scores_of
from phial.hf.folder import read_json
from phial.tokenizer.pretokenizers import IGNORE_MERGES, PATTERNS
from phial.tokenizer.special_tokens import rstrip_ids
from phial.tokenizer.tokenizer import Tokenizer
from phial.tokenizer.vocabulary import TokenType, read_vocabulary

_PREFIX = "tokenizer.ggml."
_JSON_FILES = ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
_MAX_TOKENS = 1 << 22
_MARK = "▁"  # SentencePiece's space
_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # config.json's name: GGUF's


@dataclass
class _Files:
    """What of the folder says something about the tokenizer."""

    config: Mapping[str, Any]  # config.json
    settings: dict[str, Any]  # tokenizer_config.json
    tokenizer: dict[str, Any]  # tokenizer.json
    added: dict[int, dict[str, Any]] = field(default_factory=dict)  # added tokens by id


def read_hf_tokenizer(
    folder: Path, config: Mapping[str, Any], n_vocab: int, name: str
) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer.* metadata of a folder, checked by building the tokenizer, and notes for the user.

    Args:
        config: config.json. n_vocab: rows of the embedding; rows beyond the tokenizer become unused tokens.
        name: the model's name, which decides which special tokens swallow whitespace (§2.2).

    Raises:
        FormatError: no tokenizer, a damaged one, or one that GGUF cannot express.
    """
    try:
        return _read(folder, config, n_vocab, name)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # JSON of another shape than the format's
        raise FormatError(f"{folder}: a tokenizer file is damaged: {error!r:.100}", "fetch it again") from error


def _read(folder: Path, config: Mapping[str, Any], n_vocab: int, name: str) -> tuple[dict[str, Any], list[str]]:
    optional = {n: read_json(folder / n) if (folder / n).is_file() else {} for n in _JSON_FILES}
    files = _Files(config, optional["tokenizer_config.json"], optional["tokenizer.json"])
    files.added = _added_tokens(files, optional["added_tokens.json"])
    model = folder / "tokenizer.model"
    metadata: dict[str, Any]
    if model.is_file():
        pieces = read_model(model.read_bytes())
        metadata = _sentencepiece(pieces, files, n_vocab)
    elif not files.tokenizer:
        raise FormatError(f"{folder} has neither tokenizer.model nor tokenizer.json", "put the tokenizer there")
    elif _require(files.tokenizer, "model", dict).get("byte_fallback"):
        metadata = _sentencepiece(_fallback_pieces(files.tokenizer), files, n_vocab)
    else:
        metadata = _byte_level(files, n_vocab)
    metadata |= _special_ids(files, metadata[_PREFIX + "tokens"])
    metadata[_PREFIX + "add_bos_token"] = _adds_bos(files, metadata)
    if template := _chat_template(folder, files.settings):
        metadata["tokenizer.chat_template"] = template
    named = {**metadata, "general.name": name}
    Tokenizer.from_gguf(named)
    return metadata, _notes(files, named)


def _require(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    if not isinstance(value, kind):
        raise FormatError(f"tokenizer.json: {key} is {value!r:.60}, not of type {kind.__name__}")
    return value


def _added_tokens(files: _Files, plain: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Added tokens by id, from the first source that has any: plain ids say nothing about being special."""
    listed = files.tokenizer.get("added_tokens", [])
    decoder = files.settings.get("added_tokens_decoder", {})
    try:
        if listed:
            return {int(token["id"]): {**token, "content": str(token["content"])} for token in listed}
        if decoder:
            return {int(i): {**token, "content": str(token["content"])} for i, token in decoder.items()}
        return {int(i): {"content": str(text), "special": True} for text, i in plain.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise FormatError(f"the tokenizer's added tokens are damaged: {error!r}") from error


def _table(pieces: Pieces, files: _Files, n_vocab: int) -> dict[str, Any]:
    """Tokens and types of all n_vocab ids: the model's pieces, added tokens over them, unused ones in the holes."""
    top = max([len(pieces.tokens) - 1, *files.added])
    if top >= n_vocab or min(files.added, default=0) < 0:
        raise FormatError(f"the tokenizer has ids up to {top}, config.json counts vocab_size {n_vocab}")
    tokens = pieces.tokens + [""] * (n_vocab - len(pieces.tokens))
    types = pieces.types + [TokenType.UNUSED] * (n_vocab - len(pieces.types))
    for i, token in files.added.items():
        tokens[i] = token["content"]
        if types[i] not in (TokenType.UNKNOWN, TokenType.BYTE):
            types[i] = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
    for i, text in enumerate(tokens):
        if not text:
            tokens[i], types[i] = f"[PAD{i}]", TokenType.UNUSED
    return {_PREFIX + "tokens": tokens, _PREFIX + "token_type": np.array(types, np.int32)}


def _sentencepiece(pieces: Pieces, files: _Files, n_vocab: int) -> dict[str, Any]:
    scores = pieces.scores + [-10000.0] * (n_vocab - len(pieces.scores))
    return {
        _PREFIX + "model": "llama",
        _PREFIX + "pre": "default",
        **_table(pieces, files, n_vocab),
        _PREFIX + "scores": np.array(scores, np.float32),
        _PREFIX + "add_space_prefix": pieces.add_space_prefix,
    }


def _bpe(tokenizer: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of tokenizer.json."""
    model = _require(tokenizer, "model", dict)
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise FormatError(f"tokenizer.json: model {model.get('type')!r} with marked subwords is not supported")
    vocabulary, merges = _require(model, "vocab", dict), _require(model, "merges", list)
    ids = list(vocabulary.values())
    if len(set(map(str, ids))) != len(ids) or not all(isinstance(i, int) and 0 <= i < _MAX_TOKENS for i in ids):
        raise FormatError("tokenizer.json: two tokens share an id, or an id is absurd")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(p, str) and " " not in p for p in parts)
        ):
            raise FormatError(f"tokenizer.json: merge {merge!r:.60} is not two pieces without spaces")
        pairs.append((parts[0], parts[1]))
    return vocabulary, pairs


def _pieces(vocabulary: Mapping[str, int]) -> Pieces:
    count = max(vocabulary.values(), default=-1) + 1
    pieces = Pieces([""] * count, [0.0] * count, [TokenType.UNUSED] * count)
    for text, i in vocabulary.items():
        pieces.tokens[i], pieces.types[i] = text, TokenType.NORMAL
    return pieces


def _byte_level(files: _Files, n_vocab: int) -> dict[str, Any]:
    vocabulary, merges = _bpe(files.tokenizer)
    return {
        _PREFIX + "model": "gpt2",
        _PREFIX + "pre": recognise(files.tokenizer),
        **_table(_pieces(vocabulary), files, n_vocab),
        _PREFIX + "merges": [f"{left} {right}" for left, right in merges],
    }


def recognise(tokenizer: Mapping[str, Any]) -> str:
    """GGUF's name of a byte-level tokenizer.json's pre-tokenizer. FormatError where it is none of those known."""
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":  # Qwen2's; no GGUF runtime applies it: see _notes
        raise FormatError(f"tokenizer.json: normalizer {normalizer.get('type')!r} is not supported")
    patterns = list(_patterns(tokenizer.get("pre_tokenizer")))
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    for name, known in PATTERNS.items():
        if patterns == known and ignores == (name in IGNORE_MERGES):
            return name
    raise FormatError(f"tokenizer.json: unknown pre-tokenizer {patterns!r:.200}", "its text would be cut differently")


def _patterns(step: Any) -> list[str]:
    """The regular expressions a pre-tokenizer applies one after the other."""
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        return [pattern for part in step.get("pretokenizers", []) for pattern in _patterns(part)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return PATTERNS["gpt-2"] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "Split" and isinstance(step.get("pattern"), dict) and "Regex" in step["pattern"]:
        if (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True)):
            return [str(step["pattern"]["Regex"])]
    raise FormatError(f"tokenizer.json: pre-tokenizer step {step!r:.100} is not supported")


def _fallback_pieces(tokenizer: Mapping[str, Any]) -> Pieces:
    """The pieces of a SentencePiece vocabulary that was stored as merges."""
    vocabulary, merges = _bpe(tokenizer)
    pieces = _pieces(vocabulary)
    for i, text in enumerate(pieces.tokens):
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            pieces.types[i] = TokenType.BYTE
        elif text and text == tokenizer["model"].get("unk_token"):
            pieces.types[i] = TokenType.UNKNOWN
    for token in tokenizer.get("added_tokens", []):
        if token["id"] < len(pieces.types) and pieces.types[token["id"]] is TokenType.NORMAL:
            pieces.types[token["id"]] = TokenType.CONTROL
    pieces.scores = scores_of(pieces.tokens, pieces.types, merges)
    pieces.add_space_prefix = _space_prefix(tokenizer)
    return pieces


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text; FormatError where spaces are not simply written as marks."""
    normalizer, step = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if not normalizer and isinstance(step, dict) and step.get("type") == "Metaspace" and step["replacement"] == _MARK:
        return bool(step.get("prepend_scheme", "always") != "never")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
    if step or steps not in ([replace], [{"type": "Prepend", "prepend": _MARK}, replace]):
        raise FormatError(f"tokenizer.json: normalizer {normalizer!r:.80} with pre-tokenizer {step!r:.80}")
    return len(steps) == 2


def _special_ids(files: _Files, tokens: list[str]) -> dict[str, int]:
    """Ids of bos, eos, unk and pad: by the text tokenizer_config.json names, else by config.json's number."""
    ids = {text: i for i, text in enumerate(tokens)}
    found: dict[str, int] = {}
    for name, theirs in _IDS.items():
        text = files.settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        number: Any = files.config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if text is not None and text not in ids:
            raise FormatError(f"tokenizer_config.json: {name}_token {text!r} is no token of the vocabulary")
        if text is None and number is not None and (not isinstance(number, int) or not 0 <= number < len(tokens)):
            raise FormatError(f"config.json: {name}_token_id is {number!r}, the vocabulary has {len(tokens)} tokens")
        value = ids[text] if text is not None else number
        if value is not None:
            found[f"{_PREFIX}{theirs}_token_id"] = int(value)
    return found


def _adds_bos(files: _Files, metadata: Mapping[str, Any]) -> bool:
    """The setting where there is one, else what the post-processor does, else Llama's habit."""
    setting, processor = files.settings.get("add_bos_token"), files.tokenizer.get("post_processor")
    bos = metadata.get(_PREFIX + "bos_token_id")
    if bos is None:
        return False
    if isinstance(setting, bool):
        return setting
    if files.tokenizer:
        return bool(_first_added(processor) == metadata[_PREFIX + "tokens"][bos])
    return bool(metadata[_PREFIX + "model"] == "llama")


def _first_added(processor: Any) -> str | None:
    """The special token a post-processor puts before every text."""
    if not isinstance(processor, dict):
        return None
    if processor.get("type") == "Sequence":
        return next(filter(None, map(_first_added, processor.get("processors", []))), None)
    single = processor.get("single") or [{}]
    return single[0].get("SpecialToken", {}).get("id") if processor.get("type") == "TemplateProcessing" else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {item["name"]: item["template"] for item in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise FormatError(f"tokenizer_config.json: chat_template is a {type(template).__name__}, not text")
    return template


def _notes(files: _Files, metadata: Mapping[str, Any]) -> list[str]:
    """What the folder says and a GGUF file cannot."""
    notes = []
    normalizer = files.tokenizer.get("normalizer")
    if normalizer and normalizer.get("type") == "NFC":
        notes.append("the tokenizer normalises text to NFC; runtimes of GGUF files take text as it is")
    strip = {i for i, token in files.added.items() if token.get("rstrip")}
    assumed = rstrip_ids(read_vocabulary(metadata), "auto")
    if files.added and strip != assumed:
        name = metadata["general.name"]
        notes.append(
            f"{len(strip)} special tokens swallow the whitespace after them; GGUF cannot say so, and by its name "
            f"{name!r} phial takes {len(assumed)} to do so"
        )
    return notes
