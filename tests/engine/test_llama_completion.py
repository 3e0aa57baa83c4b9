"""Completions of Llama on a scripted engine: texts, finish reasons, counts, stops, echo, logprobs, suffix, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.fake_engine import BOS, FakeEngine, fake_llama

from phial.engine.llama import Llama, LogitsProcessorList, StoppingCriteriaList
from phial.errors import ArgumentError, ContextLimitError, PhialError

Maker = Callable[..., Llama]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 50}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Maker:
    return lambda parts, prompt="P", **arguments: fake_llama(monkeypatch, tmp_path, parts, prompt, **arguments)


def engine_of(llm: Llama) -> FakeEngine:
    return llm.model  # type: ignore[return-value]


def text_of(answer: Any) -> str:
    return answer["choices"][0]["text"]


def joined(chunks: Iterator[Any]) -> tuple[str, Any]:
    """The text of all chunks, and the last one's finish reason, after checking the rules of a stream."""
    chunks = list(chunks)
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert text_of(chunks[-1]) == ""
    assert len({c["id"] for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)
    return "".join(map(text_of, chunks)), chunks[-1]["choices"][0]["finish_reason"]


def test_an_end_of_generation_token_stops_and_is_not_counted(make: Maker) -> None:
    answer = make([b"Hello", b" you"])("P", **GREEDY)
    assert text_of(answer) == "Hello you"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_max_tokens_ends_with_length(make: Maker) -> None:
    answer = make([b"Hello", b" you"])("P", temperature=0.0, max_tokens=1)
    assert (text_of(answer), answer["choices"][0]["finish_reason"]) == ("Hello", "length")


@pytest.mark.parametrize("max_tokens", [None, 0, -1, 500])
def test_without_a_limit_the_context_is_filled(make: Maker, max_tokens: int | None) -> None:
    answer = make([b"ab"] * 40, n_ctx=10)("P", temperature=0.0, max_tokens=max_tokens)
    assert answer["usage"]["total_tokens"] == 10
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_fills_the_context_is_a_value_error_with_both_numbers(make: Maker) -> None:
    llm = make([b"x"], n_ctx=8)
    with pytest.raises(ValueError, match=r"\(9\) exceed the context window of 8") as caught:
        llm("abcdefgh")
    assert isinstance(caught.value, ContextLimitError)
    with pytest.raises(ValueError):
        llm("abcdefg", stream=True)
    assert llm("abcdef", max_tokens=5)["usage"]["total_tokens"] == 8


def test_echo_puts_the_prompt_first_whole_and_streamed(make: Maker) -> None:
    llm = make([b"Hello", b" you"], "My prompt")
    assert text_of(llm("My prompt", echo=True, **GREEDY)) == "My promptHello you"
    assert joined(llm("My prompt", echo=True, stream=True, **GREEDY)) == ("My promptHello you", "stop")


def test_a_suffix_follows_the_text_whole_and_streamed(make: Maker) -> None:
    llm = make([b"Hello"])
    assert text_of(llm("P", suffix=" END", **GREEDY)) == "Hello END"
    assert joined(llm("P", suffix=" END", stream=True, **GREEDY))[0] == "Hello END"


def test_a_model_with_infill_marks_reads_the_suffix(make: Maker) -> None:
    llm = make([b"Hello"])
    llm._infill = (250, 251, 252)
    answer = llm("ab", suffix="c", **GREEDY)
    letters = [3 + ord(c) for c in "abc"]
    assert engine_of(llm).session is not None
    assert llm.ctx.tokens[:7] == [BOS, 250, *letters[:2], 251, letters[2], 252]
    assert not text_of(answer).endswith("c")
    llm._arguments["spm_infill"] = True
    llm("ab", suffix="c", **GREEDY)
    assert llm.ctx.tokens[:7] == [BOS, 251, letters[2], 250, *letters[:2], 252]


def test_a_stop_string_across_tokens_never_leaks(make: Maker) -> None:
    llm = make([b"Hi", b" <|", b"end", b"|>", b" more"])
    for stop in ("<|end|>", ["zzz", "<|end|>"]):
        answer = llm("P", stop=stop, **GREEDY)
        assert (text_of(answer), answer["choices"][0]["finish_reason"]) == ("Hi ", "stop")
        assert answer["usage"]["completion_tokens"] == 4
        assert joined(llm("P", stop=stop, stream=True, **GREEDY)) == ("Hi ", "stop")


def test_a_stop_on_the_last_allowed_token_is_a_stop(make: Maker) -> None:
    answer = make([b"Hi", b"END"])("P", stop="END", temperature=0.0, max_tokens=2)
    assert answer["choices"][0]["finish_reason"] == "stop"


pieces = st.lists(st.sampled_from([b"a", b"ab", b"bab", b"<|", b"|>", "é".encode(), b"\xf0\x9f", b"\x99\x82", b" b"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(parts=pieces, stop=st.lists(st.sampled_from(["ab", "b", "<||>", "aé", "ba"]), max_size=3), echo=st.booleans())
def test_streamed_and_whole_answers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: list[bytes], stop: list[str], echo: bool
) -> None:
    llm = fake_llama(monkeypatch, tmp_path, parts[:12])
    whole = llm("P", stop=stop, echo=echo, **GREEDY)
    assert joined(llm("P", stop=stop, echo=echo, stream=True, **GREEDY)) == (
        text_of(whole),
        whole["choices"][0]["finish_reason"],
    )
    assert not any(s in text_of(whole)[echo:] for s in stop)


def test_each_token_is_one_chunk_and_a_character_of_several_tokens_one(make: Maker) -> None:
    smile = "🙂".encode()
    chunks = list(make([b"Hi", smile[:2], smile[2:], b"!"])("P", stream=True, **GREEDY))
    assert [text_of(c) for c in chunks] == ["Hi", "🙂", "!", ""]


def test_logprobs_need_logits_all(make: Maker) -> None:
    with pytest.raises(ValueError, match="logits_all"):
        make([b"x"])("P", logprobs=1)


def softmax_log(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_logprobs_are_those_of_the_logits_the_token_was_drawn_from(make: Maker, count: int) -> None:
    llm = make([b"Hello", b" you"], "Pq", logits_all=True)
    logprobs = llm("Pq", logprobs=count, **GREEDY)["choices"][0]["logprobs"]
    assert list(logprobs) == ["tokens", "text_offset", "token_logprobs", "top_logprobs"]
    assert logprobs["tokens"] == ["Hello", " you"]
    assert logprobs["text_offset"] == [2, 7]
    ids = llm.vocabulary.tokenize("Pq")
    expected = softmax_log(engine_of(llm).logits(ids))
    assert logprobs["token_logprobs"][0] == pytest.approx(expected.max(), abs=1e-5)
    top = logprobs["top_logprobs"][0]
    assert list(top.values())[:count] == pytest.approx(sorted(expected, reverse=True)[:count], abs=1e-5)
    assert top["Hello"] == logprobs["token_logprobs"][0]


def test_echoed_logprobs_begin_with_none_and_are_true(make: Maker) -> None:
    llm = make([b"Hello"], "Pqr", logits_all=True)
    logprobs = llm("Pqr", logprobs=2, echo=True, **GREEDY)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["P", "q", "r", "Hello"]
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    ids = llm.vocabulary.tokenize("Pqr")
    for i in (2, 3):
        expected = softmax_log(engine_of(llm).logits(ids[:i]))[ids[i]]
        assert logprobs["token_logprobs"][i - 1] == pytest.approx(expected, abs=1e-5)


def test_streamed_logprobs_are_those_of_the_whole_answer(make: Maker) -> None:
    llm = make([b"Hi", b"\xf0\x9f", b"\x99\x82", b" you"], logits_all=True)
    for echo in (False, True):
        whole = llm("P", logprobs=2, echo=echo, **GREEDY)["choices"][0]["logprobs"]
        chunks = [c["choices"][0]["logprobs"] for c in llm("P", logprobs=2, echo=echo, stream=True, **GREEDY)]
        assert chunks[-1] is None
        for key in whole:
            assert [value for chunk in chunks[:-1] for value in chunk[key]] == whole[key]


def test_a_bias_forbids_and_forces_tokens(make: Maker) -> None:
    llm = make([b"Hello"])
    hello = llm.vocabulary.tokenize("Hello")[-1]
    other = llm("P", logit_bias={hello: -100}, temperature=0.0, max_tokens=1)
    assert text_of(other) != "Hello"
    forced = llm("P", logit_bias={str(3 + ord("Z")): 100}, temperature=0.0, max_tokens=2)
    assert text_of(forced) == "ZZ"


def test_processors_and_biases_work_together(make: Maker) -> None:
    seen = []

    def only_z(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        scores[:] = -np.inf
        scores[[3 + ord("Z"), 3 + ord("Y")]] = 0
        return scores

    llm = make([b"Hello"])
    for processor in (only_z, [only_z], LogitsProcessorList([only_z])):
        answer = llm("P", logits_processor=processor, logit_bias={3 + ord("Y"): 1}, temperature=0.0, max_tokens=2)
        assert text_of(answer) == "YY"
    assert seen[:2] == [[BOS, 3 + ord("P")], [BOS, 3 + ord("P"), 3 + ord("Y")]]


def test_a_stopping_criterion_ends_before_the_next_token(make: Maker) -> None:
    llm = make([b"a"] * 9)
    for criterion in (lambda ids, logits: len(ids) >= 4, StoppingCriteriaList([lambda ids, logits: len(ids) >= 4])):
        answer = llm("P", stopping_criteria=criterion, **GREEDY)
        assert (text_of(answer), answer["choices"][0]["finish_reason"]) == ("aa", "stop")


def test_penalties_look_at_what_was_generated(make: Maker) -> None:
    llm = make([b"a", b"a", b"a"], "a")
    assert text_of(llm("a", temperature=0.0, max_tokens=2)) == "aa"
    penalised = text_of(llm("a", presence_penalty=100.0, temperature=0.0, max_tokens=2))
    assert penalised[0] == "a" and penalised != "aa"


def test_the_same_seed_gives_the_same_text(make: Maker) -> None:
    def texts(llm: Llama, **arguments: Any) -> list[str]:
        return [text_of(llm("Q", max_tokens=8, top_k=0, top_p=1.0, min_p=0.0, **arguments)) for _ in range(2)]

    first, second = texts(make([b"x"]), seed=1)
    assert first == second
    assert texts(make([b"x"], seed=7)) == texts(make([b"x"], seed=7))
    a, b = texts(make([b"x"], seed=7))
    assert a != b
    a, b = texts(make([b"x"]))
    assert a != b
    a, b = texts(make([b"x"]), seed=-1)
    assert a != b


def test_two_leading_bos_ids_warn(make: Maker) -> None:
    llm = make([b"x"])
    with pytest.warns(RuntimeWarning, match="two BOS"):
        llm([BOS, BOS, 70], **GREEDY)


def test_ids_and_text_give_the_same_answer(make: Maker) -> None:
    llm = make([b"Hello"], "<|user|>P")
    ids = llm.tokenize(b"<|user|>P", special=True)
    assert ids == [BOS, 2, 3 + ord("P")]
    assert text_of(llm(ids, **GREEDY)) == text_of(llm("<|user|>P", **GREEDY)) == "Hello"


def test_an_empty_prompt_begins_with_bos(make: Maker) -> None:
    answer = make([b"Hello"], "")("", **GREEDY)
    assert text_of(answer) == "Hello"
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def test_the_model_is_named_by_its_path_or_as_asked(make: Maker) -> None:
    llm = make([b"x"])
    assert llm("P")["model"] == llm.model_path
    assert llm("P", model="other")["model"] == "other"


@pytest.mark.parametrize(
    "arguments",
    [
        {"tfs_z": 0.5}, {"mirostat_mode": 1}, {"grammar": "root ::= x"}, {"stop": [""]}, {"stop": [3]},
        {"logprobs": -1}, {"logprobs": True}, {"temperature": "hot"}, {"top_p": 2.0}, {"logit_bias": {"a": 1}},
        {"logit_bias": {9999: 1}}, {"max_tokens": 1.5}, {"suffix": 3}, {"seed": "x"}, {"prompt": None},
        {"prompt": [1, 99999]}, {"prompt": ["a"]},
    ],
)  # fmt: skip
def test_an_argument_that_cannot_be_honoured_raises_at_the_call_also_when_streaming(
    make: Maker, arguments: dict[str, Any]
) -> None:
    llm = make([b"x"], logits_all=True)
    with pytest.raises(ArgumentError) as caught:
        llm(**{"prompt": "P", "stream": True, **arguments})
    assert caught.value.hint


def test_an_unknown_argument_is_a_type_error(make: Maker) -> None:
    with pytest.raises(TypeError, match="temprature"):
        make([b"x"])("P", temprature=0.1)


def test_a_shared_prefix_is_not_evaluated_again(make: Maker) -> None:
    for logits_all in (False, True):
        llm = make([b"x"], "Pqrs", logits_all=logits_all)
        llm("Pqrs", **GREEDY)
        before = len(llm.ctx.evaluated)
        llm("Pqrz", **GREEDY, stop="no")
        assert llm.ctx.evaluated[before] == 3 + ord("z")


def test_an_overtaken_stream_says_so(make: Maker) -> None:
    llm = make([b"a"] * 9)
    stream = llm("P", stream=True, **GREEDY)
    next(stream)
    llm("P", **GREEDY)
    with pytest.raises(PhialError, match="overtaken"):
        list(stream)
