"""Processes that run models beside the server's own: the same answers, whatever happens to them."""

import asyncio
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

import embedlm
from embedlm.encode.items import Text
from embedlm.encode.rendered import Detached, rendered
from embedlm.errors import InputError
from embedlm.prompt.render import Request
from embedlm.serving import Limits, Models, batcher, processes
from embedlm.serving.encoding import Encoding
from embedlm.serving.exchange import EndedError
from embedlm.serving.processes import forked
from tests.command import ROOT, real, sentences
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
        assert len(pids) == metric(place, "embedlm_workers") == 2
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
        assert children(started) == []  # not even as zombies
        assert metric(place, "embedlm_workers") == 0
        wrong = place.post("/v1/encode", {"texts": TEXTS[:40], "dim": 10_000})
        assert wrong.status == 400
        assert children(started) == []  # they are no zombies
        told = [json.loads(line) for line in lines if "has ended" in line]
        assert {one["level"] for one in told} == {"warning"}
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0


def test_an_interrupt_waits_for_the_thread_that_loads():
    code = (
        "import os, signal, time\n"
        "from embedlm.serving.processes import apart\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job of a shell ignores it
        "done = []\n"
        "def load():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    try: time.sleep(0.5)\n"
        "    finally: done.append(True)\n"
        "try: apart(load)\n"
        "except KeyboardInterrupt: print(done)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[True]\n"


def test_a_signal_that_comes_while_processes_are_forked_is_not_lost(tiny_llama):
    code = (
        "import os, signal, sys\n"
        "import embedlm\n"
        "from embedlm.serving import Models, processes\n"
        "def end(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "model = embedlm.load(sys.argv[1], 'plain-mean', device='cpu')\n"
        "def kill(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.register_at_fork(after_in_parent=kill)\n"  # where what is raised goes nowhere
        "try: processes.forked(Models.of({'a': model}), 2)\n"
        "except KeyboardInterrupt: print('told')\n"
    )
    arguments = [sys.executable, "-c", code, str(tiny_llama)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout == "told\n"


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


def stopped(started):
    """Stop all processes of a server, as a debugger or a fault may; return their numbers."""
    pids = children(started)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def test_requests_in_a_stopped_process_time_out_and_the_server_ends(tiny_llama):
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2) as (started, place, _):
        pids = stopped(started)
        with ThreadPoolExecutor(12) as pool:
            body = {"texts": TEXTS[:30]}
            asked = [
                pool.submit(place.post, "/v1/encode", body, x_embedlm_timeout="1") for _ in pids * 6
            ]
            assert {one.result().status for one in asked} == {504}
        assert place.get("/health").status == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
        assert not any(map(alive, pids))


def test_a_second_signal_ends_the_server_and_stopped_processes(tiny_llama):
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2) as (started, place, lines):
        pids = stopped(started)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(place.post, "/v1/encode", {"texts": TEXTS}) for _ in pids]
            while metric(place, "embedlm_queue_requests") > 1:
                time.sleep(0.05)
            started.send_signal(signal.SIGTERM)
            while not any("draining" in line for line in lines):
                time.sleep(0.05)
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 0
            for one in asked:
                one.exception()  # what the server itself ran may still be answered
        assert not any(map(alive, pids))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_signal_ends_the_server_at_once_whatever_runs(tiny_llama, workers):
    with process(tiny_llama, "-r", "plain-mean", "--workers", workers) as (started, place, lines):
        bodies = [{"texts": [f"{at} " + "light " * 150] * 800} for at in range(6)]
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(place.post, "/v1/encode", body) for body in bodies]
            while metric(place, "embedlm_queue_requests") < 1:
                time.sleep(0.02)
            started.send_signal(signal.SIGTERM)
            while not any("draining" in line for line in lines):
                time.sleep(0.02)
            started.send_signal(signal.SIGTERM)
            start = time.monotonic()
            assert started.wait(20) == 0
            assert time.monotonic() - start < 5
            answers = [one.result() for one in asked if one.exception() is None]
        assert {one.status for one in answers} <= {200, 503}
        assert not [line for line in lines if "Traceback" in line or '"fault"' in line], lines


def test_processes_whose_end_nobody_is_told_of_are_let_go(tiny_llama, expected):
    how = {"preexec_fn": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)}
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2, **how) as (started, place, _):
        with ThreadPoolExecutor(12) as pool:
            coming = [pool.submit(asked, place, at) for at in range(len(TEXTS))]
            for pid in children(started):
                os.kill(pid, signal.SIGKILL)
            right([one.result() for one in coming], expected)
        assert metric(place, "embedlm_workers") == 0
        start = time.monotonic()
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
        assert time.monotonic() - start < 10


def test_a_process_that_never_answers_is_ended(tiny_llama, monkeypatch):
    monkeypatch.setattr(batcher, "_PATIENCE", 0.2)
    models = Models.of({"tiny": embedlm.load(tiny_llama, "plain-mean", device="cpu")})
    encoding = Encoding(served=models.embedders["tiny"])
    items = [(text, None) for text in TEXTS]
    (one,) = forked(models, 1)
    os.kill(one.pid, signal.SIGSTOP)

    async def run():
        served = batcher.Batcher(Limits(timeout=0.3), 10_000, processes=[one])
        await served.start()
        first = served.submit("a", encoding, items, [20] * len(items))
        await asyncio.sleep(0.3)
        first.future.cancel()
        second = served.submit("a", encoding, items, [20] * len(items))
        found = await asyncio.wait_for(second.future, 20)
        await served.stop()
        return found

    found = asyncio.run(run())
    expected = models.embedders["tiny"].model.encode(TEXTS)
    np.testing.assert_allclose([row["dense"] for row in found], expected, atol=1e-5)
    assert not alive(one.pid)


@dataclass(frozen=True)
class Slow:
    """Work of no model that processes have."""

    seconds: float = 0.02

    def run(self, items):
        time.sleep(self.seconds)
        return items


def test_work_of_a_model_that_processes_lack_has_its_own_times(tiny_llama):
    models = Models.of({"tiny": embedlm.load(tiny_llama, "plain-mean", device="cpu")})
    processes = forked(models, 1)
    told = []

    async def run():
        served = batcher.Batcher(Limits(), 1000, told.append, processes)
        await served.start()
        jobs = [served.submit("a", Slow(), [0] * 50, [20] * 50) for _ in range(3)]
        await asyncio.gather(*(job.future for job in jobs))
        await served.stop()
        return jobs, served.rate

    start = time.perf_counter()
    jobs, rate = asyncio.run(run())
    seconds = time.perf_counter() - start
    assert all(0.02 <= batch.seconds < seconds for batch in told), told
    assert all(0.02 <= job.run_seconds < seconds for job in jobs)
    assert all(0 <= job.started - job.arrived < seconds for job in jobs)
    assert rate > 2000


def test_a_batch_ahead_does_not_double_the_rate(monkeypatch):
    monkeypatch.setattr(batcher, "_WEIGHT", 1.0)
    rates = []

    class Process:
        pid, core = 0, -1

        async def begin(self):
            self.lock = asyncio.Lock()

        async def run(self, group, items, begins):
            async with self.lock:
                begins()
                return await asyncio.to_thread(group.run, items)

        def leave(self):
            pass

        wait = leave

    async def run():
        served = batcher.Batcher(Limits(), 1000, processes=[Process()])
        served._told = lambda batch: rates.append(served.rate * batch.seconds / batch.tokens)
        await served.start()
        jobs = [served.submit("a", Slow(0.05), [0] * 50, [20] * 50) for _ in range(4)]
        await asyncio.gather(*(job.future for job in jobs))
        await served.stop()

    asyncio.run(run())
    assert len(rates) > 3
    np.testing.assert_allclose(rates, 1, rtol=1e-6)


def test_batches_that_wait_in_a_process_are_answered_in_turn_or_all_given_up(tiny_llama):
    models = Models.of({"tiny": embedlm.load(tiny_llama, "plain-mean", device="cpu")})
    served = models.embedders["tiny"]
    expected = served.model.encode(TEXTS)
    (one,) = forked(models, 1)
    group = Encoding(served=served)
    began = []

    async def run(at):
        part = [(text, None) for text in TEXTS[at : at + 9]]
        found = await one.run(group, part, lambda: began.append(at))
        return [row["dense"] for row in found]

    async def check():
        await one.begin()
        starts = range(0, len(TEXTS), 9)
        found = np.concatenate(await asyncio.gather(*map(run, starts)))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert began == list(starts)
        # What cannot be sent is no one else's fault.
        odd = one.run(group, [(lambda: 0, None)])
        wrong, after = await asyncio.gather(odd, run(0), return_exceptions=True)
        assert isinstance(wrong, AttributeError | TypeError | pickle.PicklingError)
        np.testing.assert_allclose(after, expected[:9], atol=1e-5)
        os.kill(one.pid, signal.SIGSTOP)
        waiting = [asyncio.ensure_future(run(at)) for at in (0, 9, 18)]
        await asyncio.sleep(0.1)
        one.kill()
        async with asyncio.timeout(10):
            for each in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(each, EndedError)
        with pytest.raises(EndedError):
            await run(0)
        one.leave()
        await asyncio.to_thread(one.wait)

    asyncio.run(check())


def test_closed_standard_streams_are_no_place_for_sockets(tiny_llama):
    how = {"preexec_fn": lambda: os.closerange(0, 2)}
    with process(tiny_llama, "-r", "plain-mean", "--workers", 2, **how) as (started, place, _):
        assert asked(place, 0).status == 200
        assert os.readlink(f"/proc/{started.pid}/fd/0") == os.devnull
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0


def test_so_many_processes_that_they_cannot_be_started_are_refused(tiny_llama):
    command = f"ulimit -n 40; exec {sys.executable} -m embedlm.cli serve {tiny_llama} --port 0"
    done = subprocess.run(
        ["bash", "-c", f"{command} --workers 60"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert re.search(r"^embedlm: \d+ of 60 processes could be started", done.stderr, re.MULTILINE)
    assert "give fewer --workers, or 0 for none" in done.stderr


def test_a_server_that_may_start_no_process_runs_its_models_alone(tiny_llama, monkeypatch):
    def full(*_):
        raise OSError(11, "no more processes")

    models = Models.of({"tiny": embedlm.load(tiny_llama, "plain-mean", device="cpu")})
    monkeypatch.setattr(processes, "Process", full)
    monkeypatch.setattr(processes, "default_count", lambda _: 2)
    assert processes.chosen(models, None) == []
    with pytest.raises(InputError, match="0 of 2 processes could be started"):
        processes.chosen(models, 2)


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
    ended = real("serve", reranker.name, "--workers", "100000", "--port", "0")
    assert "--workers is 100000, and" in ended.err
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
