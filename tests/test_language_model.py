"""The protocol of language models: what satisfies it, and what a reply holds when its finish is not named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phial.language_model import LanguageModel, Reply


class Echo:
    name = "echo"

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        schema: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        return Reply(messages[-1]["content"][:max_tokens], len(messages), max_tokens)


def test_a_class_with_a_name_and_generate_is_a_language_model_and_others_are_not() -> None:
    model: LanguageModel = Echo()
    assert isinstance(model, LanguageModel)
    assert not isinstance("echo", LanguageModel)


def test_a_reply_unpacks_and_counts_as_finished_unless_it_says_otherwise() -> None:
    reply = Echo().generate([{"role": "user", "content": "hello"}], max_tokens=3)
    assert reply[:3] == ("hel", 1, 3)
    assert reply.finish_reason == "stop"
