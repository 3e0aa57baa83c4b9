"""Which prompt format a chat uses, and the formats that have a name (Llama's chat_format), as Jinja templates.

Order (phi3-spec §10.4): the named format, else the template in the model file, else llama-2. The named ones follow
their models' cards. A system message is never lost: where a format has no place for one, it stands before the first
user message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phial.engine.llama_arguments import say
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.tokenizer.chat import ChatTemplate
    from phial.tokenizer.tokenizer import Tokenizer

FALLBACK = "llama-2"

# {name: (template, stop strings)}. SYSTEM sets `system` and `turns`, the messages after it.
_SYSTEM = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
)
_LLAMA_2 = (
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] }} [/INST]{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in turns %}{% if message['role'] == 'user' %}[INST] "
    "{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}"
    "{{ message['content'] }} [/INST]{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "{{ '\n\n' + message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system{{ '\n' }}You are a helpful assistant.<|im_end|>"
    "{{ '\n' }}{% endif %}"
) + _CHATML
_ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ '\n' + message['content'] }}</s>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '\n' }}{% endif %}"
)
_VICUNA = (
    "{{ bos_token }}{{ system or 'A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user\\'s questions.' }}"
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_ALPACA = (
    "{{ bos_token }}{% if system %}{{ system + '\n\n' }}{% endif %}{% for message in turns %}"
    "{{ '### Instruction:\n' if message['role'] == 'user' else '### Response:\n' }}{{ message['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in turns %}<start_of_turn>"
    "{{ ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}{{ message['content'] }}<end_of_turn>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model{{ '\n' }}{% endif %}"
)
_OPENCHAT = (
    "{{ bos_token }}{% if system %}{{ system }}<|end_of_turn|>{% endif %}{% for message in turns %}"
    "GPT4 Correct {{ message['role'].title() + ': ' + message['content'] }}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}"
)
NAMED: dict[str, tuple[str, list[str]]] = {
    "alpaca": (_SYSTEM + _ALPACA, ["### Instruction:", "</s>"]),
    "chatml": (_CHATML, ["<|im_end|>"]),
    "gemma": (_SYSTEM + _GEMMA, ["<end_of_turn>"]),
    "llama-2": (_SYSTEM + _LLAMA_2, ["</s>"]),
    "llama-3": (_LLAMA_3, ["<|eot_id|>"]),
    "mistral-instruct": (_SYSTEM + _MISTRAL, ["</s>"]),
    "openchat": (_SYSTEM + _OPENCHAT, ["<|end_of_turn|>"]),
    "qwen": (_QWEN, ["<|im_end|>", "<|endoftext|>"]),
    "vicuna": (_SYSTEM + _VICUNA, ["</s>", "USER:"]),
    "zephyr": (_ZEPHYR, ["</s>"]),
}


def check_format(name: str | None) -> None:
    """Raise ArgumentError for a chat_format we do not have; None is the file's own."""
    if name is not None and name not in NAMED:
        raise ArgumentError(
            f"chat_format={name!r} is unknown",
            f"leave it out to use the template in the model file, or one of: {', '.join(NAMED)}",
        )


def choose_template(name: str | None, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    raise NotImplementedError
