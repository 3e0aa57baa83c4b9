"""`phial data synthesize`: from options and a file to documents; mistakes are told before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Phial

ASK = ("data", "synthesize", "-o", "out", "--licence", "MIT")


def test_a_model_that_answers_noise_has_nothing_accepted_and_everything_counted(
    phial: Phial, tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text('[synthesize]\nlicence = "MIT"\nrequests = {textbook = 1}\nmax_tokens = 12\n')
    given = ("run.toml", "--teacher", tiny, "-o", "out", "--ask", "qa=2", "--ask", "dialogue=1", "--json")
    ended = phial("data", "synthesize", *given)
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    assert (report["kept"], report["dropped"]) == (0, {"cut_off": 3})  # the options' requests, not the file's
    assert report["tokens"]["out"] == 3 * 12
    assert report == json.loads((tmp_path / "out/stage.json").read_text())
    table = phial("data", "synthesize", *given[:-1])
    assert table.out.splitlines()[0].split()[:4] == ["KIND", "ASKED", "KEPT", "%"]
    assert table.out.splitlines()[2].split()[:4] == ["qa", "2", "0", "0"]
    assert "no benchmark was given" in table.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ask", "qa"), "--ask qa"),
        (("--ask", "poem=3"), "poem"),
        (("--ask", "qa=1", "--benchmark", "gsm8k"), "--benchmark gsm8k"),
        (("--ask", "qa=1", "--workers", "2"), "--workers 2 with a model on this machine"),
        (("--ask", "rewrite=1"), "1 rewrites of nothing"),
        (("--ask", "qa=1", "--temperature", "-1"), "temperature"),
        ((), "requests"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_looked_for(
    phial: Phial, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    ended = phial(*ASK, "--teacher", "no-such-model.gguf", *options)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert "no-such-model" not in ended.err
    assert not (tmp_path / "out").exists()


def test_a_licence_is_asked_for(phial: Phial) -> None:
    ended = phial("data", "synthesize", "-o", "out", "--ask", "qa=1")
    assert ended.status == 2
    assert "licence" in ended.err
