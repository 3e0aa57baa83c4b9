"""Agreement with others: llama.cpp's published vectors, the spec's table of both rstrip variants, llama.cpp itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer.sample_texts import sample_texts

from phial.tokenizer.special_tokens import Rstrip
from phial.tokenizer.tokenizer import Tokenizer

SAME_IN_BOTH = {
    "Hello world": [15043, 3186],
    "1234": [29871, 29896, 29906, 29941, 29946],
    "\n": [29871, 13],
    "é": [904],
    "\U0001f600": [29871, 243, 162, 155, 131],
}
TURN = "<|user|>\nHello<|end|>\n<|assistant|>\n"
SPACED = "<|user|>\n I am good <|end|>\n<|endoftext|>"
SYSTEM = "<|system|>\nYou are a helpful assistant.<|end|>\n<|user|>\nWhat is 2+2?<|end|>\n<|assistant|>\n"
VARIANTS: dict[Rstrip, dict[str, list[int]]] = {
    "A": {
        TURN: [32010, 29871, 13, 10994, 32007, 29871, 13, 32001],
        SPACED: [32010, 29871, 13, 306, 626, 1781, 29871, 32007, 29871, 13, 32000],
        SYSTEM: [32006, 29871, 13, 3492, 526, 263, 8444, 20255, 29889, 32007, 29871, 13, 32010, 29871, 13, 5618, 338,
                 29871, 29906, 29974, 29906, 29973, 32007, 29871, 13, 32001],
    },
    "B": {
        TURN: [32010, 15043, 32007, 32001],
        SPACED: [32010, 306, 626, 1781, 29871, 32007, 32000],
        SYSTEM: [32006, 887, 526, 263, 8444, 20255, 29889, 32007, 32010, 1724, 338, 29871, 29906, 29974, 29906, 29973,
                 32007, 32001],
    },
}  # fmt: skip


def published(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    texts = (folder / f"{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / f"{name}.gguf.out").read_text().split("\n")
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("model", ["phi-3", "llama-spm"])
def test_the_47_published_vectors_come_out_and_go_back(
    model: str, shared_data: Path, phi3: Tokenizer, llama2: Tokenizer
) -> None:
    tokenizer = phi3 if model == "phi-3" else llama2
    vectors = published(shared_data / "tokenizer" / model, f"ggml-vocab-{model}")
    assert len(vectors) == 47
    for text, expected in vectors:
        assert tokenizer.encode(text, add_bos=False) == expected, repr(text)
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize("variant", ["A", "B"])
def test_both_columns_of_the_specification(variant: Rstrip, phi3_metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_gguf(phi3_metadata, rstrip=variant)
    for text, expected in {**SAME_IN_BOTH, **VARIANTS[variant]}.items():
        assert tokenizer.encode(text, add_bos=False, special=True) == expected, repr(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Phi3", "B"), ("Phi-3 mini 128k", "B"), ("microsoft_phi-3-medium", "B"), ("Phi 3.5 mini", "none"), ("x", "none")],
)
def test_the_automatic_rule_reads_the_name_like_llama_cpp(
    name: str, expected: Rstrip, phi3_metadata: dict[str, Any]
) -> None:
    automatic = Tokenizer.from_gguf({**phi3_metadata, "general.name": name})
    explicit = Tokenizer.from_gguf(phi3_metadata, rstrip=expected)
    assert automatic.encode(SPACED, special=True) == explicit.encode(SPACED, special=True)


@pytest.mark.parametrize("model", ["smollm2", "phi3", "llama-spm"])
def test_1000_varied_strings_agree_with_llama_cpp_id_for_id(
    model: str, repository: Path, request: pytest.FixtureRequest
) -> None:
    fixture = {"smollm2": "smol", "phi3": "phi3", "llama-spm": "llama2"}[model]
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    record = json.loads(gzip.decompress((repository / f"tests/golden/{model}_tokens.json.gz").read_bytes()))
    texts = sample_texts()
    assert len(texts) == len(set(texts)) == len(record["plain"]) == len(record["special"]) == 1000
    assert record["plain"] != record["special"]
    for text, plain, special in zip(texts, record["plain"], record["special"], strict=True):
        assert tokenizer.encode(text, add_bos=False) == plain, repr(text)
        assert tokenizer.encode(text, add_bos=False, special=True) == special, repr(text)
        assert tokenizer.decode(plain) == text


def test_every_pre_tokenizer_family_agrees_with_llama_cpp(repository: Path, smollm2_metadata: dict[str, Any]) -> None:
    record = json.loads(gzip.decompress((repository / "tests/golden/pretokenizer_tokens.json.gz").read_bytes()))
    assert len(record) == 9
    assert len({json.dumps(ids) for ids in record.values()}) >= 5  # the families do differ on these texts
    for pre, expected in record.items():
        tokenizer = Tokenizer.from_gguf(
            {**smollm2_metadata, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
        )
        got = [tokenizer.encode(text, add_bos=False) for text in sample_texts()[: len(expected)]]
        assert got == expected, pre
