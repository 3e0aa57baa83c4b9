"""A whole run over a small corpus: every stage finds its planted fault, twice is once, a user's faults are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from phial.data.document import read_documents
from phial.data.run import run_all
from phial.data.stage import dropped_files, kept_files
from phial.errors import PhialError

GOOD = """\
Water boils when its vapour pressure reaches the pressure of the air around it. On a high mountain the air presses less,
so water boils at a lower temperature and an egg takes longer to cook. Near the sea the opposite holds.
You can test this with a kettle and a thermometer. Write down the height of your village, heat the water, and note
the temperature at which bubbles rise from the bottom. Repeat the measurement three times and take the mean.
The difference is about one degree for every three hundred metres. That is why cooks in the mountains use a pot with a
tight lid, which keeps the steam inside and so raises the pressure and the temperature together.
"""
CHEESE = """\
Cheese begins as warm milk to which a little rennet is added, so that it sets within an hour like a pudding.
The curd is cut with long knives into pieces as small as peas, and the greenish whey runs off between them.
Salt keeps unwanted moulds away during the months in which the wheels ripen on spruce boards in a cool cellar.
A cheesemaker turns every wheel twice a week, brushes its rind, and taps it with a hammer to hear the holes inside.
"""
QUESTION = (
    "A ferryman carries seven goats over a river and returns with three of them every evening; how many goats stay?"
)
CONFIG = """
tasks = 3
[[sources]]
name = "notes"
paths = ["notes/*"]
licence = "CC0-1.0"
[[sources]]
name = "web"
paths = ["web.jsonl"]
licence = "unknown"
[[decontaminate.benchmarks]]
name = "riddles"
files = ["riddles.jsonl.gz"]
fields = ["question"]
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    notes = tmp_path / "notes"
    notes.mkdir()
    for i, topic in enumerate(["kettle", "pan", "samovar", "cauldron"]):
        (notes / f"{topic}.txt").write_text(
            GOOD.replace("kettle", topic) + f"This was written on sheet {i} by a cook.\n"
        )
    (notes / "page.html").write_text(
        "<html><head><title>Steam</title></head><body><nav>Home | Shop | Login</nav><article>"
        + "".join(f"<p>{line} Mail cook@example.org for more.</p>" for line in CHEESE.splitlines())
        + "</article></body></html>"
    )
    (notes / "broken.txt").write_bytes(b"\x00\x01\x02")
    tides = (
        "The moon draws the sea towards it, and the turning earth carries each harbour through the swell twice a day. "
        "Sailors keep tables of the hours, made from long lists of what others on that coast had seen. "
        "When sun and moon pull along one line the water climbs higher, and at the quarters it hardly leaves the quay. "
        "An old riddle is told in such places while people wait for the boats to lift from the mud of the inner basin. "
    )
    rows: list[Any] = [
        {"text": GOOD.replace("kettle", "samovar") + "This was written on sheet 2 by a cook.\n"},  # in notes, too
        {"text": "buy now " * 60},
        {"text": tides + QUESTION},
        {"title": "no text"},
        {"text": "Der Mond zieht das Meer an sich und die Erde dreht sich darunter hinweg, zweimal am Tag. " * 6},
    ]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    with gzip.open(tmp_path / "riddles.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": QUESTION, "answer": "four"}) + "\n")
    (tmp_path / "corpus.toml").write_text(CONFIG)
    return tmp_path


def reasons(run: Path, stage: str) -> dict[str, str]:
    """What a stage dropped: the file or row, and why."""
    return {
        document.metadata["path"]: document.metadata["filter_reason"]
        for path in dropped_files(run / stage)
        for document in read_documents(path)
    }


def test_every_planted_fault_is_found_by_its_stage(corpus: Path) -> None:
    results = run_all(corpus / "corpus.toml", corpus / "run")
    assert [result["name"] for result in results] == ["sources", "clean", "dedup", "quality", "decontaminate"]
    run = corpus / "run"
    assert reasons(run, "01-sources") == {
        "notes/broken.txt#0": "bad-record: binary",
        "web.jsonl#3": "bad-record: no text in text",
        "web.jsonl#5": "bad-record: not JSON",
    }
    cleaned = reasons(run, "02-clean")
    assert cleaned["web.jsonl#1"] == "gopher: few stop words"
    assert cleaned["web.jsonl#4"].startswith("language: de")
    near = reasons(run, "03-dedup")
    assert near["web.jsonl#0"].startswith("duplicate: ") and len(near) == 4  # notes come first, and are alike
    assert reasons(run, "05-decontaminate") == {"web.jsonl#2": "contaminated: riddles"}
    kept = [document for path in kept_files(run / "05-decontaminate") for document in read_documents(path)]
    assert len(kept) == 2
    steam = next(document for document in kept if document.metadata["path"] == "notes/page.html#0")
    assert "Login" not in steam.text and "cook@example.org" not in steam.text
    assert all(0 <= document.metadata["quality"] <= 5 for document in kept)
    page = (run / "report.html").read_text()
    assert "contaminated: riddles" in page and "bad-record: not JSON" in page
    for before, after in zip(results, results[1:], strict=False):
        assert before["kept"] == after["documents_in"] == after["kept"] + sum(after["dropped"].values())


def test_a_second_run_does_nothing_and_a_change_redoes_what_depends_on_it(corpus: Path) -> None:
    first = run_all(corpus / "corpus.toml", corpus / "run")
    assert run_all(corpus / "corpus.toml", corpus / "run", workers=2) == first
    (corpus / "corpus.toml").write_text(CONFIG + "[dedup]\nnear = false\n")
    second = run_all(corpus / "corpus.toml", corpus / "run")
    assert second[:2] == first[:2]
    assert second[2]["dropped"] == {"duplicate: exact": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("tasks = 3", "task = 3"), "task: is not known"),
        (("tasks = 3", "tasks = 0"), "tasks"),
        (('"web.jsonl"', '"nothing.jsonl"'), "source web: nothing.jsonl has no files"),
        (('name = "web"', 'name = "notes"'), "two sources are called notes"),
        (('licence = "unknown"\n', ""), "sources.1.licence"),
        (("riddles.jsonl.gz", "none.gz"), "benchmark riddles: no file is"),
        (("tasks = 3", "tasks = "), "no TOML file"),
    ],
)
def test_faults_of_a_configuration_are_named(corpus: Path, change: tuple[str, str], said: str) -> None:
    (corpus / "corpus.toml").write_text(CONFIG.replace(*change))
    with pytest.raises(PhialError) as raised:
        run_all(corpus / "corpus.toml", corpus / "run")
    assert said in raised.value.message
    assert raised.value.hint


def test_slurm_is_told_its_partition(corpus: Path) -> None:
    with pytest.raises(PhialError, match=r"no \[slurm\] table"):
        run_all(corpus / "corpus.toml", corpus / "run", executor="slurm")
    (corpus / "corpus.toml").write_text(CONFIG + "[slurm]\npartition = 'p'\n")
    with pytest.raises(PhialError, match="slurm.time: field required"):
        run_all(corpus / "corpus.toml", corpus / "run", executor="slurm")
