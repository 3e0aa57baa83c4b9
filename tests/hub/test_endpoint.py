"""A model behind an endpoint: what is sent, what is tried again and what is not, against a server of the test's own."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from phial.errors import ArgumentError, PhialError
from phial.hub.endpoint import EndpointModel
from phial.hub.request import SourceError, TransientError
from phial.language_model import LanguageModel, Reply

ASK = [{"role": "user", "content": "Wer? é"}]
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}


def answer(text: str | None = "hello", reason: str | None = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


@dataclass
class Server:
    """Gives its answers in turn, the last one for ever: (status, body, headers) or seconds to be silent."""

    url: str = ""
    answers: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def next(self) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.paths.append(self.path)
            state.keys.append(self.headers.get("Authorization"))
            state.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            given = state.next()
            if isinstance(given, float):
                time.sleep(given)
                return
            status, body, headers = given
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def model(server: Server, waits: list[float] | None = None, **options: Any) -> EndpointModel:
    waits = [] if waits is None else waits
    return EndpointModel(server.url, "small-1", sleep=waits.append, **options)


def test_the_request_is_openais_and_the_reply_has_the_servers_counts(server: Server) -> None:
    server.answers = [(200, answer("Ich, naïve"), {})]
    endpoint: LanguageModel = model(server)
    assert isinstance(endpoint, LanguageModel) and endpoint.name == "small-1"
    reply = endpoint.generate(ASK, max_tokens=5, temperature=0.5, seed=3, schema=None, stop=["\n"])
    assert reply == Reply("Ich, naïve", 7, 3, "stop")
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests == [
        {"model": "small-1", "messages": ASK, "max_tokens": 5, "temperature": 0.5, "seed": 3, "stream": False,
         "stop": ["\n"]}
    ]  # fmt: skip
    assert server.keys == [None]


def test_a_schema_is_sent_as_openais_response_format(server: Server) -> None:
    server.answers = [(200, answer('{"score": 4}'), {})]
    assert model(server).generate(ASK, max_tokens=5, schema=SCHEMA).text == '{"score": 4}'
    sent = server.requests[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == SCHEMA


def test_a_reply_that_was_cut_says_so_and_is_not_held_to_the_schema(server: Server) -> None:
    server.answers = [(200, answer('{"sco', "length"), {})]
    assert model(server).generate(ASK, max_tokens=5, schema=SCHEMA) == Reply('{"sco', 7, 3, "length")


@pytest.mark.parametrize("text", ["Sure! 4", "{}", "[1]", "3"])
def test_a_reply_against_the_schema_is_asked_for_again_and_then_an_error(server: Server, text: str) -> None:
    server.answers = [(200, answer(text), {}), (200, answer('{"score": 1}'), {})]
    assert model(server).generate(ASK, max_tokens=5, schema=SCHEMA).text == '{"score": 1}'
    server.answers = [(200, answer(text), {})]
    with pytest.raises(PhialError, match="schema"):
        model(server, tries=2).generate(ASK, max_tokens=5, schema=SCHEMA)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 529])
def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(server: Server, status: int) -> None:
    waits: list[float] = []
    server.answers = [(status, b'{"error": {"message": "busy"}}', {})] * 3 + [(200, answer(), {})]
    assert model(server, waits, pause=1.0).generate(ASK, max_tokens=5).text == "hello"
    assert len(server.requests) == 4 and server.requests[0] == server.requests[3]
    for wait, nominal in zip(waits, (1, 2, 4), strict=True):
        assert 0.75 * nominal <= wait <= 1.25 * nominal


def test_the_server_may_name_the_pause_up_to_a_minute(server: Server) -> None:
    waits: list[float] = []
    server.answers = [
        (429, b"", {"Retry-After": "7"}), (503, b"", {"Retry-After": "9999"}), (200, answer(), {}),
    ]  # fmt: skip
    model(server, waits).generate(ASK, max_tokens=5)
    assert waits == [7.0, 60.0]


def test_a_server_that_stays_busy_is_an_error_with_its_own_words(server: Server) -> None:
    server.answers = [(429, b'{"error": {"message": "quota of 3 requests"}}', {})]
    with pytest.raises(TransientError, match=r"429.*quota of 3 requests; 3 attempts"):
        model(server, tries=3).generate(ASK, max_tokens=5)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, b'{"error": {"message": "bad schema", "type": "x"}}', "bad schema"),
        (400, b'{"message": "no such field"}', "no such field"),
        (401, b'{"error": "who are you"}', "who are you"),
        (404, b"<html>nothing here</html>", "nothing here"),
        (422, b"", "no reason given"),
        (307, b"", "307"),
    ],
)
def test_a_refusal_is_an_error_at_once_with_the_servers_words(
    server: Server, status: int, body: bytes, said: str
) -> None:
    server.answers = [(status, body, {"Location": "http://127.0.0.1:1/"})]
    with pytest.raises(SourceError, match=said) as caught:
        model(server).generate(ASK, max_tokens=5)
    assert not isinstance(caught.value, TransientError) and caught.value.hint
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}], "usage": {}}', b"\xff\xfe",
        answer().replace(b"usage", b"costs"), answer()[:-20],
        b'{"choices": [{"message": null}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_asked_for_again_and_then_an_error(server: Server, body: bytes) -> None:
    server.answers = [(200, body, {}), (200, answer(), {})]
    assert model(server).generate(ASK, max_tokens=5).text == "hello"
    server.answers = [(200, body, {})]
    with pytest.raises(TransientError, match="2 attempts"):
        model(server, tries=2).generate(ASK, max_tokens=5)


def test_a_body_that_breaks_off_is_asked_for_again(server: Server) -> None:
    server.answers = [(200, answer(), {"Content-Length": "9999"}), (200, answer(), {})]
    assert model(server, timeout=0.5).generate(ASK, max_tokens=5).text == "hello"


def test_silence_is_a_timeout_and_is_tried_again(server: Server) -> None:
    server.answers = [3.0, (200, answer(), {})]
    started = time.monotonic()
    assert model(server, timeout=0.2).generate(ASK, max_tokens=5).text == "hello"
    server.answers = [3.0]
    with pytest.raises(TransientError, match="does not answer"):
        model(server, timeout=0.2, tries=2).generate(ASK, max_tokens=5)
    assert time.monotonic() - started < 2.5


def test_a_port_where_nobody_listens_is_an_error_after_all_attempts(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(TransientError, match=r"does not answer.*3 attempts"):
        EndpointModel(url, "m", tries=3, sleep=lambda _: None).generate(ASK, max_tokens=5)


@pytest.mark.parametrize("body", [answer(None, refusal="I will not"), answer(None, "content_filter")])
def test_a_reply_without_text_is_an_error(server: Server, body: bytes) -> None:
    server.answers = [(200, body, {})]
    with pytest.raises(SourceError, match="no text"):
        model(server).generate(ASK, max_tokens=5)
    assert len(server.requests) == 1


def test_the_key_comes_from_the_named_variable_and_never_into_a_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "s3cret\n")
    server.answers = [(200, answer(), {}), (401, b'{"error": "no"}', {})]
    endpoint = model(server, api_key_env="A_KEY")
    endpoint.generate(ASK, max_tokens=5)
    assert server.keys == ["Bearer s3cret"]
    with pytest.raises(SourceError) as caught:
        endpoint.generate(ASK, max_tokens=5)
    assert "A_KEY" in str(caught.value) and "s3cret" not in str(caught.value)
    assert b"s3cret" not in pickle.dumps(EndpointModel(server.url, "m", "A_KEY"))
    with pytest.raises(PhialError, match="NO_SUCH_KEY"):
        model(server, api_key_env="NO_SUCH_KEY")


def test_a_password_in_the_address_is_sent_but_not_shown(server: Server) -> None:
    server.answers = [(500, b"", {})]
    endpoint = EndpointModel(server.url.replace("//", "//me:hidden@"), "m", tries=1)
    with pytest.raises(TransientError) as caught:
        endpoint.generate(ASK, max_tokens=5)
    assert "hidden" not in str(caught.value) + endpoint.address
    assert (server.keys[0] or "").startswith("Basic ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ftp://host/v1", "m"), SourceError), (("localhost:8000", "m"), SourceError),
        (("http://host/v1", ""), ArgumentError),
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(arguments: tuple[str, str], error: type[PhialError]) -> None:
    with pytest.raises(error) as caught:
        EndpointModel(*arguments)
    assert caught.value.hint


def test_a_pickled_endpoint_asks_the_same(server: Server) -> None:
    server.answers = [(200, answer(), {})]
    again = pickle.loads(pickle.dumps(EndpointModel(server.url, "small-1")))
    assert again.generate(ASK, max_tokens=5) == Reply("hello", 7, 3, "stop")
    assert server.requests[0]["model"] == "small-1"


def test_threads_may_share_one(server: Server) -> None:
    server.answers = [(200, answer(), {})]
    endpoint, replies = model(server), list[Reply]()
    threads = [threading.Thread(target=lambda: replies.append(endpoint.generate(ASK, max_tokens=5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [Reply("hello", 7, 3, "stop")] * 8
