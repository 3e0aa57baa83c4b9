"""Loss masks: found by rendering, equal to transformers' own, ids equal to the engine's and to transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phial.errors import PhialError
from phial.gguf.hf_tokenizer_files import write_hf_tokenizer
from phial.tokenizer.builtin_templates import BUILTIN
from phial.tokenizer.chat import ChatTemplate
from phial.tokenizer.chat_answers import Answers, encode_answers
from phial.tokenizer.tokenizer import Tokenizer

TALK = [
    {"role": "user", "content": "Name a colour, über-short."},
    {"role": "assistant", "content": "Blue, or “grün” 😀."},
    {"role": "user", "content": "Why?\n\nSay it in a line.  "},
    {"role": "assistant", "content": "Because\n\n```py\nx = 1\n```\n"},
]
SYSTEM = {"role": "system", "content": "Answer in few words."}
# The same two formats with the blocks by which transformers finds an assistant's tokens.
SMOL_MARKED = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3_MARKED = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<|user|>\n' + message.content + '<|end|>\n<|assistant|>\n' }}{% else %}{% generation %}"
    "{{ message.content + '<|end|>' }}{% endgeneration %}{{ '\n' }}{% endif %}{% endfor %}"
)


def shown(answers: Answers, tokenizer: Tokenizer) -> str:
    """The text of the tokens, the assistant's in brackets."""
    text, inside = b"", False
    for token, answered in zip(answers.ids, answers.answered, strict=True):
        text += (b"[" if answered else b"]") * (answered != inside) + tokenizer.token_bytes(token)
        inside = answered
    return (text + b"]" * inside).decode()


def hugging_face(metadata: dict[str, Any], folder: Path) -> Any:
    from transformers import AutoTokenizer

    write_hf_tokenizer(folder, metadata, 512)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("model", ["smollm2", "phi3"])
def test_ids_and_masks_are_those_of_transformers(model: str, request: Any, tmp_path: Path) -> None:
    metadata = request.getfixturevalue(f"{model}_metadata")
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    theirs = hugging_face(metadata, tmp_path)
    for talk in (TALK, TALK[:2], [SYSTEM, *TALK]) if model == "smollm2" else (TALK, TALK[:2]):
        ours = encode_answers(template, talk, tokenizer)
        assert ours.ids == template.encode(talk, tokenizer, add_generation_prompt=False)
        assert ours.ids == theirs.apply_chat_template(talk, return_dict=False)
        marked = theirs.apply_chat_template(
            talk,
            chat_template=SMOL_MARKED if model == "smollm2" else PHI3_MARKED,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        assert marked["input_ids"] == ours.ids
        if model == "smollm2":  # through SentencePiece's normaliser, transformers' offsets do not hold
            assert marked["assistant_masks"] == [int(answered) for answered in ours.answered]


def test_ids_of_the_published_phi_3_5_template_are_those_of_transformers(
    shared_data: Path, phi3_metadata: dict[str, Any], phi3: Tokenizer, tmp_path: Path
) -> None:
    source = (shared_data / "tokenizer/phi-3/phi-3.5-mini-chat-template.jinja").read_text("utf-8")
    metadata = phi3_metadata | {"tokenizer.chat_template": source}
    ours = encode_answers(ChatTemplate.from_gguf(metadata, phi3), [SYSTEM, *TALK], phi3, add_bos=False)
    theirs = hugging_face(metadata, tmp_path).apply_chat_template([SYSTEM, *TALK], return_dict=False)
    assert ours.ids == theirs
    assert phi3.decode(ours.ids, special=True).endswith("<|end|><|endoftext|>")
    assert ours.answered[-2:] == [True, False]  # the end of the turn is learnt, the end of the text is not


@pytest.mark.parametrize("model", ["smol", "phi3"])
def test_an_answer_begins_where_the_engines_prompt_ends(model: str, request: Any) -> None:
    tokenizer = request.getfixturevalue(model)
    metadata = request.getfixturevalue({"smol": "smollm2_metadata", "phi3": "phi3_metadata"}[model])
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    whole = encode_answers(template, TALK, tokenizer)
    for number in (1, 3):
        prompt = template.encode(TALK[:number], tokenizer)  # what the engine reads
        assert whole.ids[: len(prompt)] == prompt
        assert not whole.answered[len(prompt) - 1] and whole.answered[len(prompt)]
    assert whole.joined == 0


def test_the_marked_tokens_are_the_answers_and_the_token_that_ends_each(smollm2_metadata: Any, smol: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(smollm2_metadata, smol)
    assert shown(
        encode_answers(template, [SYSTEM, *TALK[:1], {"role": "assistant", "content": "Red."}], smol), smol
    ) == (
        "<|im_start|>system\nAnswer in few words.<|im_end|>\n<|im_start|>user\nName a colour, über-short.<|im_end|>\n"
        "<|im_start|>assistant\n[Red.<|im_end|>]\n"
    )


@pytest.mark.parametrize("name", ["phi3-v1", "phi3-v2", "phi3.5", "phi3-small", "phi4-mini"])
def test_every_phi_format_marks_words_and_end_alone(name: str, phi3_metadata: Any, phi3: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(phi3_metadata | {"tokenizer.chat_template": BUILTIN[name].source}, phi3)
    found = encode_answers(template, TALK, phi3)
    own = [token for token, answered in zip(found.ids, found.answered, strict=True) if answered]
    texts = phi3.decode(own, special=True).split("<|end|>")
    assert [text.strip() for text in texts] == [TALK[1]["content"], TALK[3]["content"].strip(), ""]


def test_a_mistral_answer_has_the_space_the_model_must_write(phi3_metadata: Any, phi3: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(phi3_metadata | {"tokenizer.chat_template": BUILTIN["mistral"].source}, phi3)
    found = encode_answers(template, TALK[:2], phi3)
    assert found.ids[: found.answered.index(True)] == template.encode(TALK[:1], phi3)


FORGED = ["<|im_end|>", "<|im_start|>assistant\n", "assistant\n", "\n", "Red.", "<|end|>", "\U000f0000", " ", "é😀"]


@given(parts=st.lists(st.sampled_from(FORGED), min_size=1, max_size=6).map("".join), role=st.sampled_from("us"))
def test_nothing_a_user_writes_gets_loss_or_takes_any(
    parts: str, role: str, smollm2_metadata: Any, smol: Tokenizer
) -> None:
    template = ChatTemplate.from_gguf(smollm2_metadata, smol)
    talk = [{"role": "system" if role == "s" else "user", "content": parts}]
    talk += [{"role": "user", "content": "a"}] * (role == "s") + [{"role": "assistant", "content": "Red."}]
    found = encode_answers(template, talk, smol)
    own = [token for token, answered in zip(found.ids, found.answered, strict=True) if answered]
    assert own == [*smol.encode("Red."), 2]


def test_an_answer_that_shares_a_token_with_the_prompt_is_counted(smollm2_metadata: Any, smol: Tokenizer) -> None:
    template = ChatTemplate.from_gguf(smollm2_metadata, smol)
    talk = [*TALK[:1], {"role": "assistant", "content": "  Two spaces first."}]
    found = encode_answers(template, talk, smol)
    prompt = template.encode(TALK[:1], smol)
    assert found.joined == 1 and found.ids[: len(prompt)] != prompt  # the newline and a space are one token
    assert found.answered.index(True) == len(prompt)  # which is not the answer's
    assert encode_answers(template, TALK, smol).joined == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for m in messages %}{{ m.content + '<|im_end|>' if m.role == 'user' else m.content }}{% endfor %}",
            "ends",
        ),
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
            "no place",
        ),
        (
            "{% for m in messages %}{{ m.content | replace('Blue', 'B') }}<|im_end|>{% endfor %}",
            "changes a message's text",
        ),
        ("<|im_start|><|im_start|>{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "two BOS"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "otherwise once"),
    ],
)
def test_templates_that_training_cannot_use_are_refused(source: str, said: str, smol: Tokenizer) -> None:
    with pytest.raises(PhialError, match=said):
        encode_answers(ChatTemplate(source), TALK[:2], smol)
