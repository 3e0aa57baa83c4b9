"""Synthetic text: what is asked, what is accepted and why not, that a killed run ends as an undisturbed one does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.data.teachers import RuleTeacher, prose

from phial.data import sandbox
from phial.data.sandbox import DOORS
from phial.data.synthesize import SynthesizeConfig, checked_config, load_config, synthesize
from phial.errors import FormatError, PhialError

WEAK = not DOORS <= sandbox.closable_doors()


def config(**settings: Any) -> SynthesizeConfig:
    return checked_config({"licence": "CC0-1.0", "weak_sandbox": WEAK, **settings})


def documents(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / name / "00000.jsonl.zst").open("rb") as raw:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), "utf-8").read()
    return [json.loads(line) for line in text.splitlines()]


def web_text(folder: Path, texts: list[str], licence: str = "CC-BY-4.0") -> Path:
    path = folder / "web.jsonl"
    lines = [json.dumps({"text": t, "id": f"web-{n}", "metadata": {"licence": licence}}) for n, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


class Erring(RuleTeacher):
    """Gives one answer to everything, or changes the good one."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._change = change

    def answer(self, fields: list[str], topic: str, request: str, seed: int) -> Any:
        good = super().answer(fields, topic, request, seed)
        return self._change(good) if callable(self._change) else self._change


def test_every_kind_is_asked_checked_and_written_with_its_origin(tmp_path: Path) -> None:
    web = web_text(tmp_path, [prose("web", n) for n in range(3)])
    kinds = {"textbook": 4, "exercise": 4, "python": 2, "qa": 4, "dialogue": 4, "rewrite": 3}
    report = synthesize(config(requests=kinds, rewrite=[str(web)]), RuleTeacher(), tmp_path / "out")
    kept = documents(tmp_path / "out", "kept")
    assert report["kept"] == len(kept) == sum(kinds.values())
    assert {kind: row["kept"] for kind, row in report["by_kind"].items()} == kinds
    assert documents(tmp_path / "out", "dropped") == []
    for document in kept:
        metadata = document["metadata"]
        assert (metadata["synthetic"], metadata["teacher"], metadata["source"]) == (True, "rules-1", "synthetic")
        rewrite = metadata["kind"] == "rewrite"
        assert metadata["licence"] == ("CC-BY-4.0" if rewrite else "CC0-1.0")
        assert ("topic" in metadata, "rewrite_of" in metadata) == (not rewrite, rewrite)
    assert len({document["id"] for document in kept}) == len(kept)
    cells = [(d["metadata"]["kind"], d["metadata"].get("topic"), d["metadata"]["style"]) for d in kept]
    assert len({cell for cell in cells if cell[0] != "rewrite"}) == 18


def change_first_pair(**values: str) -> Any:
    return lambda good: {"pairs": [{**good["pairs"][0], **values}]}


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("qa", "no JSON", "not_json"),
        ("qa", '{"pairs": [{"question": "\\ud800", "answer": "x"}]}', "not_json"),
        ("qa", {"pairs": []}, "schema"),
        ("qa", {"pairs": [{"question": "Why?"}]}, "schema"),
        ("qa", {"pairs": [{"question": "Why?", "answer": 3}]}, "schema"),
        ("qa", change_first_pair(answer=" "), "empty"),
        ("qa", change_first_pair(answer="As an AI, I write no answers."), "refusal"),
        ("qa", change_first_pair(answer="Short."), "too_short"),
        ("qa", change_first_pair(answer="Round and round it goes. " * 30), "repetition"),
        ("qa", {"pairs": [{"question": "Which?", "answer": prose("qqqqq", 1)}]}, "off_topic"),
        ("qa", lambda good: change_first_pair(answer=good["pairs"][0]["answer"] + " Or is it?")(good), "unanswered"),
        (
            "qa",
            lambda good: change_first_pair(answer=good["pairs"][0]["answer"] + " Now 12 * 7 = 85.")(good),
            "arithmetic",
        ),
        ("exercise", lambda good: {**good, "problem": "This is a field of science and of medicine."}, "no_question"),
        ("exercise", lambda good: {**good, "answer": "1000000"}, "answer_unsupported"),
        ("dialogue", lambda good: {"turns": [good["turns"][0]] * 4}, "repetition"),
        ("dialogue", lambda good: {"turns": [*good["turns"], good["turns"][1]]}, "one_speaker"),
        ("python", lambda good: {**good, "tests": ["f(1)", "assert f(1)"]}, "no_assert"),
        ("python", lambda good: {**good, "tests": ["assert f(1) == 0"] * 2}, "python_failed"),
        ("python", lambda good: {**good, "tests": ["assert True"] * 2}, "tests_prove_nothing"),
        ("python", lambda good: {**good, "solution": "import sys; sys.exit(0)"}, "python_exited"),
        ("python", lambda good: {**good, "solution": "def f(x) return x"}, "python_solution_error"),
    ],
)
def test_what_is_dropped_has_a_named_reason_and_can_be_read(
    tmp_path: Path, kind: str, answer: Any, reason: str
) -> None:
    teacher = Erring(json.dumps(answer) if isinstance(answer, dict) else answer)
    report = synthesize(config(requests={kind: 1}), teacher, tmp_path)
    assert report["dropped"] == {reason: 1}
    (dropped,) = documents(tmp_path, "dropped")
    assert dropped["metadata"]["filter_reason"] == reason
    assert dropped["text"]
    assert report["by_kind"][kind] | {"dropped": {reason: 1}, "kept": 0, "acceptance": 0.0} == report["by_kind"][kind]


def test_an_answer_that_repeats_its_instructions_is_dropped(tmp_path: Path) -> None:
    class Echo(RuleTeacher):
        def answer(self, fields: list[str], topic: str, request: str, seed: int) -> Any:
            return {"pairs": [{"question": "What was asked?", "answer": f"{request} {prose(topic, seed)}"}]}

    assert synthesize(config(requests={"qa": 1}), Echo(), tmp_path)["dropped"] == {"prompt_echoed": 1}


@pytest.mark.parametrize(
    ("rewritten", "reason"),
    [
        (lambda source: source, "copied"),
        (lambda source: prose("quite other matters", 99).replace("e", "ee"), "strayed"),
        (lambda source: " ".join(reversed(source.split())) + " In 1492.", "strayed"),
    ],
)
def test_a_rewrite_neither_copies_nor_strays(tmp_path: Path, rewritten: Any, reason: str) -> None:
    source = prose("web", 1)
    web = web_text(tmp_path, [source])
    teacher = Erring(json.dumps({"title": "A title", "text": rewritten(source)}))
    report = synthesize(config(requests={"rewrite": 1}, rewrite=[str(web)]), teacher, tmp_path / "out")
    assert report["dropped"] == {reason: 1}


def test_long_web_text_is_cut_at_paragraphs_and_nothing_of_it_lost(tmp_path: Path) -> None:
    from phial.data.passages import read_passages

    text = "\n\n".join(prose("web", n) for n in range(5)) + "\n\n" + " ".join(f"word{n}" for n in range(250))
    passages = read_passages([web_text(tmp_path, [text, text])], 150)
    assert sorted(" ".join(p.text for p in passages).split()) == sorted(text.split())
    assert max(len(p.text.split()) for p in passages) <= 150


def test_an_answer_that_was_cut_off_is_not_parsed(tmp_path: Path) -> None:
    class Cut(RuleTeacher):
        def generate(self, *args: Any, **named: Any) -> Any:
            return super().generate(*args, **named)._replace(finish_reason="length")

    assert synthesize(config(requests={"qa": 2}), Cut(), tmp_path)["dropped"] == {"cut_off": 2}


def test_near_duplicates_and_benchmark_texts_are_dropped_the_first_is_kept(tmp_path: Path) -> None:
    same = change_first_pair(answer=prose("the same thing everywhere", 1))
    topics = tmp_path / "topics.toml"
    topics.write_text('[a]\ntopics = ["same things", "same matters", "same affairs"]\n')
    settings = config(requests={"qa": 3}, topics=str(topics))
    report = synthesize(settings, Erring(same), tmp_path / "out")
    assert (report["kept"], report["dropped"]) == (1, {"near_duplicate": 2})
    first = documents(tmp_path / "out", "kept")[0]["id"]
    assert {d["metadata"]["duplicate_of"] for d in documents(tmp_path / "out", "dropped")} == {first}
    leaked = synthesize(settings, RuleTeacher(), tmp_path / "leaked", contaminated=lambda text: "matters" in text)
    assert leaked["dropped"] == {"contaminated": 1}
    assert (report["decontaminated"], leaked["decontaminated"]) == (False, True)


def test_questions_of_the_configured_benchmarks_are_not_in_what_is_kept(tmp_path: Path) -> None:
    question = "Which of these planets has the greatest mass of all that go around our sun today and in the past"
    leak = change_first_pair(answer=f"{question}? {prose('of', 1)}")
    (tmp_path / "planets.jsonl").write_text(json.dumps({"question": question}) + "\n")
    benchmarks = [{"name": "planets", "files": [str(tmp_path / "planets.jsonl")]}]
    settings = config(requests={"qa": 2}, benchmarks=benchmarks)
    assert synthesize(settings, RuleTeacher(), tmp_path / "clean")["kept"] == 2
    report = synthesize(settings, Erring(leak), tmp_path / "leaked")
    assert (report["dropped"], report["decontaminated"]) == ({"contaminated": 2}, True)


def test_costs_are_summed_by_kind(tmp_path: Path) -> None:
    report = synthesize(
        config(requests={"qa": 3, "textbook": 2}, price_in=1.0, price_out=10.0), RuleTeacher(), tmp_path
    )
    assert report["tokens"]["out"] == 500
    assert report["by_kind"]["qa"]["tokens_out"] == 300
    assert report["tokens"]["in"] == sum(row["tokens_in"] for row in report["by_kind"].values()) > 0
    assert report["price"] == pytest.approx((report["tokens"]["in"] * 1.0 + 500 * 10.0) / 1e6)
    assert synthesize(config(requests={"qa": 3}), RuleTeacher(), tmp_path / "free")["price"] is None


def hashes(folder: Path) -> dict[str, str]:
    files = ("kept/00000.jsonl.zst", "dropped/00000.jsonl.zst")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def test_a_run_killed_anywhere_and_run_again_writes_the_same_files(tmp_path: Path, repository: Path) -> None:
    settings = {"requests": {"qa": 6, "exercise": 6}, "licence": "CC0-1.0"}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    teacher = RuleTeacher()
    synthesize(checked_config(settings), teacher, undisturbed)
    assert teacher.asked == 12
    for kill_after in (4, 5):
        command = [sys.executable, "-m", "tests.data.teachers", str(killed), json.dumps(settings), str(kill_after)]
        path = os.pathsep.join([str(repository / "src"), str(repository)])
        ended = subprocess.run(command, cwd=repository, env={**os.environ, "PYTHONPATH": path}, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert not (killed / "stage.json").exists()
    assert not (killed / "kept/00000.jsonl.zst").exists()
    teacher = RuleTeacher()
    synthesize(checked_config(settings), teacher, killed)
    assert teacher.asked == 12 - 3 - 4  # nothing is asked twice
    assert hashes(killed) == hashes(undisturbed)


def test_a_torn_last_line_is_asked_again_and_damage_is_told(tmp_path: Path) -> None:
    settings = config(requests={"qa": 4})
    synthesize(settings, RuleTeacher(), tmp_path)
    before, journal = hashes(tmp_path), tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    teacher = RuleTeacher()
    synthesize(settings, teacher, tmp_path)
    assert (teacher.asked, hashes(tmp_path)) == (1, before)
    synthesize(settings, teacher, tmp_path)
    assert teacher.asked == 1  # the torn line is gone
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0].replace(b"about", b"above"), *lines[1:]]))
    with pytest.raises(FormatError, match="damaged in line 1"):
        synthesize(settings, teacher, tmp_path)


def test_workers_do_not_change_the_output_and_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    settings = config(requests={"qa": 20, "dialogue": 10})
    synthesize(settings, RuleTeacher(), tmp_path / "one")
    synthesize(settings, RuleTeacher(), tmp_path / "four", workers=4)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "four")
    teacher = RuleTeacher()
    again = synthesize(settings, teacher, tmp_path / "one")
    assert teacher.asked == 0
    assert again == json.loads((tmp_path / "one/stage.json").read_text())


def test_a_larger_run_in_the_same_folder_asks_only_what_is_new(tmp_path: Path) -> None:
    synthesize(config(requests={"textbook": 2, "qa": 5}), RuleTeacher(), tmp_path)
    teacher = RuleTeacher()
    synthesize(config(requests={"textbook": 4, "qa": 9}), teacher, tmp_path)
    assert teacher.asked == 6


def test_another_seed_asks_something_else(tmp_path: Path) -> None:
    synthesize(config(requests={"qa": 5}), RuleTeacher(), tmp_path / "0")
    synthesize(config(requests={"qa": 5}, seed=1), RuleTeacher(), tmp_path / "1")
    topics = [{d["metadata"]["topic"] for d in documents(tmp_path / seed, "kept")} for seed in "01"]
    assert topics[0] != topics[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"requests": {"poem": 1}}, "requests"),
        ({"requests": {}}, "requests"),
        ({"requests": {"qa": 1}, "licence": ""}, "licence"),
        ({"requests": {"qa": 1}, "temprature": 1}, "temprature"),
        ({"requests": {"rewrite": 1}}, "1 rewrites of nothing"),
        ({"requests": {"qa": 10**6}}, "the grid has"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PhialError, match=message):
        synthesize(config(**settings), RuleTeacher(), tmp_path)


def test_a_rewrite_needs_the_licence_of_its_source(tmp_path: Path) -> None:
    web = web_text(tmp_path, [prose("web", 1)], licence="")
    with pytest.raises(PhialError, match="line 1 has no licence"):
        synthesize(config(requests={"rewrite": 1}, rewrite=[str(web)]), RuleTeacher(), tmp_path / "out")


def test_steps_are_numbered_once(tmp_path: Path) -> None:
    teacher = Erring(lambda good: {**good, "steps": [f"{n}. {step}" for n, step in enumerate(good["steps"], 1)]})
    synthesize(config(requests={"exercise": 1}), teacher, tmp_path)
    text = documents(tmp_path, "kept")[0]["text"]
    assert "\n1. Think of" in text
    assert "\n2. Then" in text


def test_paths_of_a_configuration_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tree.toml").write_text('[a]\ntopics = ["kites"]\n')
    web_text(tmp_path, [prose("web", 1)])
    (tmp_path / "benchmark.txt").write_text(" ".join(f"word{n}" for n in range(30)))
    lines = [
        "[synthesize]",
        'licence = "MIT"',
        "requests = {qa = 1, rewrite = 1}",
        'topics = "tree.toml"',
        'rewrite = ["web.jsonl"]',
        'benchmarks = [{name = "words", files = ["*.txt"]}]',
    ]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    report = synthesize(checked_config(load_config(tmp_path / "run.toml")), RuleTeacher(), tmp_path / "out")
    assert (report["kept"], report["decontaminated"]) == (2, True)
    assert documents(tmp_path / "out", "kept")[0]["metadata"]["topic"] == "a / kites"


def test_what_was_kept_is_a_source_of_a_run_with_its_origin(tmp_path: Path) -> None:
    from phial.data.sources import SourceConfig, Sources, find_files

    web = web_text(tmp_path, [prose("web", 1)])
    synthesize(config(requests={"qa": 2, "rewrite": 1}, rewrite=[str(web)]), RuleTeacher(), tmp_path / "out")
    source = SourceConfig(name="made", paths=("out/kept",), licence="CC0-1.0", synthetic=True)
    found = list(Sources([source], find_files([source], tmp_path)).run())
    assert [document.text for document in found] == [d["text"] for d in documents(tmp_path / "out", "kept")]
    kinds = [(d.metadata["source"], d.metadata["kind"], d.metadata["synthetic"]) for d in found]
    assert kinds == [("made", "qa", True), ("made", "qa", True), ("made", "rewrite", True)]
    assert found[2].metadata["rewrite_licence"] == "CC-BY-4.0"
