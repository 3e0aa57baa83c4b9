"""Preference pairs: how answers are ranked, what makes a pair, a judge's bias; a stopped run ends as any other."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from phial.data.preference import PreferConfig, plan, prefer
from phial.data.preference_prompts import Pair, prompt_of
from phial.errors import ArgumentError, PhialError
from phial.language_model import Reply

ONE_WORD = [{"check": "words", "least": 1, "most": 1}]


class Scripted:
    """Answers a prompt with one of its answers after the other; a judge of two, where it is asked for JSON."""

    name = "scripted"

    def __init__(self, answers: Mapping[str, Sequence[str]], verdict: Any = None) -> None:
        self.answers, self.verdict, self.asked = answers, verdict, 0
        self._given: dict[str, list[int]] = {}

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
        self.asked += 1
        if schema is not None:
            shown = json.JSONDecoder().raw_decode(messages[-1]["content"])[0]
            said = self.verdict(shown["first answer"], shown["second answer"])
            return Reply(said if said[:1] == "?" else json.dumps({"better": said}), 20, 5)
        text = messages[-1]["content"]
        seeds = self._given.setdefault(text, [])
        seeds.append(seed)
        answer = self.answers[text][len(seeds) - 1]
        cut = answer.endswith("…")
        return Reply(answer, 10, len(answer.split()), "length" if cut else "stop")


def config(**settings: Any) -> PreferConfig:
    return PreferConfig.model_validate({"prompts": ["rows"], "samples": 3} | settings)


def prompts(*texts: str, checks: Any = ONE_WORD, **more: Any) -> list[Any]:
    return [prompt_of({"prompt": text, "checks": checks, **more}, text) for text in texts]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_answer_is_paired_with_the_worst_and_every_prompt_without_a_pair_is_counted(tmp_path: Path) -> None:
    model = Scripted({
        "good": ["one two three", "Apple", "two words"],
        "bad": ["two words", "a b", "c d"],
        "fine": ["Pear", "Plum", "Fig"],
        "same": ["Pear", "Pear", "Pear"],
        "cut": ["Pear…", "", "and so on and on…"],
    })  # fmt: skip
    report = prefer(config(), tmp_path, model=model, rows=prompts("good", "bad", "fine", "same", "cut"))
    (pair,) = lines(tmp_path / "pairs.jsonl")
    assert pair["prompt"] == [{"role": "user", "content": "good"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "Apple"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "two words"}]  # of both bad ones the one as short
    assert (pair["scores"], pair["faults"], pair["source"]) == ([1, 0], ["words: 2 words"], "sampled")
    row = report["by_kind"]["file"]
    assert row["no_pair"] == {"all_the_same": 1, "no_margin": 1, "none_good": 2}
    assert (row["prompts"], row["answers"], row["passed"], row["solved"], row["cut_off"]) == (5, 15, 7, 3, 2)
    assert [chat["messages"][-1]["content"] for chat in lines(tmp_path / "chats.jsonl")] == ["Apple", "Pear", "Pear"]
    assert report == json.loads((tmp_path / "report.json").read_text())
    answers = lines(tmp_path / "answers.jsonl")
    assert [a["faults"] for a in answers[-3:]] == [["cut off"], ["empty"], ["cut off"]]


def test_where_no_answer_is_good_the_written_one_is_chosen_if_that_is_wanted(tmp_path: Path) -> None:
    model = Scripted({"bad": ["two words", "a b", "c d e"]})
    rows = prompts("bad", answer="Right", rejected="Not right")
    assert prefer(config(), tmp_path / "never", model=model, rows=rows)["pairs"] == 0
    prefer(config(written=True), tmp_path / "out", model=Scripted(model.answers), rows=rows)
    (pair,) = lines(tmp_path / "out/pairs.jsonl")
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["Right", "two words"]
    assert pair["source"] == "written"
    prefer(config(samples=0), tmp_path / "none", rows=rows)
    (pair,) = lines(tmp_path / "none/pairs.jsonl")
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["Right", "Not right"]
    wrong = prefer(config(samples=0), tmp_path / "wrong", rows=prompts("bad", answer="Not right", rejected="x"))
    assert wrong["no_pair"] == {"written_is_wrong": 1}


def test_rules_and_a_judge_rank_what_has_no_checks(tmp_path: Path) -> None:
    answers = {"Why?": ["short one", "a much longer answer than that one here", "so so so so so so so so"]}
    rules = [{"check": "words", "most": 5}, {"check": "repetition", "most": 0.2}]
    prefer(config(rules=rules), tmp_path / "rules", model=Scripted(answers), rows=prompts("Why?", checks=[]))
    (pair,) = lines(tmp_path / "rules/pairs.jsonl")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (answers["Why?"][0], answers["Why?"][2])
    assert pair["faults"] == ["rule words: 8 words", "rule repetition: 83 % repeated"]

    judge = Scripted({}, lambda first, second: "first" if len(first) > len(second) else "second")
    rows = prompts("Why?", checks=[])
    report = prefer(config(), tmp_path / "judge", model=Scripted(answers), judge=judge, rows=rows)
    (pair,) = lines(tmp_path / "judge/pairs.jsonl")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (answers["Why?"][1], answers["Why?"][0])
    assert pair["scores"] == [1, 0]
    assert judge.asked == 6  # three answers, each two in both orders
    position = report["position"]
    assert (position["first_place"], position["agreement_of_orders"], position["position_bias"]) == (0.5, 1.0, False)


def test_a_judge_that_prefers_a_place_is_found_out_and_decides_nothing(tmp_path: Path) -> None:
    answers = {f"{n}?": [f"a {n}", f"bb {n}", f"ccc {n}"] for n in range(4)}
    rows = prompts(*answers, checks=[])
    biased = Scripted({}, lambda first, second: "first")
    report = prefer(config(least=0.5), tmp_path, model=Scripted(answers), judge=biased, rows=rows)
    position = report["position"]
    assert (position["first_place"], position["position_bias"]) == (1.0, True)
    assert position["agreement_of_orders"] == 0.0
    assert report["no_pair"] == {"no_margin": 4}
    noisy = Scripted({}, lambda first, second: "?" if "bb" in first else "same")
    report = prefer(config(least=0.5), tmp_path / "noisy", model=Scripted(answers), judge=noisy, rows=rows)
    assert (report["position"]["unreadable"], report["position"]["comparisons"]) == (8, 24)


def test_given_pairs_are_kept_once_and_only_where_something_can_be_learnt(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> Pair:
        said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return Pair([{"role": "user", "content": prompt}], *said, {"kind": "file"})

    leak = "How many apples does Mia have if she buys seven and gives two of them to her brother Finn?"
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": leak}) + '\n{"question": "A short one?"}\n')
    given = [pair("a", "x", "y"), pair("a", "x", "y"), pair("a", "y", "x"), pair("a", "x", "x"), pair("a", " ", "x")]
    given += [pair(f"Please tell me: {leak}", "5", "7"), pair("a short one", "x", "y")]
    settings = {"prompts": [], "pairs": ["p"], "benchmarks": [{"name": "t", "files": [str(tmp_path / "test.jsonl")]}]}
    report = prefer(config(**settings), tmp_path / "out", pairs=given)
    assert report["pairs"] == len(lines(tmp_path / "out/pairs.jsonl")) == 1
    reasons = {"duplicate": 1, "contradicts_another": 1, "same_answers": 1, "empty_answer": 1, "contaminated": 2}
    assert report["no_pair"] == reasons
    assert report["decontaminated"]
    asked, gate = plan(config(**settings | {"prompts": ["r"]}), prompts("Who?", "Who?", leak))
    assert ([p.messages[0]["content"] for p in asked], gate.left_out) == (["Who?"], {"duplicate": 1, "contaminated": 1})


@pytest.mark.parametrize(
    ("name", "text"),
    [("pairs.jsonl", "{}\n"), ("answers.jsonl", ""), ("report.json", '{"best": 0}'), ("report.json", "[")],
)
def test_files_of_something_else_are_not_written_over(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PhialError, match=f"{name} is not of phial data prefer"):
        prefer(config(samples=0), tmp_path, rows=prompts("a", answer="Right", rejected="Not right"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, text)]


def test_a_finished_run_may_be_made_again_without_its_journal(tmp_path: Path) -> None:
    rows = prompts("a", answer="Right", rejected="Not right")
    report = prefer(config(samples=0), tmp_path, rows=rows)
    (tmp_path / "journal.jsonl").unlink()
    assert prefer(config(samples=0), tmp_path, rows=rows) == report


class Stopping(Scripted):
    """One or two words by the seed, judged by chance; stops the run after some replies."""

    def __init__(self, after: int) -> None:
        super().__init__({})
        self._after = after

    def generate(self, messages: Sequence[Mapping[str, str]], *, seed: int = 0, **more: Any) -> Reply:
        if self.asked == self._after:
            raise KeyboardInterrupt
        self.asked += 1
        chance = zlib.crc32(f"{seed} {messages[-1]['content']}".encode())
        if more["schema"] is not None:
            return Reply(f'{{"better": "{("first", "second")[chance % 2]}"}}', 9, 9)
        return Reply(f"word{chance % 7}" + " more" * (chance % 2), 9, 9)


def test_a_stopped_run_goes_on_and_writes_what_an_undisturbed_one_writes(tmp_path: Path) -> None:
    settings = PreferConfig(formats={"one_word": 8}, samples=2, least=0.5, weights={"judge": 0.5})
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for after in (5, 14):
        with pytest.raises(KeyboardInterrupt):
            prefer(settings, stopped, model=(model := Stopping(after)), judge=model)
        assert {path.name for path in stopped.iterdir()} - {"journal.jsonl.lock"} == {"journal.jsonl"}
    prefer(settings, stopped, model=(model := Stopping(-1)), judge=model)
    prefer(settings, whole, model=(undisturbed := Stopping(-1)), judge=undisturbed)
    for name in ("pairs.jsonl", "chats.jsonl", "answers.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes() != b""
    assert 5 + 14 + model.asked == undisturbed.asked  # nothing was asked twice


def test_a_prompts_answers_depend_on_it_and_the_seed_alone(tmp_path: Path) -> None:
    def seeds(run: str, **settings: Any) -> list[int]:
        model = Scripted({"a": ["x"] * 3, "b": ["y"] * 3})
        names = settings.pop("names", ("a", "b"))
        prefer(config(**settings), tmp_path / run, model=model, rows=prompts(*names))
        assert model._given.get("a") != model._given["b"]
        return model._given["b"]

    both, alone, other = seeds("both"), seeds("alone", names=("b",)), seeds("other", seed=1)
    assert both == alone
    assert len({*both, *other}) == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompts": []}, "nothing to make pairs of"),
        ({"temperature": 0}, "all the same"),
        ({"formats": {"haiku": 3}}, "formats.haiku"),
        ({"margin": 0}, "margin"),
        ({"split": "test"}, "split"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**settings)


def test_prompts_that_nothing_ranks_are_refused_before_they_are_asked(tmp_path: Path) -> None:
    model = Scripted({})
    with pytest.raises(ArgumentError, match="1 of 2 prompts have no checks"):
        prefer(config(), tmp_path, model=model, rows=[*prompts("a"), *prompts("b", checks=[])])
    with pytest.raises(ArgumentError, match="no model"):
        prefer(config(), tmp_path, rows=prompts("a"))
    assert model.asked == 0
