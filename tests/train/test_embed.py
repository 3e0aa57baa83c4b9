"""Tuning an embedder: what it makes is what Llama.embed reads, a stopped run goes on, and what cannot work is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny

from phial import Llama
from phial.cli import console
from phial.cli.app import app
from phial.config_file import checked
from phial.errors import FormatError, PhialError
from phial.eval.embeddings import HeldOut
from phial.gguf.container import read_gguf
from phial.gguf.convert import gguf_to_hf, hf_to_gguf
from phial.gguf.formats import GGMLType
from phial.hf.folder import read_json
from phial.hf.sentence_transformers import POOLING, pooling_type
from phial.train.embed import EmbedConfig, embed, embedder, read
from phial.train.start import Start, open_start
from phial.train.text_batches import PairBatches
from phial.train.text_pairs import TextPair

WORDS = ["the time", "once upon a", "he and she", "in it", "to a", "of the", "she", "upon it", "a he", "and time"]
PAIRS = [TextPair(text, f"{text} {text[::-1]}", (WORDS[i - 1],), f"row {i + 1}") for i, text in enumerate(WORDS)]
SINGLE = [TextPair(text, text, (), f"row {i + 1}") for i, text in enumerate(WORDS)]


def _config(**changes: Any) -> EmbedConfig:
    loop = {"optimizer": {"lr": 1e-3}, **changes.pop("loop", {})}
    return checked(EmbedConfig, {"batch": 5, "micro_batch": 2, "loop": loop, **changes}, "test.toml")


def _quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("embed") / "tiny.gguf", "llama", GGMLType.F32)


def _start(file: Path, config: EmbedConfig) -> Start:
    causal = False if config.bidirectional else None
    return open_start(file, lora=config.lora, causal=causal, chat=False)


def _held() -> HeldOut:
    return HeldOut.of([pair[:3] for pair in PAIRS], [("a", "the", 1), ("in it", "it", 3), ("he", "she", 2)])


def _cosines(ours: Any, theirs: Any) -> np.ndarray[Any, Any]:
    a, b = (np.asarray(v, np.float64) for v in (ours, theirs))
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("last", 3)])
def test_the_engine_embeds_as_the_trained_model_does(pooling: str, number: int, file: Path, tmp_path: Path) -> None:
    """Through the exported folder and its GGUF file, which says how to pool; the prefix is the caller's to give."""
    config = _config(pooling=pooling, query_prefix="in a time: ")
    start = _start(file, config)
    made = embed(config, start, PAIRS, tmp_path / "run", _quiet)
    hf_to_gguf(made["model"], tmp_path / "tuned.gguf", "f32")
    llm = Llama(str(tmp_path / "tuned.gguf"), embedding=True, verbose=False)
    assert llm.pooling_type() == number
    ours = embedder(start.model.eval(), config, start)(WORDS, "query")
    theirs = llm.embed(["in a time: " + text for text in WORDS])
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * float(np.abs(ours).max()))
    assert _cosines(ours, theirs).min() > 0.9999
    assert _cosines(ours, llm.embed(WORDS)).max() < 0.9999  # without the prefix they are others
    gguf_to_hf(tmp_path / "tuned.gguf", tmp_path / "back")
    assert pooling_type(tmp_path / "back") == number


def test_an_adapter_beside_the_file_it_was_trained_on_embeds_as_well(file: Path, tmp_path: Path) -> None:
    config = _config(lora={"rank": 4}, epochs=4.0)
    start = _start(file, config)
    made = embed(config, start, PAIRS, tmp_path / "run", _quiet)
    assert set(made) == {"adapter", "data", "before", "after"}
    llm = Llama(str(file), embedding=True, pooling_type=1, lora_path=made["adapter"], verbose=False)
    ours = embedder(start.model.eval(), config, start)(WORDS, "document")
    assert _cosines(ours, llm.embed(WORDS)).min() > 0.9999
    untuned = Llama(str(file), embedding=True, pooling_type=1, verbose=False)
    assert _cosines(ours, untuned.embed(WORDS)).min() < 0.999
    assert pooling_type(Path(made["adapter"])) == 1


def test_a_folder_says_what_sentence_transformers_must_know(file: Path, tmp_path: Path) -> None:
    config = _config(pooling="last", length=20, document_prefix="the ", batch=10, micro_batch=10)
    made = embed(config, _start(file, config), PAIRS, tmp_path / "run", _quiet)
    folder = Path(made["model"])
    assert [entry["path"] for entry in json.loads((folder / "modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]
    assert read_json(folder / POOLING)["pooling_mode_lasttoken"] is True
    assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == 20
    assert read_json(folder / "config_sentence_transformers.json")["prompts"] == {"query": "", "document": "the "}
    values = read_json(folder / POOLING) | {"pooling_mode_max_tokens": True}
    (folder / POOLING).write_text(json.dumps(values))
    with pytest.raises(FormatError, match="pools by"):
        hf_to_gguf(folder, tmp_path / "no.gguf", "f32")


def test_a_model_that_sees_both_ways_says_so_and_the_engine_refuses_it(file: Path, tmp_path: Path) -> None:
    config, said = _config(bidirectional=True, pooling="first"), list[str]()
    start = _start(file, config)
    made = embed(config, start, PAIRS, tmp_path / "run", said.append)
    assert any("phial's engine cannot run" in text for text in said)
    assert read_json(Path(made["model"]) / "config.json")["is_causal"] is False
    vectors = embedder(start.model.eval(), config, start)(["the a", "the she"], "document")
    # The first token, which else sees nothing but itself, tells texts apart.
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    assert open_start(Path(made["model"]), chat=False).model.config.causal is False
    hf_to_gguf(made["model"], tmp_path / "both.gguf", "f32")
    with read_gguf(tmp_path / "both.gguf") as gguf:
        assert gguf.metadata["llama.attention.causal"] is False
    with pytest.raises(FormatError, match="tokens see those after them"):
        Llama(str(tmp_path / "both.gguf"), embedding=True, verbose=False)


@pytest.mark.parametrize("pairs", [PAIRS, SINGLE], ids=["pairs", "single texts"])
def test_a_stopped_run_goes_on_bit_for_bit(pairs: Sequence[TextPair], file: Path, tmp_path: Path) -> None:
    """With dropout, and with pieces of a step run twice."""
    config = _config(epochs=2.0, dropout=0.2, loop={"checkpoint_every": 1})
    whole = embed(config, _start(file, config), pairs, tmp_path / "whole", _quiet, measure=_held())

    class Stop(Exception):
        pass

    original = PairBatches.micro_batches

    def until_two(self: PairBatches, step: int, rank: int = 0, world: int = 1) -> Any:
        if step == 2:
            raise Stop
        return original(self, step, rank, world)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
        patched.setattr(PairBatches, "micro_batches", until_two)
        embed(config, _start(file, config), pairs, tmp_path / "stopped", _quiet)
    again = embed(config, _start(file, config), pairs, tmp_path / "stopped", _quiet, measure=_held())
    assert again["after"]["step"] == 4 and again["after"]["loss"] == whole["after"]["loss"]
    files = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1] and again["before"] == whole["before"]
    finished = embed(config, _start(file, config), pairs, tmp_path / "stopped", _quiet, measure=_held())
    measured = {name: value for name, value in whole["after"].items() if name.startswith("validation/")}
    assert measured.keys() == {"validation/recall@1", "validation/recall@10", "validation/mrr", "validation/spearman"}
    assert {name: finished["after"][name] for name in measured} == measured
    with pytest.raises(PhialError, match="has data = "):
        embed(config, _start(file, config), pairs[1:], tmp_path / "stopped", _quiet)


def test_single_texts_without_dropout_are_an_error_and_pairs_are_not(file: Path) -> None:
    config = _config(dropout=0.0)
    with pytest.raises(PhialError, match="10 of 11 rows are single texts, and dropout is 0"):
        read([*SINGLE, PAIRS[0]], config, _start(file, config))
    assert read(PAIRS, config, _start(file, config)).single == 0
    config = _config(dropout=0.0, lora={"dropout": 0.1}, query_prefix="it: ")
    found = read(SINGLE, config, _start(file, config))
    assert found.single == 10 and all(np.array_equal(pair.query.ids, pair.positive.ids) for pair in found.pairs)


def test_dropout_is_there_for_single_texts_alone_unless_it_is_asked_for(file: Path, tmp_path: Path) -> None:
    config = _config(lora={"dropout": 0.3})
    start = _start(file, config)
    assert [read(pairs, config, start).dropout for pairs in (PAIRS, SINGLE)] == [0.0, 0.1]
    assert read(PAIRS, _config(dropout=0.2), start).dropout == 0.2
    embed(config, start, SINGLE[:3], tmp_path / "run", _quiet)
    rates = [m.p for m in start.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates.count(0.1) == 3 and set(rates) == {0.1, 0.3}  # that of the adapters is left alone


def test_the_first_token_of_a_causal_model_is_no_vector_of_a_text(file: Path) -> None:
    config = _config(pooling="first")
    with pytest.raises(PhialError, match="the first token sees no other"):
        read(PAIRS, config, _start(file, config))


def test_a_long_text_stops_the_run_or_is_cut_and_counted(file: Path) -> None:
    config = _config(length=4)
    start = _start(file, config)
    with pytest.raises(PhialError, match="row 1 has a text of .* tokens, at most 4"):
        read(PAIRS, config, start)
    found = read(PAIRS, _config(length=4, too_long="cut"), start)
    assert found.cut > 0 and max(len(text.ids) for pair in found.pairs for text in pair.texts) == 4
    with pytest.raises(PhialError, match="length is 9999, the model's context 512"):
        read(PAIRS, _config(length=9999), start)


@pytest.mark.parametrize(
    ("pairs", "batch", "said"),
    [
        (PAIRS[:1], 4, "all documents are the same text"),
        (SINGLE[:1] * 2, 4, "all documents are the same text"),
        ([PAIRS[0], PAIRS[1]._replace(query=PAIRS[0].query)], 4, "all queries are the same text"),
        (PAIRS[:2], 1, "batch is 1 and no pair has negatives"),
        ([*PAIRS[:1], TextPair("\ud800", "p", (), "x.jsonl, row 7")], 4, "x.jsonl, row 7: .*surrogate"),
    ],
)
def test_texts_that_teach_nothing_stop_the_run(pairs: list[TextPair], batch: int, said: str, file: Path) -> None:
    config = _config(batch=batch)
    with pytest.raises(PhialError, match=said):
        read([pair._replace(negatives=()) for pair in pairs], config, _start(file, config))
    negative = [PAIRS[0]._replace(negatives=("no",))]
    assert len(read(negative, config, _start(file, config)).pairs) == 1


def test_equal_texts_share_a_key_whatever_is_before_them(file: Path) -> None:
    config = _config(query_prefix="it ")
    pairs = [TextPair("a", "he", ("a",), "row 1"), TextPair("he", "she", (), "row 2")]
    one, other = read(pairs, config, _start(file, config)).pairs
    assert one.query.key == one.negatives[0].key and len(one.query.ids) > len(one.negatives[0].ids)
    assert one.positive.key == other.query.key != other.positive.key


def test_the_command_tunes_a_file_and_tells_what_was_gained(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": q, "positive": p} for q, p, _, _ in PAIRS]
    for name, part in (("train", rows), ("held", [*rows[:5], {"sentence1": "a", "sentence2": "b", "score": 1}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "embed.toml").write_text("batch = 5\nquery_prefix = 'it: '\n[lora]\nrank = 2\nmerge = true\n")
    paths = [str(tmp_path / name) for name in ("train.jsonl", "held.jsonl", "embed.toml", "run")]
    command = ["train", "embed", str(file), paths[0], "--validation", paths[1], "-c", paths[2], "-o", paths[3]]
    assert console.run(app, [*command, "--json"]) == console.MISUSE
    assert "all graded pairs have the same score" in capsys.readouterr().err
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    assert console.run(app, [*command, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    held = result["held_out"]
    assert (held["queries"], held["documents"], result["data"]["pairs"]) == (5, 5, 10)
    for name in ("recall@1", "recall@10", "mrr"):
        assert held["before"][name][0] == pytest.approx(result["before"][f"validation/{name}"], abs=1e-6)
        assert held["gain"][name][0] == pytest.approx(held["after"][name][0] - held["before"][name][0], abs=2e-6)
    assert "pooling_type=1" in err and "each query begins with 'it: '" in err
    assert console.run(app, command) == 0
    assert "recall@1" in capsys.readouterr().out
