"""A language model behind an OpenAI-compatible endpoint: vLLM, llama.cpp's server, phial's own or a service.

One POST to /chat/completions a reply, over the opener of request.py (proxies, certificates). huggingface-hub's client
could do it too, but changed its HTTP library from version to version, and its errors with it. What a later attempt may
cure is tried again: no connection, silence, status 408, 425, 429 and 5xx, and an answer that is none.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phial.errors import ArgumentError, PhialError
from phial.hub.request import SourceError, TransientError, http_opener, shown, split_credentials
from phial.language_model import Reply

TRANSIENT = (408, 425, 429)  # beside 5xx
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the server asks for
LARGEST_REPLY = 64 << 20  # bytes


class _BusyError(TransientError):
    """A status that says not now; `retry_after` seconds where the server names them."""

    def __init__(self, message: str, hint: str, retry_after: float | None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class EndpointModel:
    """A LanguageModel over HTTP. It keeps no state between calls, so threads may share one.

    The key is read from its variable at every call and never kept: a pickled model holds none.

    Attributes:
        name: the model asked for.
        address: where requests go.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        *,
        timeout: float = 300.0,
        tries: int = 6,
        pause: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is asked of the endpoint yet.

        Args:
            base_url: what stands before /chat/completions, "http://localhost:8000/v1" say.
            api_key_env: the environment variable that holds the key; None for endpoints that want none.
            timeout: seconds without a byte after which an attempt has failed.
            tries: how often a request is made at most.
            pause: seconds before the second attempt; doubled each time, a little shorter or longer by chance.

        Raises:
            PhialError: no http(s) address, an empty model name, or the variable is not set.
        """
        self.address, self._secret = split_credentials(base_url.rstrip("/") + "/chat/completions")
        if not model:
            raise ArgumentError(f"no model is named for {shown(base_url)}", "write https://host/v1#model")
        for what, value in (("timeout", timeout), ("tries", tries)):
            if not value > 0:
                raise ArgumentError(f"{what} is {value!r}", "a number above 0")
        self.name = model
        self._key_name = api_key_env
        self._authorization()
        self._timeout, self._tries, self._pause, self._sleep = timeout, tries, pause, sleep

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
        """LanguageModel.generate. With a schema the reply is checked: it is JSON and has the required keys.

        Raises:
            SourceError: the endpoint refuses the request, or none of the attempts was answered (TransientError).
        """
        payload: dict[str, Any] = {
            "model": self.name,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stream": False,
        }
        if stop:
            payload["stop"] = list(stop)
        if schema is not None:
            payload["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": dict(schema)},
            }
        body = json.dumps(payload).encode()
        for attempt in range(1, self._tries + 1):
            try:
                return self._read(self._post(body), schema)
            except TransientError as error:
                if attempt == self._tries:
                    raise TransientError(f"{error.message}; {attempt} attempts", error.hint) from error
                self._sleep(self._pause_after(attempt, error))
        raise AssertionError("unreachable")

    def _authorization(self) -> str | None:
        """The Authorization header: the key, else the address's password. Raises PhialError for an unset variable."""
        if self._key_name is None:
            return self._secret
        key = os.environ.get(self._key_name, "").strip()
        if not key:
            raise PhialError(f"{self._key_name} is not set", f"export {self._key_name}=..., the endpoint's key")
        return f"Bearer {key}"

    def _pause_after(self, attempt: int, error: TransientError) -> float:
        """Seconds to wait: what the server asks for, else longer each time."""
        asked = error.retry_after if isinstance(error, _BusyError) else None
        wanted = asked if asked is not None else self._pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return float(min(wanted, LONGEST_PAUSE))

    def _post(self, body: bytes) -> bytes:
        """The answer's body. Raises SourceError for every status but 200."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "phial"}
        secret = self._authorization()
        if secret is not None:
            headers["Authorization"] = secret
        request = urllib.request.Request(self.address, data=body, headers=headers, method="POST")
        address = shown(self.address)
        try:
            with http_opener().open(request, timeout=self._timeout) as response:
                data: bytes = response.read(LARGEST_REPLY + 1)
                status, retry_after = response.status, response.headers.get("Retry-After")
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", None) or error
            raise TransientError(
                f"{address} does not answer: {reason or type(reason).__name__}",
                f"is the server running, and does it answer within {self._timeout:g} s?",
            ) from error
        if len(data) > LARGEST_REPLY:
            raise SourceError(f"{address} sends more than {LARGEST_REPLY} bytes", "check the address")
        if status != 200:
            raise self._refusal(status, data, retry_after)
        return data

    def _refusal(self, status: int, data: bytes, retry_after: str | None) -> SourceError:
        said = f"{shown(self.address)} answered with status {status}: {_complaint(data)}"
        if status in TRANSIENT or status >= 500:
            seconds = (retry_after or "").strip()
            return _BusyError(
                said, "try again later, with fewer requests at once", float(seconds) if seconds.isdecimal() else None
            )
        if status in (401, 403):
            return SourceError(said, f"check the key in {self._key_name}" if self._key_name else "it wants a key")
        if status in (301, 302, 303, 307, 308):
            return SourceError(said, "give the address it redirects to: a request with a key is sent nowhere else")
        return SourceError(said, f"check the address and the model's name, {self.name!r}")

    def _read(self, data: bytes, schema: Mapping[str, Any] | None) -> Reply:
        """The reply in an answer. Raises TransientError where there is none."""
        address = shown(self.address)
        try:
            answer = json.loads(data)
            choice, usage = answer["choices"][0], answer["usage"]
            message, reason = choice["message"], choice.get("finish_reason")
            text, counts = message.get("content"), (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            hint = "choices with a message, and usage with token counts, as OpenAI's chat completions have"
            raise TransientError(
                f"{address} sent an answer that is none: {data[:100]!r}", f"expected {hint}"
            ) from error
        if not isinstance(text, str) or reason == "content_filter":
            raise SourceError(
                f"{address} gave no text: {message.get('refusal') or reason}",
                "the model or a filter refused the request",
            )
        finish = "length" if reason == "length" else "stop"
        if schema is not None and finish == "stop":
            _check_reply(text, schema, address)
        return Reply(text, *counts, finish)


def _check_reply(text: str, schema: Mapping[str, Any], address: str) -> None:
    """Raise TransientError for a reply that no endpoint which keeps to the schema can give."""
    try:
        value = json.loads(text)
        missing = [key for key in schema.get("required", ()) if isinstance(value, dict) and key not in value]
        wrong = f"lacks {missing}" if missing else ""
        if schema.get("type") == "object" and not isinstance(value, dict):
            wrong = "is no object"
    except ValueError:
        wrong = "is no JSON"
    if wrong:
        raise TransientError(
            f"{address} does not keep to the schema: the reply {wrong}: {text[:100]!r}",
            "use a server that supports response_format json_schema",
        )


def _complaint(data: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        value = json.loads(data)
        error = value.get("error", value)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = data.decode("utf-8", "replace")
    return " ".join(text.split())[:300] or "no reason given"
