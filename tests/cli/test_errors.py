"""How the program ends: exit status, two lines for a mistake, nothing on stdout that is no data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from phial.cli import console
from phial.errors import PhialError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "Hi", "-m", "no-such-model"], "no-such-model"),
        (["run", "Hi", "-m", "./missing.gguf"], "missing.gguf"),
        (["run", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["run", "Hi", "--temperature", "warm"], "--temperature"),
        (["run", "Hi", "--top-p", "2"], "top_p"),
        (["run", "Hi", "--logit-bias", "x"], "'x'"),
        (["run", "Hi", "--raw", "--system", "You"], "--raw"),
        (["run"], "no prompt"),
        (["inspect", "smollm2-135m"], "smollm2-135m"),
        (["rm", "smollm2-135m"], "smollm2-135m"),
        (["bench", "--prefill", "0"], "--prefill"),
        (["tokenize", "Hi", "--ids", "--count"], "--ids"),
        (["pull"], "MODEL"),
    ],
)
def test_a_mistake_is_two_lines_on_stderr_and_status_2(invoke, arguments, message) -> None:
    done = invoke(*arguments)
    lines = done.err.splitlines()
    assert (done.status, done.out) == (2, "")
    assert len(lines) == 2, done.err
    assert lines[0].startswith("error: ") and message in lines[0]
    assert lines[1].startswith("hint: ")


def test_a_folder_an_empty_and_a_foreign_file_are_mistakes_not_tracebacks(invoke, tmp_path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("once upon a time" * 100)
    for model in (".", "./empty.gguf", "./text.gguf"):
        done = invoke("run", "Hi", "-m", model)
        assert (done.status, done.out) == (2, ""), done.err
        assert done.err.startswith("error: ")


def test_the_process_ends_with_the_same_status_and_lines(phial) -> None:
    done = phial("run", "Hi", "-m", "./missing.gguf")
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 2)


def test_phial_debug_shows_the_traceback(phial) -> None:
    done = phial("inspect", "./missing.gguf", PHIAL_DEBUG="1")
    assert done.status != 0
    assert "Traceback" in done.err and "PhialError" in done.err


def _end(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def app(*_arguments: object, **_settings: object) -> None:
        raise error

    return console.run(app, []), capsys.readouterr().err


def test_control_characters_of_an_error_never_reach_the_terminal(capsys) -> None:
    status, text = _end(PhialError("bad \x1b]0;owned\x07 name\nerror: fake", "try\u202e again"), capsys)
    assert status == 2
    assert text == "error: bad \\x1b]0;owned\\x07 name\\nerror: fake\nhint: try\\u202e again\n"


def test_ctrl_c_is_130_and_silent(capsys) -> None:
    assert _end(KeyboardInterrupt(), capsys) == (130, "")


def test_a_system_error_names_the_file(capsys) -> None:
    status, text = _end(PermissionError(13, "Permission denied", "/secret"), capsys)
    assert (status, text.splitlines()[0]) == (2, "error: Permission denied: /secret")


def test_our_own_errors_are_1_and_say_how_to_report_them(capsys, monkeypatch) -> None:
    monkeypatch.delenv("PHIAL_DEBUG", raising=False)
    status, text = _end(TypeError("oops"), capsys)
    assert status == 1
    assert text.splitlines()[0] == "error: internal error: TypeError: oops"


@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["list", "--all"], ["run", "--help"]])
def test_a_reader_that_leaves_causes_no_noise(environment, arguments) -> None:
    command = [sys.executable, "-m", "phial", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(("closed", "words"), [("2>&-", 0), (">&-", 2), ("2>&- >&-", 0)])
def test_a_closed_stdout_or_stderr_is_no_error_and_words_never_land_in_data(environment, closed, words) -> None:
    command = f"{sys.executable} -m phial list --all --json {closed}; {sys.executable} -m phial rm nothing {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2  # of rm
    assert len(done.stderr.splitlines()) == words
    if closed == "2>&-":
        assert json.loads(done.stdout)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupted_answer_ends_with_130_and_a_whole_line(tiny, environment) -> None:
    command = [sys.executable, "-m", "phial", "run", "Hi", "-m", tiny, "--logit-bias", "384=-1e9"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        rest, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert b"Traceback" not in errors
    if process.returncode == 130:  # else the whole answer was out before the signal
        assert (first + rest).endswith(b"\n")
    else:
        assert process.returncode == 0
