"""The tokenizer's own rules: round trips, BOS, special tokens, streaming, what cannot be spelt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer.sample_texts import SCRIPTS
from tests.tokenizer.tiny_vocabulary import byte_level_metadata, spm_metadata

from phial.errors import ArgumentError
from phial.tokenizer.tokenizer import Tokenizer

SPM = Tokenizer.from_gguf(spm_metadata())
BYTES = Tokenizer.from_gguf(byte_level_metadata())
BOTH = pytest.mark.parametrize("tokenizer", [SPM, BYTES], ids=["sentencepiece", "byte-level"])

# U+2581 is SentencePiece's own space mark and reads as a space: a property of that model, not of the tokenizer.
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=60)
WORDS = st.text(st.sampled_from("".join(SCRIPTS.values())), max_size=12)
MULTILINGUAL = st.lists(WORDS | st.sampled_from(["hello", "<|end|>", "::tool::", "  ", "<s>"]), max_size=8).map(
    " ".join
)


@BOTH
@given(text=ANY_TEXT | MULTILINGUAL)
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.n_vocab for i in ids)


@BOTH
@given(text=MULTILINGUAL)
def test_decode_undoes_encode_with_control_tokens_parsed_and_shown(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_bos=False, special=True), special=True) == text


@given(text=MULTILINGUAL)
def test_real_vocabularies_round_trip_multilingual_text(phi3: Tokenizer, smol: Tokenizer, text: str) -> None:
    assert phi3.decode(phi3.encode(text)) == text
    assert smol.decode(smol.encode(text)) == text


@BOTH
@given(text=ANY_TEXT | MULTILINGUAL)
def test_untrusted_text_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text, add_bos=False))


@BOTH
@given(data=st.data())
def test_streaming_gives_whole_characters_and_the_same_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    for special in (False, True):
        stream = tokenizer.stream(special=special)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, special=special)


@BOTH
def test_no_piece_of_a_stream_is_half_a_character(tokenizer: Tokenizer) -> None:
    text = "aé中😀👩🏽‍💻b"
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text, add_bos=False)]
    assert "".join(pieces) == text and stream.finish() == ""
    assert "\ufffd" not in "".join(pieces)
    assert pieces.count("") >= 8  # the bytes that completed nothing yet


@BOTH
def test_a_character_cut_off_at_the_end_is_reported_once(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode("😀", add_bos=False)[:-1]
    assert "".join(stream.push(i) for i in ids) == ""
    assert stream.finish() == "\ufffd"


def test_a_stream_that_continues_a_text_keeps_the_space() -> None:
    hello = SPM.encode("hello", add_bos=False)
    assert SPM.stream().push(hello[0]) == "hello"
    assert SPM.stream(previous=SPM.encode("a", add_bos=False)[-1]).push(hello[0]) == " hello"
    assert SPM.stream(previous=SPM.encode("<|assistant|>", special=True)[-1]).push(hello[0]) == "hello"


def test_bos_follows_the_model_the_caller_and_is_never_doubled() -> None:
    assert SPM.add_bos and not BYTES.add_bos
    assert SPM.encode("a")[0] == 1 and SPM.encode("a", add_bos=False)[0] != 1
    assert SPM.encode("<s>a", special=True).count(1) == 1
    assert SPM.encode("<s>a").count(1) == 1  # read as text, so BOS is still added
    assert SPM.encode("", add_bos=True) == [1] and SPM.encode("", add_bos=False) == []
    off = Tokenizer.from_gguf(spm_metadata(add_bos_token=False))
    assert off.encode("a")[0] != 1 and off.encode("a", add_bos=True)[0] == 1
    with pytest.raises(ArgumentError, match="no BOS"):
        BYTES.encode("a", add_bos=True)


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("qwen2", False), ("gpt-4o", False)])
def test_byte_level_models_add_bos_by_family(pre: str, expected: bool) -> None:
    assert Tokenizer.from_gguf(byte_level_metadata(pre=pre, bos_token_id=0)).add_bos is expected


@BOTH
def test_control_tokens_are_parsed_shown_and_hidden_on_request(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("hello<|end|>", add_bos=False)
    parsed = tokenizer.encode("hello<|end|>", add_bos=False, special=True)
    assert len(plain) > len(parsed) and tokenizer.control_ids.isdisjoint(plain)
    assert parsed[-1] in tokenizer.control_ids and parsed[-1] in tokenizer.eog_ids
    assert tokenizer.decode(parsed) == "hello" and tokenizer.decode(parsed, special=True) == "hello<|end|>"


@BOTH
def test_user_defined_tokens_are_always_parsed_and_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a::tool::b", add_bos=False)
    assert tokenizer.n_vocab - 1 in ids and tokenizer.n_vocab - 1 not in tokenizer.control_ids
    assert tokenizer.decode(ids) == "a::tool::b"


@BOTH
def test_segments_merge_across_borders_and_no_control_token_crosses_one(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("<|user|>hello<|end|>", special=True)
    assert tokenizer.encode_segments([("<|user|>he", True), ("llo", False), ("<|end|>", True)]) == whole
    for segments in ([("<|us", True), ("er|>", False)], [("<|us", True), ("er|>", True)], [("<|user|>", False)]):
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode_segments(segments, add_bos=False))
        assert tokenizer.decode(tokenizer.encode_segments(segments)) == "<|user|>"


def test_the_longest_special_token_wins() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][-2:] = ["<|end|>!", "<|end|>!!"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("<|end|>!!", special=True) == [tokenizer.n_vocab - 1]
    assert tokenizer.encode("<|end|>!x", special=True)[0] == tokenizer.n_vocab - 2


def test_rstrip_swallows_whitespace_after_the_token_only() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(), rstrip="B")
    assert tokenizer.encode("<|user|> \t\r\n\v\fa ", special=True) == tokenizer.encode("<|user|>a ", special=True)
    assert tokenizer.encode("<|endoftext|>\na", special=True) != tokenizer.encode("<|endoftext|>a", special=True)
    only_a = Tokenizer.from_gguf(spm_metadata(), rstrip="A")
    assert only_a.encode("<|assistant|>\na", special=True) == only_a.encode("<|assistant|>a", special=True)
    assert only_a.encode("<|user|>\na", special=True) != only_a.encode("<|user|>a", special=True)
    with pytest.raises(ArgumentError, match="rstrip='C'"):
        Tokenizer.from_gguf(spm_metadata(), rstrip="C")  # type: ignore[arg-type]


def test_no_prefix_space_where_the_file_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(add_space_prefix=False))
    assert tokenizer.token_bytes(tokenizer.encode("hello")[1]) == b"hello"
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_end_of_generation_ids_follow_names_and_fields(phi3: Tokenizer, smol: Tokenizer) -> None:
    assert phi3.eog_ids == {2, 32000, 32007} and phi3.eos_id == 32000 and phi3.bos_id == 1
    assert smol.eog_ids == {0, 2}


def test_an_end_mark_typed_as_ordinary_text_cannot_be_spelt_by_a_user(phi3_metadata: dict[str, Any]) -> None:
    types = phi3_metadata["tokenizer.ggml.token_type"].copy()
    types[32007] = 1
    tokenizer = Tokenizer.from_gguf({**phi3_metadata, "tokenizer.ggml.token_type": types})
    assert 32007 in tokenizer.eog_ids and 32007 not in tokenizer.encode("a<|end|>")


def test_a_character_without_tokens_is_an_error_not_a_loss(smol: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match=r"U\+0004 \(character 1"):
        smol.encode("a\x04b")
    metadata = spm_metadata()
    keep = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind != 6]
    for key in ("scores", "token_type"):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"][keep]
    metadata["tokenizer.ggml.tokens"] = [metadata["tokenizer.ggml.tokens"][i] for i in keep]
    with pytest.raises(ArgumentError, match="cannot spell"):
        Tokenizer.from_gguf(metadata).encode("é")


@BOTH
def test_half_a_surrogate_pair_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match=r"U\+D83D at character 1"):
        tokenizer.encode("a\ud83d")


@BOTH
@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_out_of_range_is_an_error(tokenizer: Tokenizer, token: int) -> None:
    for use in (tokenizer.token_bytes, tokenizer.stream().push, lambda i: tokenizer.decode([i])):
        with pytest.raises(ArgumentError, match=str(token)):
            use(token)


def test_token_bytes_do_not_depend_on_neighbours(phi3: Tokenizer) -> None:
    assert [phi3.token_bytes(i) for i in (15043, 13, 32007, 243)] == [b" Hello", b"\n", b"<|end|>", b"\xf0"]


@BOTH
@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "\n" * 300_000, "<|end|>" * 40_000, "é中😀" * 60_000])
@pytest.mark.timeout(20)
def test_long_monotonous_text_takes_no_longer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
