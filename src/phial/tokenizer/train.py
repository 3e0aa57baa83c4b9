"""A vocabulary of one's own: byte-level BPE (`tokenizers`) or BPE with byte fallback (`sentencepiece`).

What comes out is the tokenizer's part of a GGUF file's metadata, which every other part of phial reads and which can be
written as a Hugging Face folder. Special tokens are those of the Phi-3 chat format; texts end in <|endoftext|>.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np

from phial.errors import ArgumentError, PhialError
from phial.tokenizer.builtin_templates import BUILTIN
from phial.tokenizer.pretokenizers import IGNORE_MERGES, patterns_for
from phial.tokenizer.vocabulary import TokenType

Kind = Literal["byte-level", "byte-fallback"]
SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SMALLEST = 256 + len(SPECIAL_TOKENS) + 1
_PREFIX = "tokenizer.ggml."
_CHUNK = 2048  # characters given to sentencepiece as one sentence; it skips those beyond its limit in bytes


def train_vocabulary(
    texts: Iterable[str], size: int, kind: Kind = "byte-level", *, pre: str = "qwen2", name: str = "phial"
) -> dict[str, Any]:
    """Train a vocabulary of exactly `size` tokens on texts; the tokenizer.* metadata, and general.name.

    Args:
        pre: how a byte-level vocabulary cuts words, a name of phial.tokenizer.pretokenizers; qwen2 keeps digits apart.

    Raises:
        ArgumentError: an unknown kind, or a size too small for the bytes and special tokens.
        PhialError: the texts hold no `size` different tokens.
    """
    if kind not in get_args(Kind):
        raise ArgumentError(f"kind is {kind!r}", f"one of {', '.join(get_args(Kind))}")
    if size < SMALLEST:
        raise ArgumentError(
            f"a vocabulary of {size} tokens", f"the bytes and special tokens alone need {SMALLEST}; thousands are usual"
        )
    metadata = _byte_level(texts, size, pre) if kind == "byte-level" else _byte_fallback(texts, size)
    tokens = metadata[_PREFIX + "tokens"]
    end = tokens.index("<|endoftext|>")
    ids = {f"{_PREFIX}{which}_token_id": end for which in ("bos", "eos", "padding")}
    return {
        **metadata,
        **ids,
        _PREFIX + "add_bos_token": False,
        "tokenizer.chat_template": BUILTIN["phi3.5"].source,
        "general.name": name,
    }


def _byte_level(texts: Iterable[str], size: int, pre: str) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    if pre in IGNORE_MERGES:
        raise ArgumentError(f"pre is {pre!r}, which takes whole words past the merges", "use qwen2, smollm or gpt-2")
    tokenizer = Tokenizer(BPE())
    steps: list[PreTokenizer] = [Split(Regex(p), "isolated") for p in patterns_for(pre)]
    tokenizer.pre_tokenizer = Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])
    wanted = size - len(SPECIAL_TOKENS)
    trainer = BpeTrainer(vocab_size=wanted, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(map(_plain, texts), trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < wanted:
        _too_large(size, str(len(vocabulary) + len(SPECIAL_TOKENS)))
    words = sorted(vocabulary, key=lambda text: vocabulary[text])
    return {
        _PREFIX + "model": "gpt2",
        _PREFIX + "pre": pre,
        _PREFIX + "tokens": [*words, *SPECIAL_TOKENS],
        _PREFIX + "token_type": np.array(
            [TokenType.NORMAL] * len(words) + [TokenType.CONTROL] * len(SPECIAL_TOKENS), np.int32
        ),
        _PREFIX + "merges": [f"{left} {right}" for left, right in _merges_of(tokenizer)],
    }


def _merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    """Merges in order of rank; older releases of the library write a pair as one string."""
    pairs = [m.split(" ") if isinstance(m, str) else m for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    return [(left, right) for left, right in pairs]


def _byte_fallback(texts: Iterable[str], size: int) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * _CHUNK,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=",".join(SPECIAL_TOKENS),
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        at_most = re.search(r"value <= (\d+)", str(error))
        if at_most:
            _too_large(size, at_most[1])
        raise PhialError(f"sentencepiece cannot train on this text: {error}", "give it more text") from error
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    if len(ids) != size:
        _too_large(size, str(len(ids)))
    return {
        _PREFIX + "model": "llama",
        _PREFIX + "pre": "default",
        _PREFIX + "tokens": [processor.id_to_piece(i) for i in ids],
        _PREFIX + "token_type": np.array([_type(processor, i) for i in ids], np.int32),
        _PREFIX + "scores": np.array([processor.get_score(i) for i in ids], np.float32),
        _PREFIX + "unknown_token_id": 0,
        _PREFIX + "add_space_prefix": True,
    }


def _type(processor: Any, i: int) -> TokenType:
    if processor.is_unknown(i):
        return TokenType.UNKNOWN
    if processor.is_control(i):
        return TokenType.CONTROL
    return TokenType.BYTE if processor.is_byte(i) else TokenType.NORMAL


def _plain(text: str) -> str:
    """A text without special tokens' names: they must never be learnt as ordinary words. ArgumentError for no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"a text is no Unicode: {error}", "repair its encoding: phial data clean") from error
    for name in SPECIAL_TOKENS:
        text = text.replace(name, "\n")
    return text


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines of the texts, long ones cut: sentencepiece learns within a line only, and knows no zero bytes."""
    for text in texts:
        for line in re.split(r"[\n\r\0]+", _plain(text)):
            for start in range(0, len(line), _CHUNK):
                yield line[start : start + _CHUNK]


def _too_large(size: int, most: str) -> None:
    raise PhialError(
        f"the text gives at most {most} tokens, not {size}", f"give more text, or ask for {most} or fewer tokens"
    )
