"""The server's log: what stands in a line, and when it is written."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from embedlm.serving import lines as lines_module
from embedlm.serving.lines import Facts, _Format, _Together

TELL = """
import logging, os, sys
from embedlm.serving.lines import Facts, log_lines
log_lines()
log = logging.getLogger("embedlm.serving")
log.info(Facts(event="request", at=1))
{then}
"""


@pytest.fixture
def logged():
    stream = io.StringIO()
    handler = _Together(stream)
    handler.setFormatter(_Format())
    log = logging.Logger("embedlm.serving")
    log.addHandler(handler)
    yield log, stream
    handler.close()


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_requests_are_written_together_soon_and_all_others_at_once_in_order(logged):
    log, stream = logged
    for at in range(3):
        log.info(Facts(event="request", at=at))
    log.warning("a library says %d", 7)
    log.handlers[0].flush()
    written = lines(stream.getvalue())
    assert [one.get("at") for one in written] == [0, 1, 2, None]
    assert written[3]["message"] == "a library says 7"
    assert written[3]["level"] == "warning"
    log.info(Facts(event="request", at=4))
    due = time.monotonic() + 5
    while "4}" not in stream.getvalue() and time.monotonic() < due:
        time.sleep(0.01)
    assert lines(stream.getvalue())[-1]["at"] == 4


@pytest.mark.parametrize(
    ("then", "wanted"),
    [
        ("", [1]),
        ("sys.exit(3)", [1]),
        # A forked process writes its own lines at once, and its parent's not again.
        (
            "pid = os.fork()\n"
            "if not pid: log.info(Facts(event='request', at=2)); os._exit(0)\n"
            "os.waitpid(pid, 0)",
            [2, 1],
        ),
        ("pid = os.fork()\nif not pid: sys.exit(0)\nos.waitpid(pid, 0)", [1]),
    ],
)
def test_no_line_is_lost_or_written_twice_at_the_end(then, wanted):
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(then=then)], capture_output=True, text=True, timeout=60
    )
    assert [one["at"] for one in lines(done.stderr)] == wanted


def test_a_log_whose_reader_has_gone_stops_no_request(logged):
    log, stream = logged
    stream.close()
    log.error("said to nobody")
    log.info(Facts(event="request"))


def test_a_log_that_nobody_reads_stops_no_request_and_is_told_what_is_missing(monkeypatch):
    monkeypatch.setattr(lines_module, "MOST", 50)
    monkeypatch.setattr(lines_module, "PATIENCE", 0.1)
    read, write = os.pipe()
    with open(write, "w") as stream, open(read) as reader:
        handler = _Together(stream)
        handler.setFormatter(_Format())
        log = logging.Logger("embedlm.serving")
        log.addHandler(handler)
        start = time.monotonic()
        log.info(Facts(event="first", words="x" * 100_000))  # more than a pipe holds
        time.sleep(0.2)
        for at in range(200):
            log.info(Facts(event="request", at=at))
        handler.flush()
        assert time.monotonic() - start < 5
        told = []
        thread = threading.Thread(
            target=lambda: told.extend(json.loads(reader.readline()) for _ in range(52))
        )
        thread.start()
        thread.join(10)
    assert [one.get("at") for one in told[1:51]] == list(range(50))
    assert told[51] == {"event": "dropped", "lines": 150}


def test_a_server_ends_though_nobody_reads_its_log():
    then = "for at in range(3000): log.info(Facts(event='request', words='x' * 100))"
    started = subprocess.Popen(
        [sys.executable, "-c", TELL.format(then=then)], stderr=subprocess.PIPE
    )
    assert started.wait(30) == 0
    started.stderr.close()


def test_other_handlers_see_json():
    assert json.loads(str(Facts(event="ready", models=["a"]))) == {
        "event": "ready",
        "models": ["a"],
    }
