"""`phial tokenize` against the tokenizer itself."""

from __future__ import annotations

import json

import pytest

from phial.gguf.container import read_gguf
from phial.tokenizer.tokenizer import Tokenizer

TEXT = "the time wörld <|end|> 🎉"


@pytest.fixture(scope="module")
def tokenizer(tiny) -> Tokenizer:
    with read_gguf(tiny) as file:
        return Tokenizer.from_gguf(file.metadata)


def test_ids_are_the_tokenizers(invoke, tiny, tokenizer) -> None:
    done = invoke("tokenize", TEXT, "-m", tiny, "--ids")
    assert done.out == " ".join(map(str, tokenizer.encode(TEXT))) + "\n"
    assert done.err == ""


def test_count_counts_and_stdin_is_read_to_the_last_byte(invoke, tiny, tokenizer) -> None:
    assert (
        invoke("tokenize", "-m", tiny, "--count", stdin="a\nb\n").out
        == f"{len(tokenizer.encode('a' + chr(10) + 'b' + chr(10)))}\n"
    )


def test_special_reads_control_tokens_and_the_default_does_not(invoke, tiny, tokenizer) -> None:
    (end,) = tokenizer.encode("<|end|>", add_bos=False, special=True)
    with_special = invoke("tokenize", TEXT, "-m", tiny, "--ids", "--special").out.split()
    without = invoke("tokenize", TEXT, "-m", tiny, "--ids").out.split()
    assert str(end) in with_special and str(end) not in without


def test_bos_is_a_choice(invoke, tiny, tokenizer) -> None:
    ids = invoke("tokenize", "the", "-m", tiny, "--ids", "--no-bos").out.split()
    assert invoke("tokenize", "the", "-m", tiny, "--ids", "--bos").out.split() == [str(tokenizer.bos_id), *ids]


def test_json_describes_every_token_and_its_bytes_make_the_text(invoke, tiny) -> None:
    answer = json.loads(invoke("tokenize", "🎉 the", "-m", tiny, "--json", "--no-bos").out)
    assert answer["count"] == len(answer["tokens"])
    assert bytes.fromhex("".join(token["bytes"] for token in answer["tokens"])).decode().strip() == "🎉 the"


def test_plain_output_is_a_line_per_token_even_for_parts_of_a_character(invoke, tiny, tokenizer) -> None:
    lines = invoke("tokenize", "🎉\n\x1b[31m", "-m", tiny).out.splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == tokenizer.encode("🎉\n\x1b[31m")
    assert not any("\x1b" in line for line in lines)


def test_input_that_is_no_utf8_is_refused_with_the_position(invoke, tiny) -> None:
    done = invoke("tokenize", "-m", tiny, stdin=b"abc\xff")
    assert (done.status, done.out) == (2, "")
    assert "0xff at position 3" in done.err


def test_an_argument_that_is_no_utf8_is_refused(invoke, tiny) -> None:
    done = invoke("tokenize", "abc\udcff", "-m", tiny)
    assert (done.status, done.out) == (2, "")
    assert "UTF-8" in done.err
