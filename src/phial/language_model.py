"""What a caller needs of a language model: messages in, one reply out; an engine and a remote endpoint look the same.

Teachers and judges come into `data` and `eval` as arguments that satisfy this protocol, so neither knows an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Reply(NamedTuple):
    """One reply and what it cost, in the model's own tokens.

    `finish_reason` is "stop" when the model came to its own end or to a stop string, "length" when `max_tokens`
    cut it off: under a schema such a text is a prefix of the answer and does not parse.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = "stop"


@runtime_checkable
class LanguageModel(Protocol):
    """A chat model that can be held to a JSON schema. `name` says which model answers, for manifests and caches."""

    name: str

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
        """The reply to `messages` (each with `role` and `content`), at most `max_tokens` tokens long.

        Temperature 0 takes the likeliest token. With a `schema` (JSON schema) a reply that was not cut off is a
        document that satisfies it. Raises PhialError for a schema that cannot be followed, a prompt that is too
        long and an endpoint that does not answer.
        """
        ...
