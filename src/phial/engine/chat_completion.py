"""Chat answers made from text completions, and which prompt format a chat uses (phi3-spec §10.3, §10.4).

Left out: function calls and tools; asking for them is an error that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from phial.engine.grammar import response_grammar
from phial.engine.llama_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Completion,
    CompletionChunk,
    CompletionLogprobs,
    FinishReason,
)
from phial.errors import ArgumentError

_LATER = "tools come with a later version; response_format holds an answer to a JSON schema"


def refuse_tools(arguments: Mapping[str, Any]) -> None:
    """Raise ArgumentError where tools or functions are asked for."""
    for name in ("functions", "tools"):
        if arguments[name]:
            raise ArgumentError(f"{name} are not supported yet", _LATER)
    for name in ("function_call", "tool_choice"):
        if arguments[name] not in (None, "none"):
            raise ArgumentError(f"{name}={arguments[name]!r} is not supported yet", _LATER)


def chat_grammar(response_format: object, grammar: object) -> object:
    """The one grammar an answer is held to; None for no grammar.

    Raises:
        ArgumentError: there are two, or the format cannot be honoured.
    """
    wanted = response_grammar(response_format)
    if wanted is not None and grammar is not None:
        raise ArgumentError("response_format and grammar are both given", "pass one of them")
    return grammar if wanted is None else wanted


def number_of_logprobs(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """What a completion's `logprobs` must be for a chat's two arguments.

    Raises:
        ArgumentError: top_logprobs without logprobs, which OpenAI refuses as well.
    """
    if not logprobs:
        if top_logprobs:
            raise ArgumentError(f"top_logprobs={top_logprobs!r} without logprobs", "pass logprobs=True too")
        return None
    return top_logprobs or 0


def as_chat(completion: Completion) -> ChatCompletion:
    """A finished completion as a chat answer."""
    choice = completion["choices"][0]
    return {
        "id": "chat" + completion["id"],
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": choice["finish_reason"],
            }
        ],
        "usage": completion["usage"],
    }


def as_chat_chunks(chunks: Iterator[CompletionChunk]) -> Iterator[ChatCompletionChunk]:
    """A streamed completion as chat chunks: the role, the pieces of content, then the finish reason."""
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chat_chunk(chunk, {"role": "assistant"}, None, None)
        choice = chunk["choices"][0]
        reason = choice["finish_reason"]
        delta: ChatDelta = {"content": choice["text"]} if reason is None else {}
        yield _chat_chunk(chunk, delta, _chat_logprobs(choice["logprobs"]), reason)


def _chat_chunk(
    chunk: CompletionChunk, delta: ChatDelta, logprobs: ChatLogprobs | None, reason: FinishReason | None
) -> ChatCompletionChunk:
    return {
        "id": "chat" + chunk["id"],
        "model": chunk["model"],
        "created": chunk["created"],
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}],
    }


def _chat_logprobs(logprobs: CompletionLogprobs | None) -> ChatLogprobs | None:
    if logprobs is None:
        return None
    lists = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return {
        "content": [
            {
                "token": token,
                "bytes": None,
                "logprob": value,
                "top_logprobs": [{"token": t, "logprob": v, "bytes": None} for t, v in (top or {}).items()],
            }
            for token, value, top in lists
        ],
        "refusal": None,
    }
