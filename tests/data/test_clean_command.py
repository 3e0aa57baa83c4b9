"""`phial data clean` from files to a stage's folder: counts, readable drops, the same files for more workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("datatrove", reason="phial[data] is not installed")

from phial.cli.data import data
from phial.data.document import read_documents
from phial.errors import PhialError

PROSE = (
    "The heart pumps blood through the body, and each beat begins in a small group of cells near the top of it. "
    "These cells fire on their own, without a nerve telling them to, about once every second of our lives.\n"
    "The signal spreads through both of the upper chambers, waits for a moment, and then reaches the lower ones. "
    "A doctor who listens to the chest can hear two sounds, which are made by valves that close.\n"
    "When we run, the muscles need more oxygen, so the brain asks the heart to beat faster than it did before."
)
GERMAN = "Der Hund lief über die Straße und bellte die Katze an, die auf dem Zaun saß. " * 3
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in {
        "good.txt": PROSE,
        "mail.md": PROSE + " Write to me@home.org.",
        "key.txt": f"{PROSE} It is {KEY}.",
        "short.txt": "The end of it.",
        "german.txt": GERMAN,
        "empty.txt": "",
    }.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def run(*arguments: object) -> dict[str, object]:
    """The JSON that the command prints."""
    found = CliRunner().invoke(data, ["clean", *map(str, arguments), "--json"])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout))


def texts(folder: Path) -> dict[str, tuple[str, str]]:
    """Text and reason by file name, of kept or dropped documents."""
    documents = [doc for path in sorted(folder.glob("*.zst")) for doc in read_documents(path)]
    return {
        Path(doc.metadata["path"].split("#")[0]).name: (doc.text, doc.metadata.get("filter_reason", ""))
        for doc in documents
    }


def test_files_become_a_stage_whose_drops_can_be_read(files: Path, tmp_path: Path) -> None:
    result = run(files, "-o", tmp_path / "out", "--tasks", 2, "--source", "notes", "--licence", "CC0-1.0")
    reasons = {"bad-record: empty": 1, "gopher: short": 1, "language: de": 1}
    assert (result["documents_in"], result["kept"], result["dropped"]) == (6, 3, reasons)
    assert texts(tmp_path / "out" / "kept") == {
        "good.txt": (PROSE, ""),
        "mail.md": (PROSE + " Write to [EMAIL].", ""),
        "key.txt": (PROSE + " It is [SECRET].", ""),
    }
    dropped = texts(tmp_path / "out" / "dropped")
    assert dropped["short.txt"] == ("The end of it.", "gopher: short")
    assert dropped["german.txt"] == (GERMAN, "language: de")
    assert run(tmp_path / "out", "-o", tmp_path / "again")["kept"] == 3  # a stage's folder goes in, too


def test_workers_do_not_change_the_output(files: Path, tmp_path: Path) -> None:
    one = run(files, "-o", tmp_path / "one", "--tasks", 3)
    two = run(files, "-o", tmp_path / "two", "--tasks", 3, "--workers", 2)
    assert one["output_sha256"] == two["output_sha256"] and one["kept"] == 3


def test_flags_change_the_settings_of_the_file(files: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.toml").write_text('languages = ["en"]\nmin_words = 2\nprofanity_words = "bad.txt"\n', "utf-8")
    (tmp_path / "bad.txt").write_text("katze\n", "utf-8")
    result = run(files, "-o", tmp_path / "out", "-c", tmp_path / "clean.toml", "--language", "all", "--secrets", "drop")
    assert result["dropped"] == {
        "bad-record: empty": 1,
        "gopher: words too short": 1,
        "profanity": 1,
        "secrets: aws key": 1,
    }
    assert texts(tmp_path / "out" / "dropped")["key.txt"] == (PROSE + " It is [SECRET].", "secrets: aws key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--secrets", "hide"], "secrets"), (["-c", "missing.toml"], "there is no missing.toml")],
)
def test_a_wrong_setting_is_named(files: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(PhialError, match=message):
        run(files, "-o", tmp_path / "out", *arguments)
