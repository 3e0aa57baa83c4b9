"""Our engine as a LanguageModel, and what a name opens."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from phial.engine.language_model import EngineModel, open_language_model
from phial.engine.llama import Llama
from phial.errors import ContextLimitError, PhialError
from phial.hub.endpoint import EndpointModel
from phial.language_model import LanguageModel, Reply

ASK = [{"role": "system", "content": "Rate."}, {"role": "user", "content": "the time"}]
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 5}, "why": {"type": "string", "maxLength": 9}},
    "required": ["score", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny: dict[str, Path]) -> Iterator[EngineModel]:
    model = EngineModel(Llama(tiny["phi3"], n_ctx=256, n_threads=1, verbose=False))
    yield model
    model.close()


def test_an_engine_is_a_language_model_named_after_its_file(engine: EngineModel) -> None:
    assert isinstance(engine, LanguageModel)
    assert engine.name == "phi3.gguf"
    assert EngineModel(engine.llama, "teacher").name == "teacher"


def test_counts_are_the_tokens_of_the_template_and_of_the_reply(engine: EngineModel) -> None:
    reply = engine.generate(ASK, max_tokens=6)
    prompt = "<s><|system|>\nRate.<|end|>\n<|user|>\nthe time<|end|>\n<|assistant|>\n"
    assert reply.prompt_tokens == len(engine.llama.vocabulary.tokenizer.encode(prompt, special=True))
    assert (reply.completion_tokens, reply.finish_reason) == (6, "length")


def test_the_same_seed_gives_the_same_reply_whatever_was_asked_between(engine: EngineModel) -> None:
    def draw(seed: int) -> str:
        return engine.generate(ASK, max_tokens=20, temperature=1.5, seed=seed).text

    first = draw(1)
    assert len({first, draw(2), draw(3)}) == 3
    engine.generate([{"role": "user", "content": "something else"}], max_tokens=5)
    assert draw(1) == first


def test_a_schema_holds_at_any_temperature(engine: EngineModel) -> None:
    for seed, temperature in enumerate((0.0, 1.0, 5.0)):
        reply = engine.generate(ASK, max_tokens=100, temperature=temperature, seed=seed, schema=SCHEMA)
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        assert reply.finish_reason == "stop"


def test_a_stop_string_ends_the_reply(engine: EngineModel) -> None:
    free = engine.generate(ASK, max_tokens=20).text
    mark = free[3:5]
    reply = engine.generate(ASK, max_tokens=20, stop=[mark])
    assert reply.text == free[: free.index(mark)]
    assert reply.finish_reason == "stop"


def test_threads_get_the_replies_they_would_get_alone(engine: EngineModel) -> None:
    def draw(seed: int) -> Reply:
        return engine.generate(ASK, max_tokens=30, temperature=1.0, seed=seed, schema=SCHEMA)

    alone, together = {seed: draw(seed) for seed in range(6)}, dict[int, Reply]()
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: draw(seed)})) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_pickled_model_gives_the_same_reply(engine: EngineModel) -> None:
    again = pickle.loads(pickle.dumps(engine))
    assert again.name == engine.name
    assert again.generate(ASK, max_tokens=9) == engine.generate(ASK, max_tokens=9)
    again.close()


def test_what_cannot_be_answered_is_an_error(engine: EngineModel) -> None:
    with pytest.raises(ContextLimitError):
        engine.generate([{"role": "user", "content": "the " * 400}], max_tokens=5)
    with pytest.raises(PhialError, match="strin"):
        engine.generate(ASK, max_tokens=5, schema={"type": "strin"})
    with pytest.raises(PhialError, match="no JSON"):
        engine.generate(ASK, max_tokens=5, schema={"enum": {1, 2}})
    with pytest.raises(PhialError, match="max_tokens"):
        engine.generate(ASK, max_tokens=0)


def test_a_name_opens_a_file_or_an_endpoint(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    local = open_language_model(tiny["llama"], n_ctx=64, n_threads=1)
    assert isinstance(local, EngineModel) and local.name == "llama.gguf"
    local.close()
    monkeypatch.delenv("PHIAL_API_KEY", raising=False)
    remote = open_language_model("https://host.example/v1#org/model")
    assert isinstance(remote, EndpointModel)
    assert (remote.name, remote.address) == ("org/model", "https://host.example/v1/chat/completions")
    for wrong in ("https://host.example/v1", "https://host.example/v1#", "no-such-model"):
        with pytest.raises(PhialError):
            open_language_model(wrong)
