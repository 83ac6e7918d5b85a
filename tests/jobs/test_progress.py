"""Progress where there is no terminal."""

import sys

from embedlm.jobs import progress as shown

PROGRESS = sys.modules["embedlm.jobs.progress"]


def test_lines_tell_how_far_a_job_is(capsys, monkeypatch):
    monkeypatch.setattr(PROGRESS, "PERIOD", 0.0)
    with shown("lines", 5000, unit="passage", label="embed") as advance:
        advance(1024)
        advance(1024)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["embed: 1,024 of 5,000 passages", "embed: 2,048 of 5,000 passages"]


def test_a_short_job_and_one_that_nobody_asked_about_are_silent(capsys, monkeypatch):
    with shown("lines", 5000) as advance:
        advance(5000)
    monkeypatch.setattr(PROGRESS, "PERIOD", 0.0)
    with shown(None, 5000) as advance:
        advance(5000)
    assert capsys.readouterr().err == ""


def test_an_estimated_total_is_never_below_the_count(capsys, monkeypatch):
    monkeypatch.setattr(PROGRESS, "PERIOD", 0.0)
    with shown("lines", None) as advance:
        advance(10)
        advance.expect(5)
        advance(0)
    assert capsys.readouterr().err.splitlines() == ["encode: 10 texts", "encode: 10 of 10 texts"]
