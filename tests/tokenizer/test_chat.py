"""Chat formats: golden strings for every built-in, the model's own templates, lost messages, stop ids and strings."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tests.tokenizer.tiny_vocabulary import byte_level_metadata, spm_metadata

from phial.errors import ArgumentError, FormatError, PhialError
from phial.tokenizer.builtin_templates import BUILTIN
from phial.tokenizer.chat import ChatTemplate
from phial.tokenizer.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Yo"}
TALK = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": " 2+2? "}]
NOW = datetime(2024, 4, 22)

# (with a generation prompt after TALK, without one after its first three messages)
GOLDEN = {
    "phi3-v1": (
        "<s><|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\n 2+2? <|end|>\n<|assistant|>\n",
        "<s><|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n",
    ),
    "phi3-v2": (
        "<|system|>\nBe brief.<|end|>\n"
        "<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\n 2+2? <|end|>\n<|assistant|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|endoftext|>",
    ),
    "phi3.5": (
        "<|system|>\nBe brief.<|end|>\n"
        "<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\n 2+2? <|end|>\n<|assistant|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|endoftext|>",
    ),
    "phi3-small": (
        "<|endoftext|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n"
        "<|user|>\n 2+2? <|end|>\n<|assistant|>\n",
        "<|endoftext|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n",
    ),
    "phi4-mini": (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yo<|end|><|user|> 2+2? <|end|><|assistant|>",
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yo<|end|><|endoftext|>",
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Yo<|im_end|><|im_start|>user<|im_sep|> 2+2? <|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Yo<|im_end|>",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\n 2+2? <|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>\n",
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\n 2+2? </s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n",
    ),
    "mistral": (
        "<s>[INST] Be brief.\n\nHi [/INST] Yo</s>[INST]  2+2?  [/INST]",
        "<s>[INST] Be brief.\n\nHi [/INST] Yo</s>",
    ),
}


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_built_in_renders_its_golden_strings(name: str) -> None:
    template = ChatTemplate.builtin(name)
    assert (template.render(TALK), template.render(TALK[:3], False)) == GOLDEN[name]


def test_only_3_5_skips_an_empty_system_turn() -> None:
    talk = [{"role": "system", "content": ""}, USER]
    assert ChatTemplate.builtin("phi3.5").render(talk) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert ChatTemplate.builtin("phi3-v2").render(talk).startswith("<|system|>\n<|end|>\n<|user|>")


def test_the_published_3_5_template_equals_ours(shared_data: Path) -> None:
    source = (shared_data / "tokenizer/phi-3/phi-3.5-mini-chat-template.jinja").read_text("utf-8")
    published = ChatTemplate(source, eos_token="<|endoftext|>")
    ours = ChatTemplate.builtin("phi3.5")
    for talk in (TALK, TALK[:3], [USER], [{"role": "system", "content": ""}, USER]):
        for prompt in (True, False):
            assert published.render(talk, prompt) == ours.render(talk, prompt)


def test_the_template_in_the_phi3_file_is_v1(phi3_metadata: dict[str, Any], phi3: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(phi3_metadata, phi3)
    assert template.render(TALK) == ChatTemplate.builtin("phi3-v1").render(TALK)
    assert template.drops_system
    assert phi3.decode(template.encode([USER], phi3), special=True) == "<s><|user|>Hi<|end|><|assistant|>"


def test_smollm2s_own_template(smollm2_metadata: dict[str, Any], smol: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(smollm2_metadata, smol)
    default = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert template.render([USER]) == default + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(TALK) == GOLDEN["chatml"][0] and not template.drops_system
    assert smol.decode(template.encode(TALK, smol), special=True) == GOLDEN["chatml"][0]
    assert template.stop_ids(smol) == {0, 1, 2} and template.stop_strings(smol) == ()


RICH = """\
{%- set ns = namespace(system='none', n=0) %}
{% for message in messages %}
    {%- if message['role'] == 'system' -%}
        {% set ns.system = message.content %}{% continue %}
    {%- endif %}
    {% if loop.first or not loop.last %}[{{ loop.index }}/{{ loop.length }}]{% endif %}
    {%- set ns.n = ns.n + 1 %}
  {% generation %}{{ message | tojson }}{% endgeneration %}
    {{- (message.content.split('2')[-1] | trim | upper) ~ ns.n * 2 }}
{% endfor %}
{%- macro show(x, y='-') %}<{{ x }}{{ y }}>{% endmacro %}
{{ show(ns.system) }}{{ show([1, 'a', {'b': none}] | tojson(indent=2), y='') }}
{% for k, v in messages[0] | dictsort if v != 'x' %}{{ k }}={{ v | replace('e', 'E') | indent(2) }};{% endfor %}
{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ strftime_now('%d %b %Y') }} {{ 'x' if tools is none and bos_token is defined else 'y' }} {{ 7 // 2 ** 1 }}
{{ messages[::-1][0].content }}
"""


def as_hugging_face(source: str, **variables: Any) -> str:
    """The environment that transformers builds for chat templates, without our sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def tojson(x: Any, indent: int | None = None) -> str:
        return json.dumps(x, ensure_ascii=False, indent=indent)

    environment.filters["tojson"] = tojson
    environment.globals["strftime_now"] = NOW.strftime
    source = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    return environment.from_string(source).render(**variables)


@pytest.mark.parametrize("source", [RICH, *(known.source for known in BUILTIN.values())])
def test_the_bounded_sandbox_renders_what_hugging_face_renders(source: str) -> None:
    for prompt in (True, False):
        expected = as_hugging_face(
            source, messages=TALK, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", tools=None
        )
        ours = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(TALK, prompt, now=NOW)
        assert ours == expected


def test_a_message_that_would_be_lost_is_an_error_unless_the_caller_takes_care(phi3: Tokenizer) -> None:
    v1 = ChatTemplate.builtin("phi3-v1")
    with pytest.raises(PhialError, match="no place for the system message") as caught:
        v1.encode(TALK, phi3)
    assert "phi3-v2" in caught.value.hint
    assert v1.lost_messages(TALK) == [0] and v1.lost_messages(TALK[1:]) == []
    assert v1.encode(TALK, phi3, strict=False) == v1.encode(TALK[1:], phi3)
    assert ChatTemplate.builtin("phi3-v2").lost_messages([USER, {"role": "tool", "content": "42"}]) == [1]
    assert v1.lost_messages([{"role": "system", "content": " "}, USER]) == []


def test_which_formats_drop_a_system_message() -> None:
    assert [name for name in BUILTIN if ChatTemplate.builtin(name).drops_system] == ["phi3-v1"]
    refuses = ChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    assert not refuses.drops_system
    with pytest.raises(PhialError, match="no system"):
        refuses.render(TALK)


def test_bos_is_never_doubled() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata())
    for name in ("phi3-v1", "phi3-v2"):
        ids = ChatTemplate.builtin(name).encode([USER], tokenizer)
        assert ids[0] == 1 and ids.count(1) == 1
    assert 1 not in ChatTemplate.builtin("phi3-v2").encode([USER], tokenizer, add_bos=False)


def test_stop_ids_and_strings_cover_every_way_out(phi3: Tokenizer) -> None:
    v2, chatml = ChatTemplate.builtin("phi3-v2"), ChatTemplate.builtin("chatml")
    assert {32000, 32001, 32007} <= v2.stop_ids(phi3) and v2.stop_strings(phi3) == ()
    assert chatml.stop_strings(phi3) == ("<|im_end|>",)
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    assert ChatTemplate.builtin("zephyr").stop_strings(tokenizer) == ("</s>",)


def test_a_model_without_a_template_is_an_error_that_names_a_likely_one() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata())
    with pytest.raises(PhialError, match="no chat template") as caught:
        ChatTemplate.from_gguf({}, tokenizer)
    assert "'phi3-v2'" in caught.value.hint and "chatml" in caught.value.hint
    with pytest.raises(FormatError, match="is int"):
        ChatTemplate.from_gguf({"tokenizer.chat_template": 5}, tokenizer)
    with pytest.raises(ArgumentError, match="'phi9'"):
        ChatTemplate.builtin("phi9")


def test_content_may_come_in_text_parts() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert (
        ChatTemplate.builtin("phi3-v2").render([{"role": "user", "content": parts}])
        == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        ("Hi", "messages is str"),
        ({"role": "user"}, "messages is dict"),
        (["Hi"], "message 1 is str"),
        ([USER, {"content": "x"}], "message 2 has the role None"),
        ([{"role": "end", "content": "x"}], "role 'end'"),
        ([{"role": "user|><|system", "content": "x"}], "role 'user|><|system'"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], "content None"),
        ([{"role": "user", "content": 3}], "content 3"),
        ([{"role": "user", "content": []}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "part that is no text"),
        ([{"role": "user", "content": "x", "<|end|>": "y"}], "field '<|end|>'"),
        ([{"role": "user", "content": "x", "extra": object()}], "extra is object"),
        ([{"role": "user", "content": "x", "extra": {"<|end|>": 1}}], "field '<|end|>'"),
    ],
)
def test_messages_of_another_shape_are_refused(messages: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ChatTemplate.builtin("chatml").render(messages)
    assert said in caught.value.message
