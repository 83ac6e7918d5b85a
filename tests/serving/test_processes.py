"""Processes that run models beside the server's own: the same answers, whatever happens to them."""

import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import embedlm
from embedlm.encode.items import Text
from embedlm.encode.rendered import Detached, rendered
from embedlm.prompt.render import Request
from tests.command import real, sentences
from tests.serving.conftest import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked under Linux")

HEADS = ["dense", "sparse", "multi_vector"]
TEXTS = [f"{at} {text}" for at, text in enumerate(sentences(90))]


def children(started):
    with open(f"/proc/{started.pid}/task/{started.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def metric(place, name):
    found = re.search(rf"^{name} (\S+)$", place.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1])


@pytest.fixture(scope="module")
def expected(tiny_llama):
    found = embedlm.load(tiny_llama, "plain-mean", device="cpu").encode(TEXTS, heads=HEADS)
    return found["dense"], found["multi_vector"]


def asked(place, at):
    return place.post("/v1/encode", {"texts": [TEXTS[at]], "heads": HEADS})


def right(answers, expected):
    for answer, vector, matrix in zip(answers, *expected, strict=True):
        assert answer.status == 200, answer.body
        outputs = answer.json()["outputs"]
        np.testing.assert_allclose(outputs["dense"][0], vector, atol=1e-5)
        np.testing.assert_allclose(outputs["multi_vector"][0], matrix, atol=1e-5)


def test_processes_give_the_library_s_answers_and_may_be_killed(tiny_llama, expected):
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2) as (started, place, lines):
        pids = children(started)
        assert len(pids) == 2
        with ThreadPoolExecutor(24) as pool:
            right(pool.map(lambda at: asked(place, at), range(len(TEXTS))), expected)
            coming = [pool.submit(asked, place, at) for at in range(len(TEXTS))]
            os.kill(pids[0], signal.SIGKILL)
            right([one.result() for one in coming], expected)
            many = {"texts": TEXTS, "heads": ["dense"]}
            whole = place.post("/v1/encode", many).json()["outputs"]["dense"]
            np.testing.assert_allclose(whole, expected[0], atol=1e-5)
            os.kill(pids[1], signal.SIGTERM)
            right(pool.map(lambda at: asked(place, at), range(len(TEXTS))), expected)
        wrong = place.post("/v1/encode", {"texts": TEXTS[:40], "dim": 10_000})
        assert wrong.status == 400
        told = [json.loads(line) for line in lines if "has ended" in line]
        assert {one["level"] for one in told} == {"warning"}
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0


def test_processes_end_with_the_server_even_when_it_is_killed(tiny_llama):
    with process(tiny_llama, "-r", "plain-mean", "--workers", 3) as (started, place, _):
        pids = children(started)
        with ThreadPoolExecutor(8) as pool:
            coming = [pool.submit(asked, place, at) for at in range(20)]
            coming[0].result()
            started.kill()
            started.wait(30)
            for one in coming:
                one.exception()
        end = time.monotonic() + 30
        while any(map(alive, pids)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, pids))
        assert len(pids) == 3


def test_prefixes_are_kept_and_counted_in_all_processes(tiny_llama):
    lead = "a lead that all the texts of this test begin with, so that it is kept: "
    bodies = [{"inputs": [f"{lead}{text}" for text in TEXTS[at : at + 4]]} for at in range(24)]
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2) as (_, place, _):
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda body: place.post("/embed", body), bodies))
        assert {one.status for one in answers} == {200}
        found = place.get("/metrics").body.decode()
        calls = sum(map(float, re.findall(r"^embedlm_prefix_lookups_total\S* (\S+)$", found, re.M)))
        assert calls == metric(place, "embedlm_batch_texts_count")


def test_what_cannot_be_forked_is_refused(reranker):
    ended = real("serve", reranker.name, "--workers", "2", "--port", "0")
    assert ended.code == 2
    assert "--workers is 2, but no embedder is served; leave it out, or give 0" in ended.err


def test_rendered_texts_go_without_their_tokenizer_and_are_not_rendered_anew(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    texts = rendered(model.renderer, TEXTS[:5], None)
    sent = Detached.of(texts)
    back = sent.by(model.renderer)
    assert back == texts
    assert [one.tokens for one in back] == [one.tokens for one in texts]
    assert all(
        one.way.serves(model.renderer, Request(None, None, None), segments=True) for one in back
    )
    np.testing.assert_array_equal(model.encode(back), model.encode(TEXTS[:5]))
    assert Detached.of([*texts, Text("a")]) is None
    other = embedlm.load(tiny_llama, "plain-last", device="cpu")
    assert Detached.of([texts[0], *rendered(other.renderer, ["a"], None)]) is None
