"""How many threads run: never more than there are processors, and never silently."""

from __future__ import annotations

import pytest

from phial.threads import available_cpus, checked_threads


def test_more_threads_than_processors_are_not_started_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    cpus = available_cpus()
    assert checked_threads("n_threads", cpus + 6) == cpus
    assert (
        capsys.readouterr().err
        == f"phial: n_threads is {cpus + 6}, but {cpus} processors are available: using {cpus}\n"
    )


def test_as_many_threads_as_processors_are_taken_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked_threads("n_threads", available_cpus()) == available_cpus()
    assert capsys.readouterr().err == ""
