"""Jobs of several processes: the bytes of one process, lost workers, clear errors."""

import json
import os
import signal
from functools import partial

import pytest

import embedlm
from embedlm.bulk import encode_file
from embedlm.bulk.requests import WorkerSettings
from embedlm.bulk.workers import ProcessPool, open_pool
from embedlm.errors import InputError, JobError, RecordError
from tests.command import sentences


@pytest.fixture(scope="module")
def load(tiny_llama):
    return partial(embedlm.load, str(tiny_llama), "plain-mean", device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(sentences(400, longest=12))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("options", [{}, {"precision": "int8"}])
def test_two_processes_give_the_bytes_of_one(load, source, tmp_path, options):
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    job = {"block": 32, **({"calibration": source} if options else {}), **options}
    encode_file(load(), source, one, **job)
    with open_pool(WorkerSettings(load, options), 2, None) as pool:
        report = encode_file(load(), source, two, pool=pool, **job)
    assert report.rows == 400
    assert one.read_bytes() == two.read_bytes()


def test_idle_workers_end_by_themselves(load, source, tmp_path):
    with open_pool(WorkerSettings(load, {}), 2, None) as pool:
        encode_file(load(), source, tmp_path / "v.npy", block=32, pool=pool)
        processes = [worker.process for worker in pool._workers]
    assert [process.exitcode for process in processes] == [0, 0]


def the_first_dies(kind, find_process, patch):
    """End a pool's first worker while it has its second block; return the list of those started."""
    started, processes, requests = [], [], []
    start_worker, submit_request = kind.start, kind.submit

    def start(self):
        started.append(start_worker(self))
        processes.append(find_process(started[-1]))
        return started[-1]

    def submit(self, worker, request):
        submit_request(self, worker, request)
        if worker is started[0]:
            requests.append(request)
            if len(requests) == 2:
                os.kill(processes[0], signal.SIGKILL)

    patch.setattr(kind, "start", start)
    patch.setattr(kind, "submit", submit)
    return started


def test_the_block_of_a_killed_worker_is_done_again(load, source, tmp_path, monkeypatch):
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    encode_file(load(), source, one, block=8)
    started = the_first_dies(ProcessPool, lambda worker: worker.process.pid, monkeypatch)
    with open_pool(WorkerSettings(load), 2, None) as pool:
        encode_file(load(), source, two, block=8, pool=pool)
    assert len(started) == 3
    assert one.read_bytes() == two.read_bytes()


class Deadly:
    """What ends the process that it is sent to."""

    def __init__(self):
        self.home = os.getpid()

    def __setstate__(self, state):
        if os.getpid() != state["home"]:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_block_that_ends_every_worker_ends_the_job(load, source, tmp_path):
    settings = WorkerSettings(Deadly())
    with open_pool(settings, 2, None) as pool, pytest.raises(JobError, match="ended 3 workers"):
        encode_file(load(), source, tmp_path / "out.npy", block=100, pool=pool)


def test_a_bad_record_is_told_as_by_one_process(load, source, tmp_path):
    bad = tmp_path / "bad.jsonl"
    lines = source.read_text().splitlines()
    lines[150] = '{"id": "x"}'
    bad.write_text("\n".join(lines) + "\n")
    with (
        open_pool(WorkerSettings(load), 2, None) as pool,
        pytest.raises(RecordError, match=r"bad.jsonl:151"),
    ):
        encode_file(load(), bad, tmp_path / "out.npy", block=32, pool=pool)


def test_a_number_of_workers_that_cannot_be(load):
    with pytest.raises(InputError, match="above 0"), open_pool(WorkerSettings(load), 0, None):
        pass


def test_a_folder_is_encoded_file_by_file_and_goes_on(run, with_model, source, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    lines = source.read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:40]), ("b", lines[40:100])):
        (inputs / f"{name}.jsonl").write_text("".join(part))
    command = ("encode", inputs, *with_model, "-o", out, "--json")
    reports = [json.loads(line) for line in run(*command).out.splitlines()]
    assert [(r["rows"], r["resumed"]) for r in reports] == [(40, 0), (60, 0)]
    alone = tmp_path / "alone.parquet"
    assert run("encode", inputs / "b.jsonl", *with_model, "-o", alone).code == 0
    assert pq.read_table(alone).equals(pq.read_table(out / "b.parquet"))
    (inputs / "a.jsonl").write_text("".join(lines[:39]))
    reports = [json.loads(line) for line in run(*command).out.splitlines()]
    assert [(r["rows"], r["resumed"]) for r in reports] == [(39, 0), (60, 1)]
    reports = [json.loads(line) for line in run(*command, "--dim", "8").out.splitlines()]
    assert [(r["dim"], r["resumed"]) for r in reports] == [(8, 0), (8, 0)]
    assert run("encode", tmp_path / "out", *with_model, "-o", tmp_path / "x").code == 2


def test_ray_actors_give_the_bytes_of_one_process(load, source, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from embedlm.bulk.ray_actors import RayPool

    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    encode_file(load(), source, one, block=8)

    def find_process(actor):
        return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))

    started = the_first_dies(RayPool, find_process, monkeypatch)
    try:
        with open_pool(WorkerSettings(load), 2, "local") as pool:
            encode_file(load(), source, two, block=8, pool=pool)
    finally:
        ray.shutdown()
    assert len(started) == 3
    assert one.read_bytes() == two.read_bytes()
