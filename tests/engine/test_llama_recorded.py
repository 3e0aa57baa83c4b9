"""Llama's answers against llama-cpp-python's recorded ones on the same model: shapes, texts, counts, logprobs.

tests/golden/record_llama_shapes.py wrote the recording. Where ours differ on purpose, a test of its own says how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phial.engine.llama import Llama

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "llama_shapes.json").read_text("utf-8"))
# theirs: log-probabilities of echoed prompts one token off without BOS; an empty chunk where a stop began; a suffix
# marked with token 0; no answer to an empty prompt
DIFFERENT = {"logprobs_echo", "stop_stream", "suffix", "empty_prompt"}
COMPLETIONS = [n for n, c in RECORDED.items() if isinstance(c, dict) and "prompt" in c.get("arguments", {})]
CHATS = [n for n, c in RECORDED.items() if isinstance(c, dict) and "messages" in c.get("arguments", {})]
EMBEDDINGS = [n for n in RECORDED if n.startswith("embedding_") and "response" in RECORDED[n]]
LOGPROB_TOLERANCE = 0.3  # both sides round activations to 8 bits, each in its own way, on a model of 4-bit weights


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    model = Llama(smollm2, n_ctx=512, n_threads=2, logits_all=True, verbose=False)
    yield model
    model.close()


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal types, keys in equal order, equal values; floats within the tolerance, ids and times by their form."""
    assert type(ours) is type(theirs), f"{path}: {ours!r} for {theirs!r}"
    if isinstance(theirs, dict):
        if "logprobs.top_logprobs[" in path:
            assert_near(ours, theirs)
            return
        assert list(ours) == list(theirs), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), f"{path}: {ours!r} for {theirs!r}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=LOGPROB_TOLERANCE), path
    elif path.endswith(".id"):
        prefix = theirs.split("-")[0]
        assert re.fullmatch(prefix + r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ours), path
    elif path.endswith(".created"):
        assert ours > 1_600_000_000
    elif path.endswith(".model") and theirs.endswith(".gguf"):
        assert ours.endswith(".gguf")
    else:
        assert ours == theirs, f"{path}: {ours!r} for {theirs!r}"


def assert_near(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Two lists of likely tokens: as long, falling, mostly the same tokens and values; near ties may change places."""
    assert len(ours) == len(theirs)
    assert next(iter(ours)) == next(iter(theirs))
    assert list(ours.values())[:-1] == sorted(list(ours.values())[:-1], reverse=True)
    for token in ours.keys() & theirs.keys():
        assert ours[token] == pytest.approx(theirs[token], abs=4 * LOGPROB_TOLERANCE)


def compare(case: dict[str, Any], call: Any) -> None:
    if "error" in case:
        with pytest.raises(ValueError):
            call(**case["arguments"])
    elif "chunks" in case:
        assert_same(list(call(**case["arguments"])), case["chunks"])
    else:
        assert_same(call(**case["arguments"]), case["response"])


@pytest.mark.parametrize("name", [n for n in COMPLETIONS if n not in DIFFERENT and "without" not in n])
def test_a_completion_is_as_recorded(llm: Llama, name: str) -> None:
    llm.reset()
    compare(RECORDED[name], llm.create_completion)


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_as_recorded(llm: Llama, name: str) -> None:
    llm.reset()
    compare(RECORDED[name], llm.create_chat_completion)


def test_calling_the_object_completes(llm: Llama) -> None:
    compare(RECORDED["plain"], llm)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_embedding_is_as_recorded(smollm2: Path, name: str) -> None:
    case = RECORDED[name]
    pooling, text = case["arguments"]["pooling_type"], case["arguments"]["input"]
    llm = Llama(smollm2, n_ctx=512, n_threads=2, embedding=True, pooling_type=pooling, verbose=False)
    answer: Any = llm.create_embedding(text)
    for item in answer["data"]:
        vectors = item["embedding"] if isinstance(item["embedding"][0], list) else [item["embedding"]]
        item["n_vectors"], item["n_numbers"] = len(vectors), len(vectors[0])
        short = [v[:8] for v in vectors]
        item["embedding"] = short if isinstance(item["embedding"][0], list) else short[0]
    assert_same(answer, case["response"])


def test_facts_are_as_recorded(llm: Llama) -> None:
    assert {name: getattr(llm, name)() for name in RECORDED["facts"]} == RECORDED["facts"]


def test_refusals_are_as_recorded(smollm2: Path) -> None:
    llm = Llama(smollm2, n_ctx=512, n_threads=2, verbose=False)
    compare(RECORDED["logprobs_without_logits_all"], llm.create_completion)
    with pytest.raises(Exception, match="embedding=True"):
        llm.create_embedding("Hello")


def test_echoed_logprobs_are_the_true_ones(llm: Llama) -> None:
    recorded = RECORDED["true_logprobs"]
    answer: Any = llm(recorded["text"], echo=True, logprobs=1, max_tokens=1, temperature=0.0)
    logprobs = answer["choices"][0]["logprobs"]
    assert list(logprobs) == list(RECORDED["logprobs_echo"]["response"]["choices"][0]["logprobs"])
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:-1] == pytest.approx(recorded["logprobs"][1:], abs=LOGPROB_TOLERANCE)
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert answer["choices"][0]["text"][offset:].startswith(token)


def test_a_stream_with_a_stop_is_as_recorded_but_for_the_empty_chunk(llm: Llama) -> None:
    llm.reset()
    case = RECORDED["stop_stream"]
    theirs = [c for i, c in enumerate(case["chunks"]) if c["choices"][0]["text"] or i == len(case["chunks"]) - 1]
    assert len(theirs) < len(case["chunks"])
    assert_same(list(llm(**case["arguments"])), theirs)


def test_a_suffix_follows_the_recorded_text_of_a_model_without_infill_marks(llm: Llama) -> None:
    llm.reset()
    plain = RECORDED["plain"]["response"]["choices"][0]["text"]
    answer: Any = llm(**RECORDED["suffix"]["arguments"])
    assert answer["choices"][0]["text"] == plain + " The end."
