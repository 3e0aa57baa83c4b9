"""Llama's draft_model: every kind of it, on the real engine with a tiny model; none changes an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import write_tiny

from phial import Llama
from phial.engine import native_backend
from phial.engine.engine import Engine
from phial.engine.llama import LlamaDraftModel, LlamaPromptLookupDecoding
from phial.errors import ArgumentError

pytestmark = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
OPTIONS: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "verbose": False}
PROMPT = "once upon a time, upon a time, once upon a time"
CALLS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 40},
    {"temperature": 1.2, "seed": 3, "max_tokens": 30, "repeat_penalty": 1.1},
    {"temperature": 0.8, "seed": 4, "max_tokens": 30, "logit_bias": {300: 3.0}, "stop": ["he"]},
]


class Wrong(LlamaDraftModel):
    """Drafts noise."""

    def __call__(self, input_ids: np.ndarray, /, **kwargs: Any) -> np.ndarray:
        return np.random.default_rng(len(input_ids)).integers(0, 300, 4).astype(np.intc)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def answers(llm: Llama) -> list[Any]:
    results: list[Any] = [llm(PROMPT, **call)["choices"][0] for call in CALLS]  # type: ignore[index]
    return results


def test_no_draft_model_changes_an_answer(path: Path) -> None:
    expected = answers(Llama(path, draft_model=False, **OPTIONS))
    twin = Llama(path, **OPTIONS)
    for draft_model in (None, LlamaPromptLookupDecoding(num_pred_tokens=3), Wrong(), lambda ids: [1, 2], twin):
        assert answers(Llama(path, draft_model=draft_model, **OPTIONS)) == expected


def test_logprobs_scores_and_processors_see_what_they_see_without_drafts(path: Path) -> None:
    seen: list[list[list[int]]] = [[], []]
    entries, scores = [], []
    for draft_model, ids_seen in zip((False, LlamaPromptLookupDecoding()), seen, strict=True):
        llm = Llama(path, draft_model=draft_model, logits_all=True, **OPTIONS)

        def processor(ids: np.ndarray, logits: np.ndarray, ids_seen: list[list[int]] = ids_seen) -> np.ndarray:
            ids_seen.append(ids.tolist())
            return logits

        answer: Any = llm(PROMPT, temperature=0.0, max_tokens=30, logprobs=2, logits_processor=[processor])
        entries.append(answer["choices"][0]["logprobs"])
        scores.append(llm.scores[: llm.n_tokens].copy())
    assert seen[0] == seen[1] and len(seen[0]) == 30
    assert entries[0] == entries[1]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_tokens_sent_into_a_generator_go_behind_the_last_one(path: Path) -> None:
    texts = []
    for draft_model in (False, lambda ids: [int(ids[-1])] * 5, LlamaPromptLookupDecoding()):
        llm = Llama(path, draft_model=draft_model, **OPTIONS)
        stream = llm.generate(llm.tokenize(PROMPT.encode()), temp=0.0)
        drawn = [next(stream) for _ in range(5)]
        drawn += [stream.send([7, 8, 7]), *(next(stream) for _ in range(5))]
        texts.append((drawn, llm.ctx.tokens))
    assert texts[0] == texts[1] == texts[2]


def test_prompt_lookup_finds_what_followed() -> None:
    lookup = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=3)
    assert lookup(np.array([1, 2, 3, 4, 5, 1, 2], np.intc)).tolist() == [3, 4, 5]
    assert lookup(np.array([1, 2, 3], np.intc)).tolist() == []
    assert lookup(np.array([], np.intc)).tolist() == []
    for name in ("max_ngram_size", "num_pred_tokens"):
        with pytest.raises(ArgumentError, match=f"{name}=0"):
            LlamaPromptLookupDecoding(**{name: 0})


def test_what_cannot_draft_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16}  # never ends before the first draft, as chance may
    with pytest.raises(ArgumentError, match="draft_model returned float64s"):
        Llama(path, draft_model=lambda ids: [0.5], **OPTIONS)(PROMPT, **greedy)
    with pytest.raises(ArgumentError, match="token id 100000"):
        Llama(path, draft_model=lambda ids: [100000], **OPTIONS)(PROMPT, **greedy)
    other = Llama(write_tiny(tmp_path / "other.gguf"), **OPTIONS)
    other.model.metadata["tokenizer.ggml.tokens"] = ["another"]
    with pytest.raises(ArgumentError, match=r"other.gguf cannot draft for tiny.gguf"):
        Llama(path, draft_model=other, **OPTIONS)
    monkeypatch.setattr(native_backend, "is_available", lambda: False)
    Llama(path, **OPTIONS)
    with pytest.raises(ArgumentError, match="reference backend cannot speculate"):
        Llama(path, draft_model=LlamaPromptLookupDecoding(), **OPTIONS)
    assert not Engine.open(path).batch_invariant
