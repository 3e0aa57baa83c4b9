"""Fine-tuning on chats: the loss is on the answers and nothing else, packing changes nothing, a stopped run goes on."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import write_tiny

from phial import Llama
from phial.cli import console
from phial.cli.app import app
from phial.config_file import checked
from phial.errors import PhialError
from phial.gguf.formats import GGMLType
from phial.train.chat_packing import Example, PackedChats, best_fit, example_of
from phial.train.chats import Chat
from phial.train.loop import train
from phial.train.objective import IGNORED, NextToken
from phial.train.sft import SftConfig, batches_of, encode_chat, encode_chats, held_out, sft
from phial.train.start import Start, open_start


def _chat(*texts: str, system: str = "") -> Chat:
    """A conversation of these texts, the user's first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return Chat([{"role": "system", "content": system}] * bool(system) + turns, "chats.jsonl, row 1")


CHATS = [
    _chat("he?", "a time"),
    _chat("once?", "the", "and?", "she, in the time <|end|>", system="in a"),
    _chat("upon a time", "to the", "it", "<|assistant|>\nof"),
    _chat("a", "he"),
]


def _config(**changes: Any) -> SftConfig:
    return checked(SftConfig, {"sequence": 96, "batch": 2, "micro_batch": 1, **changes}, "test.toml")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("sft") / "tiny.gguf", "phi3", GGMLType.F32)


@pytest.fixture(scope="module")
def start(file: Path) -> Start:
    torch.set_num_threads(1)
    return open_start(file)


def _answer_loss(start: Start, chat: Chat) -> tuple[float, int]:
    """-log p of the answers' tokens, each chat alone, from prompts as the engine has them: no mask, no packing."""
    total, count, ids = 0.0, 0, start.template.encode(chat.messages, start.tokenizer, add_generation_prompt=False)
    with torch.no_grad():
        logs = start.model(torch.tensor([ids]))[0].log_softmax(-1)
    for number, message in enumerate(chat.messages):
        if message["role"] == "assistant":
            first = len(start.template.encode(chat.messages[:number], start.tokenizer))
            answer = [
                *start.tokenizer.encode(message["content"], add_bos=False),
                start.tokenizer.special_tokens["<|end|>"],
            ]
            for place, token in enumerate(answer, first):
                assert ids[place] == token
                total, count = total - float(logs[place - 1, token]), count + 1
    return total, count


def test_the_loss_of_packed_chats_is_that_of_each_answer_alone(start: Start) -> None:
    data = batches_of(encode_chats(CHATS, start, _config()), _config(), 96)
    objective, total, count = NextToken(), 0.0, 0
    with torch.no_grad():
        for step in range(data.steps):
            for batch in data.micro_batches(step):
                total += float(objective(start.model, batch).total)
                count += objective.count(batch)
    alone = [_answer_loss(start, chat) for chat in CHATS]
    assert count == sum(n for _, n in alone)
    assert total == pytest.approx(sum(nll for nll, _ in alone), rel=1e-5)
    assert data.rows < len(CHATS)  # some share a row


def test_the_mean_over_held_out_answers_is_by_tokens(start: Start) -> None:
    with torch.no_grad():
        encoded = {
            "first": encode_chats(CHATS[:1], start, _config()),
            "rest": encode_chats(CHATS[1:], start, _config()),
        }
        found = held_out(encoded, 96, 2)(start.model)
        assert held_out({"first": encoded["first"]}, 96, 2)(start.model).keys() == {
            "validation/loss",
            "validation/perplexity",
        }
    alone = [_answer_loss(start, chat) for chat in CHATS]
    for name, chats in {"validation/first": alone[:1], "validation/rest": alone[1:], "validation": alone}.items():
        mean = sum(nll for nll, _ in chats) / sum(n for _, n in chats)
        assert found.pop(f"{name}/loss") == pytest.approx(mean, rel=1e-5)
        assert found.pop(f"{name}/perplexity") == pytest.approx(np.exp(mean), rel=1e-5)
    assert not found


def test_before_and_after_are_measured_in_the_same_precision(start: Start, tmp_path: Path) -> None:
    """With a rate of nothing the model stays what it was."""
    loop = {"precision": "bf16", "clip": 1e-9, "optimizer": {"lr": 1e-30}}
    config = _config(loop=loop)
    made = sft(config, open_start(start.path), CHATS, {"held": CHATS[:2]}, tmp_path / "run", _quiet)
    assert made["after"]["validation/loss"] == made["before"]["validation/loss"]


def test_an_example_ends_with_its_last_target() -> None:
    example = example_of([5, 6, 7, 8, 9], [False, False, True, True, False])
    assert example.tokens.tolist() == [5, 6, 7]
    assert example.targets.tolist() == [IGNORED, 7, 8]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(0, 3), st.sampled_from([1.0, 2.0, 2.5]))
def test_every_epoch_has_every_chat_once_and_no_row_overflows(lengths: list[int], seed: int, epochs: float) -> None:
    examples = [Example(np.full(n, i, np.int32), np.full(n, i, np.int32)) for i, n in enumerate(lengths)]
    data = PackedChats(examples, 20, 3, 2, epochs=epochs, seed=seed)
    rows = [data.row(visit) for visit in range(data.rows)]
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    seen = [i for row in rows for i in row]
    assert sorted(seen[: len(lengths)]) == list(range(len(lengths)))
    assert sorted(seen[len(lengths) : 2 * len(lengths)]) == list(range(len(lengths)) if epochs > 1 else [])
    packed = [batch for step in range(data.steps) for batch in data.micro_batches(step)]
    assert sum(int((batch["targets"] != IGNORED).sum()) for batch in packed) == sum(lengths[i] for i in seen)
    again = pickle.loads(pickle.dumps(data))  # as workers have it
    for step in range(data.steps):
        shares = [batch for rank in range(2) for batch in again.micro_batches(step, rank, 2)]
        whole = data.micro_batches(step)
        assert _inputs(shares) == _inputs(whole)


def _inputs(batches: Any) -> list[list[int]]:
    """The targets of each row, those that are none left out."""
    return [[t for t in row if t != IGNORED] for batch in batches for row in batch["targets"].tolist()]


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    assert best_fit([6, 8, 4, 2], range(4), 10) == [[0, 2], [1, 3]]
    assert best_fit([6, 7, 3], range(3), 10) == [[0], [1, 2]]


def test_a_long_chat_stops_the_run_or_loses_its_last_turns(start: Start) -> None:
    long = _chat("a", "he", "it?", "in " * 30)
    size = len(encode_chat(long, start, _config()).ids)
    with pytest.raises(PhialError, match=rf"chats.jsonl, row 1 has {size - 1} tokens, a row 40"):
        encode_chats([long], start, _config(sequence=40))
    kept = encode_chats([long, _chat("in " * 50, "a"), CHATS[3]], start, _config(sequence=40, too_long="turns"))
    assert kept.shortened == [("chats.jsonl, row 1", 2)] and kept.left_out == ["chats.jsonl, row 1"]
    first, second = kept.examples
    assert first.tokens.tolist() == second.tokens.tolist()  # what is left of the first is the last one
    with pytest.raises(PhialError, match="none of 1 chats fits into 4 tokens"):
        encode_chats([long], start, _config(sequence=4, too_long="turns"))


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Chat([{"role": "user", "content": "a"}], "f, row 3"), "f, row 3 has no token with loss"),
        (
            Chat([{"role": "user", "content": ""}, {"role": "bot", "content": "a"}], "f, row 3"),
            "f, row 3: message 2 has",
        ),
    ],
)
def test_a_chat_that_teaches_nothing_is_refused(chat: Chat, said: str, start: Start) -> None:
    with pytest.raises(PhialError, match=said):
        encode_chats([chat], start, _config())


def test_a_template_that_drops_a_turn_is_refused(file: Path) -> None:
    old = open_start(file, template="phi3-v1", weights=False)
    with pytest.raises(PhialError, match="row 1: the chat template has no place for the system message"):
        encode_chats(CHATS[1:2], old, _config())


def test_a_batch_without_targets_stops_the_run(start: Start, tmp_path: Path) -> None:
    class Masked:
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> list[Any]:
            batch = batches_of(encode_chats(CHATS, start, _config()), _config(), 96).micro_batches(0)[0]
            return [{**batch, "targets": torch.full_like(batch["targets"], IGNORED)}]

    with pytest.raises(PhialError, match="step 1 has no targets"):
        train(open_start(start.path).model, Masked(), NextToken(), _config().loop, tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop": {"steps": 3}}, "steps follow from the epochs"),
        ({"batches": 3}, "batches: is not known"),
        ({"loop": {"optimizer": {"rate": 1}}}, "loop.optimizer.rate: is not known"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PhialError, match=said):
        _config(**changes)


def test_a_configuration_keeps_the_rates_for_tuning_where_it_has_none() -> None:
    loop = _config(loop={"clip": 0.5, "optimizer": {"beta2": 0.99}}).loop
    assert (loop.clip, loop.optimizer.beta2, loop.optimizer.lr) == (0.5, 0.99, _config().loop.optimizer.lr)
    assert _config().loop.optimizer.lr < 1e-4 and loop.schedule == _config().loop.schedule


def test_more_than_the_models_context_is_refused(start: Start) -> None:
    with pytest.raises(PhialError, match="sequence is 4096, the model's context 512"):
        encode_chats(CHATS, start, _config(sequence=4096))


def _quiet(text: str) -> None:
    pass


def test_a_stopped_run_goes_on_bit_for_bit(file: Path, tmp_path: Path) -> None:
    config = _config(epochs=3, batch=1, loop={"optimizer": {"lr": 1e-3}, "checkpoint_every": 1})
    whole = sft(config, open_start(file), CHATS, {"held": CHATS[:2]}, tmp_path / "whole", _quiet)

    class Stop(Exception):
        pass

    start = open_start(file)
    encoded = encode_chats(CHATS, start, config)
    data = batches_of(encoded, config, 96)
    assert data.steps >= 3
    original = PackedChats.micro_batches

    def until_two(self: PackedChats, step: int, rank: int = 0, world: int = 1) -> Any:
        if step == 2:
            raise Stop
        return original(self, step, rank, world)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
        patched.setattr(PackedChats, "micro_batches", until_two)
        sft(config, start, CHATS, {"held": CHATS[:2]}, tmp_path / "stopped", _quiet)
    assert not (tmp_path / "stopped/model").exists()
    again = sft(config, open_start(file), CHATS, {"held": CHATS[:2]}, tmp_path / "stopped", _quiet)
    assert again["after"]["loss"] == whole["after"]["loss"] and again["before"] == whole["before"]
    files = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]
    with pytest.raises(PhialError, match="has data = "):
        sft(config, open_start(file), CHATS[:3], {"held": CHATS[:2]}, tmp_path / "stopped", _quiet)
    other = write_tiny(tmp_path / "other.gguf", "phi3", GGMLType.F32, seed=2)
    with pytest.raises(PhialError, match="has start = "):  # it would be written as tuned, and was never read
        sft(config, open_start(other), CHATS, {"held": CHATS[:2]}, tmp_path / "stopped", _quiet)


def test_the_commands_tune_a_file_and_phial_runs_the_result(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    talk = [{"role": "user", "content": "once?"}, {"role": "assistant", "content": "upon a time"}]
    chats.write_text(json.dumps({"messages": talk}) + "\n", "utf-8")
    (tmp_path / "sft.toml").write_text("epochs = 40\nbatch = 1\n[loop.optimizer]\nlr = 1e-3\n", "utf-8")
    arguments = ["train", "sft", str(file), str(chats), "--config", str(tmp_path / "sft.toml")]
    assert console.run(app, [*arguments, "--show-masks"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "<s><|user|> once?<|end|><|assistant|>⟦ upon a time<|end|>⟧\n\n"
    assert "all: 1 chats, 16 tokens, 9 with loss" in shown.err
    run = tmp_path / "run"
    assert console.run(app, [*arguments, "--validation", str(chats), "-o", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert "validation: 1 chats are trained on too" in shown.err
    result = json.loads(shown.out)
    assert result["after"]["validation/loss"] < 0.1 < result["before"]["validation/loss"]
    assert console.run(app, ["convert", str(run / "model"), str(tmp_path / "out.gguf"), "--type", "f32"]) == 0
    llm = Llama(str(tmp_path / "out.gguf"), n_ctx=64, verbose=False)
    answer = llm.create_chat_completion(talk[:1], temperature=0, max_tokens=20)["choices"][0]
    assert (answer["message"]["content"].strip(), answer["finish_reason"]) == ("upon a time", "stop")
    assert console.run(app, arguments) == console.MISUSE
