"""Conversations to prompts: the model's own Jinja template or a built-in one, with users' text kept plain (§2.4).

A user's text can never become a control token. The template is rendered twice: once as it is, once with every visible
character of message i replaced by a private character of its own. Where the two texts line up, the second says which
characters of the first are the template's; only those are searched for control tokens. Where they do not (the template
upper-cased or quoted a message, or looked into it), the messages are rendered once more with the outer characters of
all control tokens replaced and put back as plain text afterwards. Leaves out tools and images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from phial.errors import ArgumentError, FormatError, PhialError
from phial.tokenizer.builtin_templates import BUILTIN
from phial.tokenizer.messages import Message, checked_messages, free_characters, mapped, text_size
from phial.tokenizer.sandbox import BoundedTemplate
from phial.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Message"]

# Beginnings of a turn: a model that writes one has left its own turn (phi3-spec §2.4, stop on 32001).
_TURN_STARTS = ("<|assistant|>", "<|user|>", "<|system|>", "<|im_start|>", "<|start_header_id|>")
_TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "</s>")
_ROOM_PER_MESSAGE = 256  # characters of the sandbox's budget that every message adds, however short


class Rendering(NamedTuple):
    """A prompt twice: as text, and with each message's visible characters replaced by a private one of its own."""

    messages: Sequence[Message]
    masks: Sequence[str]
    masked: str
    text: str

    @property
    def lost(self) -> list[int]:
        """Indices of the messages that leave no trace."""
        present = set(self.masked)
        held = enumerate(self.messages)
        return [i for i, message in held if (message["content"] or "").strip() and self.masks[i] not in present]

    def check_all_placed(self) -> None:
        """Raises PhialError where a message is lost."""
        if lost := self.lost:
            raise PhialError(
                f"the chat template has no place for the {self.messages[lost[0]]['role']} message "
                f"(number {lost[0] + 1})",
                "put its text into the first user message, or choose another built-in template, such as 'phi3-v2'",
            )

    def segments(self) -> list[tuple[str, bool]] | None:
        """The text cut into the template's own parts (True) and messages' (False); None where the two renderings differ
        in more than the masks."""
        segments = _segments(self.text, self.masked, self.masks)
        mirror = _segments(self.masked, self.masked, self.masks)
        same = all(a == b for (a, trusted), (b, _) in zip(segments, mirror, strict=True) if trusted)
        return segments if same else None


class ChatTemplate:
    """One chat format.

    Attributes:
        source: the Jinja template.
        name: the built-in's name, or "model" for the model's own.
        bos_token, eos_token: their texts, "" for none.
    """

    def __init__(self, source: str, *, name: str = "model", bos_token: str = "", eos_token: str = "") -> None:
        self.source, self.name, self.bos_token, self.eos_token = source, name, bos_token, eos_token
        self._template = BoundedTemplate(source)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template a GGUF file carries.

        Raises:
            PhialError: it carries none; the hint names the built-in one that its tokens suggest.
            FormatError: it is no text or no template.
        """
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            likely = [name for name, known in BUILTIN.items() if known.marks and _has(tokenizer, known.marks)]
            hint = f"its tokens look like {likely[0]!r}; " if likely else ""
            raise PhialError("the model carries no chat template", f"{hint}choose one of {', '.join(BUILTIN)}")
        if not isinstance(source, str):
            raise FormatError(f"tokenizer.chat_template is {type(source).__name__}, not a string")
        return cls(source, bos_token=_text(tokenizer, tokenizer.bos_id), eos_token=_text(tokenizer, tokenizer.eos_id))

    @classmethod
    def builtin(cls, name: str) -> ChatTemplate:
        """A format by name. ArgumentError, listing the names, for an unknown one."""
        if name not in BUILTIN:
            raise ArgumentError(f"no chat template is called {name!r}", f"there are {', '.join(BUILTIN)}")
        known = BUILTIN[name]
        return cls(known.source, name=name, bos_token=known.bos_token, eos_token=known.eos_token)

    @cached_property
    def drops_system(self) -> bool:
        """Whether a system message would vanish without a word (one that the template refuses aloud does not)."""
        talk = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        try:
            return bool(self.lost_messages(talk))
        except PhialError:
            return False

    def lost_messages(self, messages: Sequence[Message]) -> list[int]:
        """Indices of the messages that leave no trace in the prompt. Raises as render()."""
        return self.rendering(messages, True, now=datetime.now()).lost

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, *, now: datetime | None = None
    ) -> str:
        """The prompt as text, as Hugging Face would render it; encode() is the way to ids. `now` is for strftime_now.

        Raises:
            ArgumentError: a message of unknown shape.
            PhialError: the template refused or failed.
        """
        talk = checked_messages(messages)
        return self._render(talk, add_generation_prompt, now or datetime.now(), talk)

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool = True,
        *,
        add_bos: bool | None = None,
        strict: bool = True,
        now: datetime | None = None,
    ) -> list[int]:
        """Prompt ids; nothing in a message's content becomes a control token.

        Args:
            add_bos: None for the tokenizer's rule; never a second BOS after the template's own.
            strict: raise if a message would be lost. With False the caller tells the user (lost_messages()).

        Raises:
            ArgumentError: a message of unknown shape, or text the vocabulary cannot spell.
            PhialError: the template refused, failed or, if `strict`, has no place for one of the messages.
        """
        talk = checked_messages(messages)
        when = now or datetime.now()
        found = self.rendering(talk, add_generation_prompt, now=when)
        if strict:
            found.check_all_placed()
        segments = found.segments()
        if segments is None:
            segments = self._escaped(talk, tokenizer, found, add_generation_prompt, when)
        return tokenizer.encode_segments(segments, add_bos=add_bos)

    def rendering(
        self, messages: Sequence[Message], add_generation_prompt: bool, *, now: datetime, masks: Sequence[str] = ()
    ) -> Rendering:
        """The prompt with what is known of where its characters come from. Raises as render().

        masks: private characters for the messages and more, where two renderings are to be compared.
        """
        talk = checked_messages(messages)
        masks = list(masks)[: len(talk)] or self._masks(talk)
        masked = self._render(self._masked(talk, masks), add_generation_prompt, now, talk)
        return Rendering(talk, masks, masked, self._render(talk, add_generation_prompt, now, talk))

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's, and those that would open another turn."""
        return tokenizer.eog_ids | {i for text, i in tokenizer.special_tokens.items() if text in _TURN_STARTS}

    def stop_strings(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Turn ends of this format that are ordinary text to the tokenizer, so no id stops on them."""
        ends = [text for text in _TURN_ENDS if text in self.source]
        if "eos_token" in self.source and self.eos_token:
            ends.append(self.eos_token)
        return tuple(dict.fromkeys(text for text in ends if text not in tokenizer.special_tokens))

    def _render(self, variant: Sequence[Message], prompt: bool, now: datetime, talk: Sequence[Message]) -> str:
        variables = {
            "messages": variant,
            "add_generation_prompt": prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "tools": None,
            "documents": None,
        }
        return self._template.render(variables, input_size=text_size(talk) + _ROOM_PER_MESSAGE * len(talk), now=now)

    def _masks(self, talk: Sequence[Message]) -> list[str]:
        return free_characters(len(talk), [self.source, self.bos_token, self.eos_token], talk)

    @staticmethod
    def _masked(talk: Sequence[Message], masks: Sequence[str]) -> list[Message]:
        """Every visible character of message i replaced by masks[i]; white space stays, for templates that trim."""
        return [mapped(message, _mask_with(mask)) for message, mask in zip(talk, masks, strict=True)]

    def _escaped(
        self,
        talk: Sequence[Message],
        tokenizer: Tokenizer,
        found: Rendering,
        prompt: bool,
        now: datetime,
    ) -> list[tuple[str, bool]]:
        """Segments of a rendering whose messages hold no first or last character of any special token."""
        outer = sorted({c for text in tokenizer.special_tokens for c in (text[0], text[-1])})
        substitutes = free_characters(len(outer), [self.source, self.bos_token, self.eos_token], talk)
        table = str.maketrans(dict(zip(outer, substitutes, strict=True)))
        text = self._render([mapped(message, lambda s: s.translate(table)) for message in talk], prompt, now, talk)
        put_back = str.maketrans(dict(zip(substitutes, outer, strict=True)))
        segments = [(part.translate(put_back), trusted) for part, trusted in _segments(text, text, substitutes)]
        if tokenizer.special_ids(segments) != tokenizer.special_ids(_segments(found.masked, found.masked, found.masks)):
            raise PhialError(
                "the chat template builds control tokens from a message's text", "choose a built-in template"
            )
        return segments


def _segments(text: str, masked: str, masks: Sequence[str]) -> list[tuple[str, bool]]:
    """`text` cut where `masked` changes between the template's own characters (True) and masks (False).

    White space between two masks goes with them, as it was theirs or makes no difference.
    """
    if not masks:
        return [(text, True)]
    mask = f"[{''.join(masks)}]"
    segments, done = [], 0
    for found in re.finditer(rf"{mask}(?:(?:{mask}|\s)*{mask})?", masked):
        segments += [(text[done : found.start()], True), (text[found.start() : found.end()], False)]
        done = found.end()
    return [*segments, (text[done:], True)]


def _mask_with(mask: str) -> Callable[[str], str]:
    return lambda text: re.sub(r"\S", mask, text)


def _has(tokenizer: Tokenizer, marks: Iterable[str]) -> bool:
    return all(mark in tokenizer.special_tokens for mark in marks)


def _text(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")
