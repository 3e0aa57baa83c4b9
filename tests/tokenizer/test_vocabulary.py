"""Hostile and broken vocabularies: each is a FormatError that names the field, and nothing crashes a library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer.tiny_vocabulary import byte_level_metadata, spm_metadata

from phial.errors import FormatError, PhialError
from phial.tokenizer.pretokenizers import PATTERNS
from phial.tokenizer.tokenizer import Tokenizer
from phial.tokenizer.vocabulary import MAX_TOKEN_BYTES

N = len(spm_metadata()["tokenizer.ggml.tokens"])


def array(name: str, index: int, value: Any) -> Any:
    changed = list(spm_metadata()[f"tokenizer.ggml.{name}"])
    changed[index] = value
    return changed if name == "tokens" else np.array(changed, spm_metadata()[f"tokenizer.ggml.{name}"].dtype)


SPM_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model is missing"),
    ({"model": 3}, "model is int, not a string"),
    ({"model": "bert"}, "model is 'bert'"),
    ({"tokens": None}, "tokens is missing"),
    ({"tokens": []}, "tokens is empty"),
    ({"tokens": np.zeros(N, np.int32)}, "tokens is not an array of strings"),
    ({"tokens": array("tokens", 262, "<unk>")}, "'<unk>' stands at ids"),
    ({"tokens": array("tokens", 300, "x" * (MAX_TOKEN_BYTES + 1))}, "token 300 is 2049 bytes long"),
    ({"tokens": array("tokens", 3, "<0xZZ>")}, "byte token '<0xZZ>'"),
    ({"token_type": array("token_type", 4, 1)}, "255 byte tokens"),
    ({"tokens": array("tokens", 262, "a\x00b")}, "sentencepiece refuses the vocabulary"),
    ({"scores": None}, "scores is missing"),
    ({"scores": np.zeros(N - 1, np.float32)}, f"scores has {N - 1} entries for {N} tokens"),
    ({"scores": np.zeros((N, 1), np.float32)}, "scores is not an array"),
    ({"scores": np.zeros(N, np.int32)}, "scores is not an array of floats"),
    ({"scores": ["a"] * N}, "scores is not an array of floats"),
    ({"scores": array("scores", 7, np.nan)}, "score of token 7 is nan"),
    ({"scores": array("scores", 7, -np.inf)}, "score of token 7 is -inf"),
    ({"token_type": None}, "token_type is missing"),
    ({"token_type": np.zeros(N + 1, np.int32)}, f"token_type has {N + 1} entries"),
    ({"token_type": np.zeros(N, np.float32)}, "token_type is not an array of integers"),
    ({"token_type": array("token_type", 0, 7)}, "token_type holds 7"),
    ({"token_type": array("token_type", 0, -1)}, "token_type holds -1"),
    ({"bos_token_id": N}, f"bos_token_id is {N}, but there are {N} tokens"),
    ({"eos_token_id": -1}, "eos_token_id is -1"),
    ({"eot_token_id": 2**32 - 1}, "eot_token_id is 4294967295"),
    ({"unknown_token_id": "0"}, "unknown_token_id is '0', not an integer"),
    ({"padding_token_id": True}, "padding_token_id is True"),
    ({"eos_token_id": 2.0}, "eos_token_id is 2.0"),
    ({"add_bos_token": 1}, "add_bos_token is 1, not a truth value"),
    ({"add_space_prefix": "no"}, "add_space_prefix is 'no'"),
    ({"general__name": 5}, "general.name is int"),
]
BYTE_LEVEL_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"merges": None}, "merges is missing"),
    ({"merges": ["h e", "he"]}, "entry 1 is 'he'"),
    ({"merges": ["h e", ""]}, "entry 1 is ''"),
    ({"merges": ["h e", " "]}, "entry 1 is ' '"),
    ({"merges": ["h e", "h zz"]}, "entry 1 needs 'zz'"),
    ({"merges": ["h l"]}, "entry 0 needs 'hl'"),
    ({"pre": None}, "pre is missing"),
    ({"pre": "klingon"}, "pre is 'klingon'"),
    ({"pre": 1}, "pre is int"),
    ({"add_bos_token": True}, "bos_token_id is missing"),
    ({"tokens": ["\udcff", *byte_level_metadata()["tokenizer.ggml.tokens"][1:]]}, "token 0 is no UTF-8"),
]


@pytest.mark.parametrize(("changes", "message"), SPM_FAULTS, ids=[m for _, m in SPM_FAULTS])
def test_a_broken_sentencepiece_vocabulary_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_gguf(spm_metadata(**changes))
    assert message in caught.value.message


@pytest.mark.parametrize(("changes", "message"), BYTE_LEVEL_FAULTS, ids=[m for _, m in BYTE_LEVEL_FAULTS])
def test_a_broken_byte_level_vocabulary_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_gguf(byte_level_metadata(**changes))
    assert message in caught.value.message


def test_an_unknown_pre_tokenizer_lists_the_known() -> None:
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_gguf(byte_level_metadata(pre="klingon"))
    assert all(
        name in caught.value.hint for name in ("gpt-2", "default", "smollm", "qwen2", "llama-bpe", "gpt-4o", "dbrx")
    )


@pytest.mark.parametrize("pre", sorted(PATTERNS))
def test_every_known_pre_tokenizer_loads_and_loses_nothing(pre: str) -> None:
    text = "Hello, WORLD's  12345 x\r\n\n\té中文😀 नमस्ते --- \u3000'LL "
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(pre=pre, add_bos_token=False))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_that_would_spell_a_control_token_are_left_out() -> None:
    metadata = byte_level_metadata()
    pieces = ["<|", "end", "|>", "<|end"]
    metadata["tokenizer.ggml.tokens"] += pieces + ["en"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [1] * 5).astype(np.int32)
    metadata["tokenizer.ggml.merges"] += ["< |", "e n", "en d", "| >", "<| end", "<|end |>"]
    for pre in ("gpt-2", "llama-bpe"):
        tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False})
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode("<|end|>"))


def test_pieces_that_are_no_utf8_do_no_harm() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(tokens=array("tokens", 262, "\udcff\udc80")))
    assert tokenizer.decode_bytes([1, 262]) == b"\xff\x80"
    assert tokenizer.decode(tokenizer.encode("a\x00b é")) == "a\x00b é"


def test_unused_pieces_are_never_produced() -> None:
    metadata = spm_metadata(token_type=array("token_type", -7, 5))  # "hello"
    tokenizer = Tokenizer.from_gguf(metadata)
    unused = len(metadata["tokenizer.ggml.tokens"]) - 7
    assert metadata["tokenizer.ggml.tokens"][unused] == "hello"
    assert unused not in tokenizer.encode("ahello") and tokenizer.decode(tokenizer.encode("ahello")) == "ahello"


def test_an_empty_entry_is_a_hole_that_prints_nothing() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(tokens=array("tokens", 262, "")))
    assert tokenizer.token_bytes(262) == b""


VALUES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8)
VALUES |= st.lists(st.text(max_size=4) | st.integers(-5, 300), max_size=N)
KEYS = ["model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id"]


@given(
    base=st.sampled_from([spm_metadata, byte_level_metadata]), changes=st.dictionaries(st.sampled_from(KEYS), VALUES)
)
def test_any_metadata_give_a_tokenizer_or_a_phial_error(base: Any, changes: dict[str, Any]) -> None:
    try:
        tokenizer = Tokenizer.from_gguf(base(**changes))
        tokenizer.decode(tokenizer.encode("hello <|end|>"))
    except PhialError:
        pass


@given(seed=st.integers(0, 2**32), wild=st.integers(0, 3))
def test_any_scores_and_types_give_a_tokenizer_or_a_phial_error(seed: int, wild: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 2**32, N, np.uint32).view(np.float32) if wild == 3 else rng.choice([-1e38, -1, 0, 2], N)
    types = rng.integers(0, 7, N) if wild else rng.choice([1, 3, 4, 5], N)
    try:
        tokenizer = Tokenizer.from_gguf(
            spm_metadata(scores=scores.astype(np.float32), token_type=types.astype(np.int32))
        )
        tokenizer.decode(tokenizer.encode("hello <|end|> é"))
    except PhialError:
        pass
