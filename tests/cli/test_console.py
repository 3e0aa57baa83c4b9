"""Text for people and for pipes: a terminal is never given control characters, a pipe gets every byte."""

from __future__ import annotations

import io
import json
import sys

import pytest

from phial.cli import console

EVIL = "a\x1b[2J\x07\x9b1m\u202eb\tc\nd"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_escapes_for_control_characters(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    console.write(EVIL)
    assert sys.stdout.getvalue() == "a\\x1b[2J\\x07\\x9b1m\\u202eb\tc\nd"


def test_a_pipe_gets_the_text_as_it_is(capsys) -> None:
    console.write(EVIL)
    assert capsys.readouterr().out == EVIL


def test_a_note_is_one_line_whatever_it_says(capsys) -> None:
    console.note(EVIL)
    assert capsys.readouterr().err == "a\\x1b[2J\\x07\\x9b1m\\u202eb\\tc\\nd\n"


def test_a_long_cell_of_a_table_is_whole_in_a_pipe_and_markup_is_text(capsys) -> None:
    console.write_table(["A", "B"], [["[bold]x[/bold]", "y" * 500], ["1", "2"]], right=["A"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "[bold]x[/bold]  " + "y" * 500
    assert lines[2] == "             1  2"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_survives_any_encoding_of_stdout(phial, tmp_path, encoding) -> None:
    home = str(tmp_path / "bücher🎉")
    done = phial("info", "--json", PYTHONIOENCODING=encoding, PHIAL_HOME=home)
    assert json.loads(done.out)["store"] == home
    assert ("ü" in done.out) == (encoding == "utf-8")


def test_text_that_stdout_cannot_encode_is_escaped_not_fatal(phial, tmp_path) -> None:
    done = phial("info", PYTHONIOENCODING="ascii", PHIAL_HOME=str(tmp_path / "bücher"))
    assert done.status == 0 and "b\\xfccher" in done.out
