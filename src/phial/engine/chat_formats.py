"""Which prompt format a chat uses, and the formats only Llama's chat_format knows by name, as Jinja templates.

Order (phi3-spec §10.4): the named format, else the template in the model file, else llama-2, said aloud. The ones
here follow their models' cards and llama_cpp's names; the others are phial.tokenizer.chat's. A system message is never
lost: where a format has no place for one, it stands before the first user message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phial.engine.llama_arguments import say
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.tokenizer.chat import ChatTemplate
    from phial.tokenizer.tokenizer import Tokenizer

FALLBACK = "llama-2"

# Sets `system` and `turns`, the messages after it.
_SYSTEM = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
)
_LLAMA_2 = (
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] }} [/INST]{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system{{ '\n' }}You are a helpful assistant.<|im_end|>"
    "{{ '\n' }}{% endif %}"
) + _CHATML
_VICUNA = (
    "{{ bos_token }}{{ system or 'A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user\\'s questions.' }}"
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
_SOURCES: dict[str, tuple[str, list[str]]] = {  # name: template, stop strings beyond the turn ends
    "alpaca": (_SYSTEM + _ALPACA, ["### Instruction:"]),
    "gemma": (_SYSTEM + _GEMMA, []),
    "llama-2": (_SYSTEM + _LLAMA_2, []),
    "openchat": (_SYSTEM + _OPENCHAT, ["<|end_of_turn|>"]),
    "qwen": (_QWEN, []),
    "vicuna": (_SYSTEM + _VICUNA, ["USER:"]),
}
_ALIASES = {"mistral-instruct": "mistral"}
_BUILTIN = ("chatml", "llama-3", "mistral", "phi3-small", "phi3-v1", "phi3-v2", "phi3.5", "phi4", "phi4-mini", "zephyr")
NAMES = tuple(sorted([*_SOURCES, *_ALIASES, *_BUILTIN]))


@dataclass(frozen=True)
class ChatFormat:
    """A template and what ends an answer made with it."""

    template: ChatTemplate
    stop_strings: list[str]
    stop_ids: frozenset[int]


def check_format(name: str | None) -> None:
    """Raise ArgumentError for a chat_format we do not have; None is the file's own."""
    if name is not None and name not in NAMES:
        raise ArgumentError(
            f"chat_format={name!r} is unknown",
            f"leave it out to use the template in the model file, or one of: {', '.join(NAMES)}",
        )


def choose_format(name: str | None, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatFormat:
    """The format a chat with this model uses; `name` has passed check_format.

    Raises:
        FormatError: the template in the file is none.
    """
    from phial.tokenizer.chat import ChatTemplate  # here: completions need no Jinja

    extra: list[str] = []
    if name is None and "tokenizer.chat_template" not in metadata:
        say(f"the model file has no chat template: using {FALLBACK} (chat_format=... chooses another)")
        name = FALLBACK
    if name is None:
        template = ChatTemplate.from_gguf(metadata, tokenizer)
    elif name in _SOURCES:
        source, extra = _SOURCES[name]
        bos, eos = (
            tokenizer.token_bytes(i).decode() if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id)
        )
        template = ChatTemplate(source, name=name, bos_token=bos, eos_token=eos)
    else:
        template = ChatTemplate.builtin(_ALIASES.get(name, name))
    return ChatFormat(template, [*template.stop_strings(tokenizer), *extra], template.stop_ids(tokenizer))
