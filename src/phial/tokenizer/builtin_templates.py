"""Chat formats known by name (phi3-spec §2.4), each as the Jinja template that a model of its family would carry.

`phi3-v1` is the April 2024 file, faults included: it has no place for a system message. None of these takes tools.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuiltinTemplate:
    """A template, the BOS and EOS texts it was written for, and tokens by which a vocabulary of its family is known."""

    source: str
    bos_token: str
    eos_token: str
    marks: tuple[str, ...] = ()


_PHI3 = ("<|user|>", "<|assistant|>", "<|end|>")
_V1 = """\
{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{{ '<|user|>\\n' + message.content + '<|end|>\\n<|assistant|>\\n' }}{% elif message.role == 'assistant' %}
{{ message.content + '<|end|>\\n' }}{% endif %}{% endfor %}"""
_TURN = """\
{% for message in messages %}{% if message.role in ['system', 'user', 'assistant'] SYSTEM %}
{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endif %}{% endfor %}
{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"""
_SMALL = """\
{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
_PHI4_MINI = """\
{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}
{{ '<|assistant|>' if add_generation_prompt else eos_token }}"""
_PHI4 = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
_CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_LLAMA3 = """\
{{ bos_token }}{% for message in messages %}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
_ZEPHYR = """\
{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
# Mistral's instruct models know no system turn: it is put in front of the first user's words.
_MISTRAL = """\
{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}
{% if message.role == 'system' and loop.first %}{% set ns.system = message.content + '\\n\\n' %}
{% elif message.role == 'user' %}{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}{% set ns.system = '' %}
{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
{% else %}{{ raise_exception('no place for a ' + message.role + ' message here') }}{% endif %}{% endfor %}"""


def _one_line(template: str) -> str:
    """Line ends in the sources above are layout only."""
    return template.replace("\n", "")


BUILTIN: dict[str, BuiltinTemplate] = {
    name: BuiltinTemplate(_one_line(source), bos, eos, marks)
    for name, source, bos, eos, marks in (
        ("phi4-mini", _PHI4_MINI, "<|endoftext|>", "<|endoftext|>", ()),
        ("phi3-v1", _V1, "<s>", "<|endoftext|>", ()),
        ("phi3-v2", _TURN.replace(" SYSTEM", ""), "<s>", "<|endoftext|>", _PHI3),
        ("phi3.5", _TURN.replace("SYSTEM", "and message.content"), "<s>", "<|endoftext|>", ()),
        ("phi3-small", _SMALL, "<|endoftext|>", "<|endoftext|>", ()),
        ("phi4", _PHI4, "<|endoftext|>", "<|im_end|>", ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
        ("chatml", _CHATML, "<|im_start|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>")),
        ("llama-3", _LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|eot_id|>")),
        ("zephyr", _ZEPHYR, "<s>", "</s>", ()),
        ("mistral", _MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]")),
    )
}
