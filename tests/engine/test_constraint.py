"""Texts held to a grammar: what is drawn satisfies it, whatever the seed, and nothing that would satisfy it is barred.

Texts are checked by jsonschema and by lists of all words of small languages, which know nothing of llguidance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from phial.engine.constraint import TokenTrie
from phial.engine.grammar import LlamaGrammar
from phial.engine.llama import Llama, LlamaPromptLookupDecoding
from phial.errors import ArgumentError, PhialError

SHORT = {"type": "string", "maxLength": 8}
PERSON = {
    "type": "object",
    "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -3, "maximum": 15},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": 0.25, "maximum": 0.5},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["naïve", "Zürich", "東京", "🙂", 'a"b\\c', 3, None, True]},
    {"const": {"a": [1, "é"]}},
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "array", "items": {"enum": ["ß"]}, "maxItems": 3}]},
    PERSON,
    {
        "type": "object",
        "properties": {"people": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2}, "ok": {"const": 1}},
        "required": ["people"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "leaf": {"enum": ["a", "b"]},
            "pair": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
        },
        "type": "object",
        "properties": {"l": {"$ref": "#/$defs/pair"}, "r": {"$ref": "#/$defs/pair"}},
        "required": ["l", "r"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"score": {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}, "why": SHORT},
        "required": ["why", "score"],
        "additionalProperties": False,
    },
]  # fmt: skip
ANYTHING: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHAT: list[dict[str, str]] = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def llm(tiny: dict[str, Path]) -> Iterator[Llama]:
    model = Llama(tiny["phi3"], n_ctx=512, n_threads=1, verbose=False)
    yield model
    model.close()


def text_of(answer: Any) -> tuple[str, str]:
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_with_any_seed_and_temperature_the_text_satisfies_the_schema(llm: Llama, schema: dict[str, Any]) -> None:
    grammar = LlamaGrammar.from_json_schema(schema)
    check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for seed, temperature in enumerate((0.0, 0.5, 1.0, 1.5, 3.0, 10.0)):
        text, reason = text_of(llm("P", None, 400, temperature, seed=seed, grammar=grammar, **ANYTHING))
        assert reason == "stop", text
        check.validate(json.loads(text))


WORDS = {  # grammar: every word of its language
    "enum": (
        LlamaGrammar.from_json_schema({"enum": ["naïve", "na", "東京", "東", 12, 123]}),
        ['"naïve"', '"na"', '"東京"', '"東"', "12", "123"],
    ),
    "object": (
        LlamaGrammar.from_json_schema(
            {
                "x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
                "type": "object",
                "properties": {"the": {"type": "boolean"}, "é": {"enum": ["on", "once"]}},
                "required": ["the"],
                "additionalProperties": False,
            }
        ),
        [f'{{"the":{b}{e}}}' for b in ("true", "false") for e in ("", ',"é":"on"', ',"é":"once"')],
    ),
    "gbnf": (LlamaGrammar.from_string('root ::= ("yes" | "no" | "nono") "!"?'), [
        w + e for w in ("yes", "no", "nono") for e in ("", "!")]),
    "names of control tokens": (
        LlamaGrammar.from_string(r'start: "<s>" | "<unk>" | "<|end|>" | "<|im_end|>"'),
        ["<s>", "<unk>", "<|end|>", "<|im_end|>"],
    ),
    "lark": (LlamaGrammar.from_string('start: "once" " upon"? | "on"'), ["once", "once upon", "on"]),
    "regex": (LlamaGrammar.from_regex("(the|the€|he){1,2}"), [
        a + b for a in ("the", "the€", "he") for b in ("", "the", "the€", "he")]),
}  # fmt: skip


def walks(model: Llama, name: str) -> Iterator[tuple[Any, bytes, list[bytes]]]:
    """Constraints with the text so far, along random ways through a small language, until nothing may follow."""
    grammar, words = WORDS[name]
    trie, spell = TokenTrie(model.vocabulary), model.vocabulary
    ends = model.vocabulary.tokenizer.eog_ids
    for seed in range(12):
        rng, constraint, text = np.random.default_rng(seed), trie.constraint(grammar, ends), b""
        while True:
            yield constraint, text, [word.encode() for word in words]
            choice = [i for i in np.flatnonzero(constraint.mask()).tolist() if i not in ends]
            if not choice:
                break
            token = int(rng.choice(choice))
            constraint.accept(token)
            text += spell.detokenize([token])


def check_masks(model: Llama, name: str) -> None:
    tokenizer = model.vocabulary.tokenizer
    spelt = [model.vocabulary.detokenize([i]) for i in range(tokenizer.n_vocab)]
    barred = tokenizer.control_ids | {tokenizer.unk_id}
    steps = 0
    for constraint, text, words in walks(model, name):
        rests = [word[len(text) :] for word in words if word.startswith(text)]
        allowed = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
        expected = {i for i, data in enumerate(spelt) if data in allowed and i not in barred}
        if text in words:
            expected |= tokenizer.eog_ids
        assert set(np.flatnonzero(constraint.mask()).tolist()) == expected, text
        assert constraint.complete == (text in words)
        steps += 1
    assert steps > 12


@pytest.mark.parametrize("name", WORDS)
def test_a_mask_allows_exactly_the_tokens_that_keep_the_text_a_beginning_of_a_word(llm: Llama, name: str) -> None:
    check_masks(llm, name)


@pytest.mark.parametrize("name", WORDS)
def test_so_it_does_with_a_byte_level_vocabulary(smollm2: Path, name: str) -> None:
    model = Llama(smollm2, vocab_only=True, verbose=False)
    check_masks(model, name)


def test_a_text_cut_off_by_max_tokens_says_length_and_is_the_beginning_of_the_whole_one(llm: Llama) -> None:
    grammar = LlamaGrammar.from_json_schema(PERSON)
    whole, reason = text_of(llm("P", max_tokens=200, temperature=0, grammar=grammar))
    assert reason == "stop"
    cut, reason = text_of(llm("P", max_tokens=5, temperature=0, grammar=grammar))
    assert reason == "length"
    assert whole.startswith(cut) and len(cut) < len(whole)


def test_a_text_that_is_complete_with_its_last_token_ends_by_itself(llm: Llama) -> None:
    answer = llm("P", max_tokens=4, grammar=LlamaGrammar.from_regex("[xyz]{4}"), logit_bias=None)
    assert text_of(answer)[1] == "stop"
    assert answer["usage"]["completion_tokens"] == 4


def test_a_text_that_may_go_on_ends_only_where_it_may(llm: Llama) -> None:
    """Drawing without a bias for the end, lengths differ, and none breaks off inside a pair."""
    grammar, lengths = LlamaGrammar.from_regex("(ab)+"), set()
    for seed in range(20):
        text, reason = text_of(llm("P", max_tokens=300, temperature=1.5, seed=seed, grammar=grammar, **ANYTHING))
        assert reason == "stop" and text == "ab" * (len(text) // 2) != ""
        lengths.add(len(text))
    assert len(lengths) > 2


def test_penalties_biases_and_mirostat_cannot_break_a_grammar(llm: Llama) -> None:
    grammar = LlamaGrammar.from_json_schema({"type": "array", "items": {"const": "aaa"}, "minItems": 3, "maxItems": 3})
    barred = {llm.tokenize(b"z", add_bos=False)[-1]: 1e30, llm.token_eos(): 100.0}
    for arguments in (
        {"repeat_penalty": 3.0, "presence_penalty": 50.0, "frequency_penalty": 50.0},
        {"logit_bias": barred},
        {"mirostat_mode": 2},
        {"top_k": 1},
        {"temperature": -1.0},
    ):
        text, reason = text_of(llm("P", max_tokens=100, seed=3, grammar=grammar, **arguments))
        assert (json.loads(text), reason) == (["aaa"] * 3, "stop")


def test_guessing_ahead_does_not_change_a_held_text(tiny: dict[str, Path]) -> None:
    grammar = LlamaGrammar.from_json_schema({"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3})
    answers = []
    for draft_model in (False, LlamaPromptLookupDecoding(), lambda ids: [int(i) for i in ids[-4:]]):
        with_drafts = Llama(tiny["phi3"], n_ctx=512, n_threads=1, draft_model=draft_model, verbose=False)
        answers.append([
            text_of(with_drafts('[{"name":"the","age":1}', max_tokens=300, seed=s, temperature=t, grammar=grammar))
            for s, t in ((1, 0.0), (2, 0.7), (3, 2.0))
        ])  # fmt: skip
        with_drafts.close()
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


def test_a_stream_is_the_whole_text_in_pieces(llm: Llama) -> None:
    arguments: dict[str, Any] = {"max_tokens": 100, "seed": 5, "grammar": LlamaGrammar.from_json_schema(PERSON)}
    pieces = [text_of(chunk) for chunk in llm("P", stream=True, **arguments)]
    assert "".join(text for text, _ in pieces) == text_of(llm("P", **arguments))[0]
    assert pieces[-1][1] == "stop"


def test_a_generator_yields_the_text_and_then_the_end(llm: Llama) -> None:
    ids = llm.generate(llm.tokenize(b"P"), temp=0.0, grammar=LlamaGrammar.from_regex("[xyz]{2}"))
    drawn = [next(ids) for _ in range(4)]
    assert len(llm.detokenize(drawn[:2])) == 2
    assert set(drawn[2:]) <= llm.vocabulary.tokenizer.eog_ids


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object", "schema": PERSON},
        {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}},
    ],
)
def test_a_chat_answers_in_the_response_format(llm: Llama, response_format: dict[str, Any]) -> None:
    text, reason = text_of(llm.create_chat_completion(CHAT, response_format=response_format, seed=1, temperature=1.0))
    jsonschema.validate(json.loads(text), PERSON)
    assert reason == "stop"


def test_a_json_object_without_a_schema_is_any_object(llm: Llama) -> None:
    bias = {llm.tokenize(b'"', add_bos=False)[-1]: 8.0, llm.tokenize(b"}", add_bos=False)[-1]: 9.0}  # an early end
    text, reason = text_of(
        llm.create_chat_completion(
            CHAT, response_format={"type": "json_object"}, seed=1, max_tokens=200, logit_bias=bias
        )
    )
    assert isinstance(json.loads(text), dict) and reason == "stop"


def test_a_format_and_a_grammar_at_once_are_refused(llm: Llama) -> None:
    with pytest.raises(ArgumentError, match="both"):
        llm.create_chat_completion(CHAT, response_format={"type": "json_object"}, grammar=LlamaGrammar.from_regex("a"))


def test_a_grammar_of_llama_cpp_is_taken_by_its_text(llm: Llama) -> None:
    foreign = SimpleNamespace(_grammar='root ::= "yes" | "no"')
    assert text_of(llm("P", grammar=foreign))[0] in ("yes", "no")


def test_a_grammar_is_read_from_a_file(tmp_path: Path, llm: Llama) -> None:
    path = tmp_path / "g.gbnf"
    path.write_text('root ::= "ü" [0-9]', "utf-8")
    text = text_of(llm("P", grammar=LlamaGrammar.from_file(path)))[0]
    assert text[0] == "ü" and text[1:].isdigit()
    with pytest.raises(ArgumentError, match="cannot read"):
        LlamaGrammar.from_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "strin"}, "strin"), ({"not": {}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#/nowhere"}, "nowhere"), ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ("{", "no JSON"), ("[]", "schema"), ({"a": object()}, "no JSON"), ({"type": "string", "format": "zzz"}, "zzz"),
        ({"type": "integer", "minimum": -(2**63), "maximum": 5 - 2**63}, "2.53"), ({"const": 2**60 + 1}, "2.53"),
        ({"type": "number", "maximum": 1e400}, "2.53"), ({"anyOf": [{"type": "null"}] * 1001}, "1002 subschemas"),
        ({"items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}, "excluded"),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, "excluded"), ({"x-guidance": 3}, "x-guidance"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a'"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_is_an_error_that_names_what(schema: Any, named: str) -> None:
    with pytest.raises(PhialError) as caught:
        LlamaGrammar.from_json_schema(schema)
    assert re.search(named, str(caught.value))
    assert caught.value.hint and "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize(
    "text", ['root ::= "yes', "root ::= foo", "blah", "start: foo", "", '%llguidance {x}\nstart: "a"']
)
def test_a_text_that_is_no_grammar_is_an_error(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        LlamaGrammar.from_string(text)
    assert caught.value.hint


def test_a_grammar_of_too_many_rules_is_an_error_not_the_end_of_the_process() -> None:
    rules = "".join(f'r{i}: r{i + 1} | "a"\n' for i in range(3000))
    with pytest.raises(ArgumentError, match="3002 rules"):
        LlamaGrammar.from_string(f'start: r0\n{rules}r3000: "b"')
    chain = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(3000)}
    with pytest.raises(ArgumentError, match="subschemas"):
        LlamaGrammar.from_json_schema({"$defs": chain | {"d3000": {}}, "$ref": "#/$defs/d0"})
    nested: Any = {"type": "null"}
    for _ in range(5000):
        nested = {"type": "array", "items": nested}
    with pytest.raises(ArgumentError):
        LlamaGrammar.from_json_schema(nested)


def test_a_grammar_without_an_end_is_an_error(llm: Llama) -> None:
    with pytest.raises(PhialError, match="no text satisfies"):
        llm("P", grammar=LlamaGrammar.from_string("root ::= root"))


@pytest.mark.parametrize("regex", ["(a", "(?=a)b", "", r"(a)\1"])
def test_a_text_that_is_no_regular_expression_is_an_error(regex: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        LlamaGrammar.from_regex(regex)
    assert caught.value.hint


def test_options_of_llguidance_stay_and_forcing_is_off_beside_them(llm: Llama) -> None:
    grammar = LlamaGrammar.from_string('%llguidance {"allow_initial_skip": true}\nstart: "the"')
    assert json.loads(grammar.lark.splitlines()[0].removeprefix("%llguidance")) == {
        "allow_initial_skip": True,
        "no_forcing": True,
    }
    assert text_of(llm("P", grammar=grammar))[0] == "the"


def test_a_token_against_the_grammar_is_an_error(llm: Llama) -> None:
    constraint = TokenTrie(llm.vocabulary).constraint(LlamaGrammar.from_regex("ab"), [llm.token_eos()])
    with pytest.raises(PhialError, match="after 0 tokens"):
        constraint.accept(llm.tokenize(b"z", add_bos=False)[-1])
