"""Labels by a language model: what is asked, what is kept, what happens when an answer is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import write_tiny

from phial.cli.app import app
from phial.data.annotate import RUBRIC, SCHEMA, Text, annotate, sample
from phial.data.labels import read_labels
from phial.errors import PhialError
from phial.language_model import LanguageModel, Reply


class Rule:
    """Judges by length: one point for each ten characters. Answers "broken" for texts that say so."""

    def __init__(self, name: str = "rule", broken: Sequence[str] = ('{"reason": "cut',)) -> None:
        self.name = name
        self.broken = list(broken)
        self.calls: list[tuple[str, float, int]] = []

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
        assert schema == SCHEMA
        text = messages[-1]["content"].split("-----\n")[1].removesuffix("\n")
        self.calls.append((text, temperature, seed))
        if "unreachable" in text:
            raise PhialError("nobody answers", "start it")
        if "broken" in text:
            return Reply(self.broken[min(seed, len(self.broken) - 1)], 5, 2)
        return Reply(json.dumps({"reason": f"{len(text)} long", "score": min(len(text) // 10, 5)}), 100, 10)


def texts(*contents: str) -> list[Text]:
    return [Text(f"d{number}", content, {}) for number, content in enumerate(contents)]


def test_the_rule_is_a_language_model() -> None:
    assert isinstance(Rule(), LanguageModel)


def test_every_document_gets_the_score_the_model_gave(tmp_path: Path) -> None:
    done = annotate(texts("a", "b" * 25, "c" * 90), Rule(), tmp_path / "answers.jsonl")
    assert [(label.id, label.score) for label in done.labels] == [("d0", 0), ("d1", 2), ("d2", 5)]
    assert (done.prompt_tokens, done.completion_tokens, done.cached, done.failed) == (300, 30, 0, [])


def test_an_engine_labels_through_the_command_and_the_answers_train_a_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's weights are random: what it says means nothing, that it keeps to the schema does."""
    model = write_tiny(tmp_path / "judge.gguf")
    (tmp_path / "rules.txt").write_text("Give a score.")
    documents = [{"text": f"text {number}", "id": f"d{number}"} for number in range(6)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    arguments = ["data", "annotate", str(tmp_path / "docs.jsonl"), "-o", str(tmp_path / "a.jsonl"), "-m", str(model)]
    arguments += ["--rubric", str(tmp_path / "rules.txt"), "--sample", "4", "--threads", "1", "--json"]
    app(arguments, standalone_mode=False)
    first = json.loads(capsys.readouterr().out)
    assert (sum(first["labels"].values()), first["failed"], first["cached"]) == (4, 0, 0)
    assert first["completion_tokens"] > 40
    labels = read_labels(tmp_path / "a.jsonl")
    assert len(labels) == 4 and {label.text for label in labels} <= {document["text"] for document in documents}
    app(arguments, standalone_mode=False)
    second = json.loads(capsys.readouterr().out)
    assert second["labels"] == first["labels"] and (second["cached"], second["completion_tokens"]) == (4, 0)


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    documents, answers = texts("a", "b" * 25), tmp_path / "answers.jsonl"
    first = annotate(documents, Rule(), answers)
    again = Rule()
    second = annotate(documents, again, answers)
    assert again.calls == [] and second.cached == 2
    assert second.labels == first.labels


@pytest.mark.parametrize("change", ["model", "rubric", "text"])
def test_another_model_rubric_or_text_is_asked_anew(tmp_path: Path, change: str) -> None:
    answers = tmp_path / "answers.jsonl"
    annotate(texts("a"), Rule(), answers)
    model = Rule("other" if change == "model" else "rule")
    rubric = RUBRIC + "!" if change == "rubric" else RUBRIC
    annotate(texts("b" if change == "text" else "a"), model, answers, rubric=rubric)
    assert len(model.calls) == 1


def test_a_killed_run_goes_on_after_its_last_whole_answer(tmp_path: Path) -> None:
    documents, answers = texts("a", "b", "c"), tmp_path / "answers.jsonl"
    annotate(documents[:2], Rule(), answers)
    answers.write_bytes(answers.read_bytes()[:-7])  # the second answer was being written
    model = Rule()
    done = annotate(documents, model, answers)
    assert [call[0] for call in model.calls] == ["b", "c"]
    assert done.cached == 1 and len(done.labels) == 3
    assert [json.loads(line)["id"] for line in answers.read_text().splitlines()] == ["d0", "d1", "d2"]


def test_an_answer_outside_the_schema_is_asked_again_with_another_seed(tmp_path: Path) -> None:
    model = Rule(broken=["no JSON", '{"reason": "ok", "score": 4}'])
    done = annotate(texts("broken"), model, tmp_path / "a.jsonl")
    assert done.labels[0].score == 4
    assert [(temperature > 0, seed) for _, temperature, seed in model.calls] == [(False, 0), (True, 1)]
    assert done.completion_tokens == 4, "failed attempts cost tokens too"


@pytest.mark.parametrize(
    "answer",
    ["", "4", '{"score": 4}', '{"reason": "r", "score": 6}', '{"reason": "r", "score": "4"}',
     '{"reason": "r", "score": true}', '{"reason": "r", "score": 3.5}', '{"reason": 1, "score": 3}',
     '{"reason": "r", "score": 3, "more": 1}'],
)  # fmt: skip
def test_failures_are_counted_set_aside_and_tried_again_later(tmp_path: Path, answer: str) -> None:
    answers = tmp_path / "answers.jsonl"
    done = annotate(texts("broken", "b" * 25), Rule(broken=[answer]), answers)
    assert [label.id for label in done.labels] == ["d1"]
    assert [id for id, _ in done.failed] == ["d0"]
    aside = [json.loads(line) for line in (tmp_path / "answers.jsonl.failed").read_text().splitlines()]
    assert [entry["id"] for entry in aside] == ["d0"]
    repaired = annotate(texts("broken"), Rule(broken=['{"reason": "r", "score": 1}']), answers)
    assert [label.score for label in repaired.labels] == [1]
    assert not (tmp_path / "answers.jsonl.failed").exists()


def test_a_model_that_never_answers_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="failed 20 times in a row: nobody answers"):
        annotate(texts(*["unreachable"] * 30), Rule(), tmp_path / "a.jsonl", attempts=1)


def test_a_long_text_is_shown_in_part_and_that_is_said(tmp_path: Path) -> None:
    model = Rule()
    done = annotate(texts("x" * 50, "y" * 10), model, tmp_path / "a.jsonl", max_characters=30)
    assert model.calls[0][0] == "x" * 30
    assert [label.read for label in done.labels] == [30, 10] and done.excerpted == 1


def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("my notes")
    with pytest.raises(PhialError, match="no file of answers"):
        annotate(texts("a"), Rule(), other)
    other.write_text('{"text": "a corpus"}\n')
    with pytest.raises(PhialError, match="notes.txt:1 is no answer"):
        annotate(texts("a"), Rule(), other)
    assert other.read_text() == '{"text": "a corpus"}\n'


def test_progress_tells_of_every_document(tmp_path: Path) -> None:
    seen: list[int] = []
    annotate(texts("a", "broken", "c"), Rule(), tmp_path / "a.jsonl", show=lambda done, text: seen.append(done))
    assert seen == [1, 2, 3]


def test_a_sample_does_not_depend_on_the_order() -> None:
    documents = texts(*(f"text {number}" for number in range(100)))
    chosen = sample(documents, 10)
    assert chosen == sample(documents[::-1], 10)
    assert len({document.id for document in chosen}) == 10
    assert chosen != sample(documents, 10, seed=1)
    assert sample(documents, 1000) and len(sample(documents, 1000)) == 100
