"""A vocabulary trained here: transformers and phial read it with equal ids, and every text comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phial.data.vocabulary import texts_of, write_vocabulary
from phial.errors import ArgumentError, PhialError
from phial.gguf.hf_tokenizer import read_hf_tokenizer
from phial.tokenizer.tokenizer import Tokenizer
from phial.tokenizer.train import SPECIAL_TOKENS, Kind, train_vocabulary
from phial.tokenizer.vocabulary import TokenType

KINDS = ("byte-level", "byte-fallback")
SIZE = 380
TEXTS = [
    "Once upon a time there was a small model that lived on a telephone.\nIt read the textbook.",
    "The small model read the textbook and answered the question of the knight: 12 + 30 = 42.",
    "def area(width, height):\n    return width * height  # naïve, é, 你好\n",
    "What is the answer to the question? The answer is in the textbook, said the <|end|> knight.",
] * 10
ODD = [
    "",
    " ",
    "  two  spaces and\ttabs\n\n\nlines ",
    "don't 12345 it's",
    "naïve é 你好 😀 \u200b\u0301 ﷽",
    "the the the textbook",
    "\x00\x01\x7f\r\n",
    "<|end|>",
    "<|user|>\nHi there<|end|>\n<|assistant|>\nOnce upon<|end|>\n<|endoftext|>",
    " <|system|> x",
    "<|end|",
    "a" * 500,
]


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = tmp_path_factory.mktemp("vocabulary") / "small"
    metadata = write_vocabulary(TEXTS, SIZE, folder, cast(Kind, request.param))
    return folder, Tokenizer.from_gguf(metadata)


def test_the_vocabulary_has_the_size_asked_for_and_ends_texts_and_turns(trained: tuple[Path, Tokenizer]) -> None:
    tokenizer = trained[1]
    assert tokenizer.n_vocab == SIZE
    assert tokenizer.eos_id == tokenizer.special_tokens["<|endoftext|>"]
    assert tokenizer.eog_ids == {tokenizer.special_tokens[name] for name in ("<|endoftext|>", "<|end|>")}
    assert set(SPECIAL_TOKENS) <= set(tokenizer.special_tokens)
    assert not tokenizer.add_bos


@pytest.mark.parametrize("text", ODD)
def test_transformers_and_phial_read_the_folder_with_equal_ids(trained: tuple[Path, Tokenizer], text: str) -> None:
    from transformers import AutoTokenizer

    folder, tokenizer = trained
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, special=True)
    assert theirs.encode(text) == tokenizer.encode(text, special=True)  # neither puts anything around a text


def test_the_folder_read_as_convert_does_is_the_vocabulary_that_was_trained(trained: tuple[Path, Tokenizer]) -> None:
    folder, tokenizer = trained
    metadata, notes = read_hf_tokenizer(folder, {}, SIZE, "small")
    again = Tokenizer.from_gguf(metadata)
    assert notes == []
    assert (again.eos_id, again.eog_ids, again.control_ids) == (
        tokenizer.eos_id,
        tokenizer.eog_ids,
        tokenizer.control_ids,
    )
    for text in [*ODD, *TEXTS[:4]]:
        assert again.encode(text) == tokenizer.encode(text)


def test_it_learnt_words_of_the_text(trained: tuple[Path, Tokenizer]) -> None:
    assert len(trained[1].encode("the textbook")) <= 4 < len(trained[1].encode("zxqvkj"))


@given(text=st.text())
@example(text="".join(ODD))
def test_every_text_comes_back(trained: tuple[Path, Tokenizer], text: str) -> None:
    tokenizer = trained[1]
    text = text.replace("▁", "_")  # SentencePiece's own mark reads as a space
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.lists(st.sampled_from([*"ab <|>\n", *SPECIAL_TOKENS])).map("".join))
def test_a_users_text_never_gives_a_control_token(trained: tuple[Path, Tokenizer], text: str) -> None:
    ids = trained[1].encode(text)
    assert trained[1].control_ids.isdisjoint(ids)
    assert trained[1].decode(ids) == text


def test_the_chat_template_gives_one_token_for_each_mark(trained: tuple[Path, Tokenizer]) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(trained[0])
    shown = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert shown == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    ids = trained[1].encode(shown, special=True)
    marks = [trained[1].special_tokens[name] for name in ("<|user|>", "<|end|>", "<|assistant|>")]
    assert [i for i in ids if i in trained[1].control_ids] == marks


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_vocabulary(kind: Kind) -> None:
    first, second = (train_vocabulary(iter(TEXTS), SIZE, kind) for _ in range(2))
    assert first["tokenizer.ggml.tokens"] == second["tokenizer.ggml.tokens"]
    assert first.get("tokenizer.ggml.merges") == second.get("tokenizer.ggml.merges")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_in_the_training_text_is_not_learnt_as_a_word(kind: Kind) -> None:
    metadata = train_vocabulary([*TEXTS, *["<|end|> <|user|> <|assistant|>"] * 200], SIZE, kind)
    kinds = metadata["tokenizer.ggml.token_type"]
    learnt = [t for t, k in zip(metadata["tokenizer.ggml.tokens"], kinds, strict=True) if k == TokenType.NORMAL]
    assert not [text for text in learnt if "<|" in text or "|>" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_the_text_gives_is_an_error_with_a_number_that_works(kind: Kind) -> None:
    with pytest.raises(PhialError, match=r"at most \d+ tokens, not 5000") as caught:
        train_vocabulary(TEXTS[:4], 5000, kind)
    most = int(caught.value.message.split("at most ")[1].split()[0])
    assert len(train_vocabulary(TEXTS[:4], most, kind)["tokenizer.ggml.tokens"]) == most


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    for arguments, message in (((TEXTS, 100), "100 tokens"), ((TEXTS, SIZE, "wordpiece"), "wordpiece")):
        with pytest.raises(ArgumentError, match=message):
            train_vocabulary(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="llama-bpe"):
        train_vocabulary(TEXTS, SIZE, pre="llama-bpe")
    with pytest.raises(ArgumentError, match="no Unicode"):
        train_vocabulary(["\ud800"], SIZE)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(PhialError, match=r"latin\.txt is no UTF-8"):
        list(texts_of([tmp_path]))
    with pytest.raises(PhialError, match=r"nothing\.txt"):
        list(texts_of([tmp_path / "nothing.txt"]))
    with pytest.raises(ArgumentError, match="exists already"):
        write_vocabulary(TEXTS, SIZE, tmp_path)


def test_texts_are_read_from_files_and_from_a_stage(tmp_path: Path) -> None:
    from phial.data.document import Document, DocumentFile

    (tmp_path / "a.txt").write_text("one\r\ntwo", "utf-8", newline="")
    file = DocumentFile(tmp_path / "stage" / "kept" / "00000.jsonl.zst")
    file.write(Document("three", "id", metadata={}))
    file.close()
    assert list(texts_of([tmp_path / "a.txt", tmp_path / "stage"])) == ["one\r\ntwo", "three"]


def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    import json
    import subprocess
    import sys

    (tmp_path / "a.txt").write_text("\n".join(TEXTS), "utf-8")
    command = [sys.executable, "-m", "phial", "data", "vocabulary", "a.txt", "-o", "out", "--size", "300", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"folder": "out", "kind": "byte-level", "tokens": 300}
    assert (tmp_path / "out" / "tokenizer.json").exists()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "out exists already" in again.stderr
