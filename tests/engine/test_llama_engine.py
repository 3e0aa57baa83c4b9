"""Llama on the real engine with a tiny model: what a scripted engine cannot show."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import write_tiny, write_tiny_adapter

from phial import Llama
from phial.engine.llama import LlamaDiskCache
from phial.errors import ContextLimitError, FormatError, PhialError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
OPTIONS: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "verbose": False}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    model = Llama(path, **OPTIONS)
    yield model
    model.close()


def text(llm: Llama, prompt: Any = "once upon a time", **arguments: Any) -> str:
    answer: Any = llm(prompt, **{**GREEDY, **arguments})
    return answer["choices"][0]["text"]


def test_all_logits_change_no_text(path: Path, llm: Llama) -> None:
    all_logits = Llama(path, logits_all=True, **OPTIONS)
    assert text(all_logits) == text(llm)
    assert text(all_logits, "once upon a tin") == text(llm, "once upon a tin")


def test_a_warm_answer_is_the_cold_one(path: Path, llm: Llama) -> None:
    cold = text(Llama(path, **OPTIONS))
    text(llm, "once upon the end")
    assert text(llm) == cold == text(llm)


def test_the_prompts_own_logprobs_are_those_of_evaluating_it(path: Path) -> None:
    llm = Llama(path, logits_all=True, **OPTIONS)
    answer: Any = llm("once upon", echo=True, logprobs=0, **GREEDY)
    logprobs = answer["choices"][0]["logprobs"]
    ids = llm.tokenize(b"once upon")
    llm.reset()
    llm.eval(ids)
    rows = Llama.logits_to_logprobs(llm.scores[: llm.n_tokens])
    n = len(ids) - 1  # without BOS
    assert logprobs["token_logprobs"][1:n] == pytest.approx([rows[i][ids[i + 1]] for i in range(1, n)], abs=1e-4)
    assert "".join(logprobs["tokens"]) == " " + answer["choices"][0]["text"] or logprobs["text_offset"][0] == 0
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert answer["choices"][0]["text"][offset:].startswith(token)


def test_a_state_goes_on_in_another_process_through_the_disk(path: Path, llm: Llama, tmp_path: Path) -> None:
    llm.set_cache(LlamaDiskCache(tmp_path))
    expected = text(llm)
    other = Llama(path, **OPTIONS)
    other.set_cache(LlamaDiskCache(tmp_path))
    state = other.cache[llm.tokenize(b"once upon a time")]  # type: ignore[index]
    other.load_state(state)
    assert list(other.eval_tokens) == list(llm.eval_tokens)
    assert np.allclose(other.last_logits, llm.last_logits, atol=1e-4)
    assert text(other) == expected


def test_a_state_of_another_model_is_refused(path: Path, llm: Llama, tmp_path: Path) -> None:
    other = Llama(write_tiny(tmp_path / "other.gguf", seed=2), **OPTIONS)
    llm.eval(llm.tokenize(b"a"))
    state = llm.save_state()
    with pytest.raises(PhialError, match="model"):
        other.load_state(state)
    state.llama_state = state.llama_state[:-1]
    with pytest.raises(FormatError):
        llm.load_state(state)


def test_adapters_are_added_with_their_scales(path: Path, llm: Llama, tmp_path: Path) -> None:
    poet, clerk = (write_tiny_adapter(tmp_path / f"{name}.gguf", seed=i) for i, name in enumerate(["poet", "clerk"]))
    plain, adapted = text(llm), Llama(path, lora_path=str(poet), **OPTIONS)
    assert text(adapted) != plain == text(Llama(path, lora_path=poet, lora_scale=0.0, **OPTIONS))
    both = Llama(path, lora_path=[poet, clerk], lora_scale=[1.0, 0], **OPTIONS)
    assert text(both) == text(adapted) == text(pickle.loads(pickle.dumps(adapted)))
    with pytest.raises(PhialError, match="adapters"):
        llm.load_state(adapted.save_state())


def test_the_cache_of_states_never_mixes_adapters(path: Path, llm: Llama, tmp_path: Path) -> None:
    adapted = Llama(path, lora_path=str(write_tiny_adapter(tmp_path / "poet.gguf")), **OPTIONS)
    expected = text(adapted)
    adapted.reset()
    llm.set_cache(LlamaDiskCache(tmp_path / "states"))
    text(llm)
    adapted.set_cache(LlamaDiskCache(tmp_path / "states"))
    assert text(adapted) == expected


def test_adapters_that_are_not_there_or_do_not_pair_up(path: Path, tmp_path: Path) -> None:
    poet = str(write_tiny_adapter(tmp_path / "poet.gguf"))
    for arguments, named in [
        ({"lora_path": "nowhere"}, "nowhere"),
        ({"lora_path": [poet], "lora_scale": [1.0, 0.5]}, "lora_scale"),
        ({"lora_path": poet, "lora_scale": "much"}, "much"),
        ({"lora_path": [poet, 3]}, "lora_path"),
        ({"lora_path": poet, "vocab_only": True}, "vocab_only"),
        ({"lora_path": str(path)}, "general.type"),
    ]:
        with pytest.raises(PhialError, match=named):
            Llama(path, **arguments, **OPTIONS)  # type: ignore[arg-type]


def test_the_vocabulary_alone_opens_without_weights(path: Path) -> None:
    llm = Llama(path, vocab_only=True, verbose=False)
    assert llm.detokenize(llm.tokenize(b"once upon")) == b"once upon"
    assert llm.n_vocab() > 300 and llm.token_bos() == 1
    with pytest.raises(PhialError, match="vocab_only"):
        llm("once")


def test_a_pickled_llama_says_the_same(llm: Llama) -> None:
    assert text(pickle.loads(pickle.dumps(llm))) == text(llm)


def test_eight_bit_cache_works(path: Path) -> None:
    assert text(Llama(path, type_k=8, type_v=8, **OPTIONS))


def test_evaluating_past_the_context_is_an_error_with_numbers(llm: Llama) -> None:
    with pytest.raises(ContextLimitError, match="128"):
        llm.eval(list(range(3, 3 + 129)))
    assert llm.n_tokens == 0


def test_embeddings_leave_the_text_alone(path: Path) -> None:
    llm = Llama(path, embedding=True, pooling_type=3, **OPTIONS)
    llm.eval(llm.tokenize(b"once"))
    before = list(llm.eval_tokens)
    a, b = llm.embed(["once upon", "a time"], normalize=True)
    assert list(llm.eval_tokens) == before
    assert len(a) == llm.n_embd() and np.linalg.norm(b) == pytest.approx(1.0)


def test_the_metadata_are_text(llm: Llama) -> None:
    assert llm.metadata["general.architecture"] == "phi3"
    assert llm.metadata["tokenizer.ggml.add_bos_token"] == "true"
    assert "tokenizer.ggml.tokens" not in llm.metadata
