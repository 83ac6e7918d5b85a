"""Real servers on loopback: in a thread of this process, or in one of their own."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest

import embedlm
from tests.command import ROOT

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from embedlm.search import build_index
from embedlm.serving import Limits, Models, Mounted, Service, create_app
from embedlm.serving.run import listen, server_of

RECORDS = [
    {"id": 7, "text": "Plants make food from sunlight.", "year": 2001},
    {"id": "note", "text": "The quick brown fox jumps. A committee met.", "year": 2020},
    {"id": "g1", "text": "Chemical energy is stored in glucose.", "year": 2021},
]


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass(frozen=True)
class Place:
    """Where a server is."""

    host: str
    port: int
    service: Service = None

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        with closing(connection):
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def post(self, path, body, **headers):
        return self.ask("POST", path, body, **headers)

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)


@contextmanager
def running(models, indexes=None, *, keys=None, tracing=None, **limits):
    """Serve models in a thread; the server has ended when the context has."""
    limits = Limits(**{"drain": 0.0, **limits})
    service = Service(Models.of(models), indexes, keys=keys, limits=limits)
    opened = listen("127.0.0.1", 0)
    server = server_of(create_app(service, tracing=tracing), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    port = opened.getsockname()[1]
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield Place("127.0.0.1", port, service)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def process(*arguments, **how):
    """Run `embedlm serve` in a process; yield it, its place, and the lines it has logged."""
    command = [sys.executable, "-m", "embedlm.cli", "serve", *map(str, arguments), "--port", "0"]
    started = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
        **how,
    )
    lines = []
    ready = threading.Event()

    def read():
        for line in started.stderr:
            lines.append(line)
            if '"ready"' in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert ready.wait(120)
    try:
        told = next(json.loads(line) for line in lines if '"ready"' in line)
        yield started, Place("127.0.0.1", int(told["url"].rpartition(":")[2])), lines
    finally:
        started.kill()
        started.wait(30)
        reader.join(10)
        started.stdout.close()
        started.stderr.close()


@pytest.fixture(scope="session")
def model(tiny_llama):
    """Return a tiny model with three heads."""
    recipe = embedlm.Recipe.load("plain-mean").override(
        {"heads": ["dense", "sparse", "multi_vector"]}
    )
    return embedlm.load(tiny_llama, recipe, device="cpu")


@pytest.fixture(scope="session")
def reranker(model_folder, tmp_path_factory):
    """Return a tiny cross-encoder."""
    from tests.rerank.test_rerank import classifier

    folder = classifier(model_folder("bert"), tmp_path_factory.mktemp("cross") / "cross")
    return embedlm.Reranker(folder, device="cpu")


@pytest.fixture(scope="session")
def index(model, tmp_path_factory):
    """Return the folder of an index."""
    folder = tmp_path_factory.mktemp("serving")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    build_index(corpus, folder / "notes.index", model, store="exact")
    return folder / "notes.index"


@pytest.fixture(scope="session")
def place(model, reranker, index):
    """Return a server of two models and an index."""
    models = Models.of({"tiny": model, "cross": reranker})
    notes = Mounted.open("notes", index, list(models.embedders.values()))
    with running({"tiny": model, "cross": reranker}, {"notes": notes}) as found:
        yield found
