"""Variants written by a real local model or by a real server, and kept on disk."""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import embedlm
from embedlm.errors import GenerationError
from embedlm.recipe import Transform
from embedlm.transform import EndpointGenerator, LocalGenerator, resolve_generator, transform_texts
from embedlm.transform.cache import Cache
from embedlm.transform.geneol import chats_for

TEXTS = ["plants make food", "the quick brown fox", "light"]
CONFIG = Transform(max_new_tokens=6, demonstrations=1)


class Server(ThreadingHTTPServer):
    """Speaks chat completions; answers what `script` says first, then always well."""

    def __init__(self, script=()):
        self.script, self.requests, self.lock = list(script), [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            step = self.server.script.pop(0) if self.server.script else 200
        text = body["messages"][-1]["content"].removeprefix("Input: ").upper()
        message = {"role": "assistant", "content": f'Output: "{text} {body["seed"]}"'}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        payload = b"{not json" if step == "malformed" else json.dumps(answer).encode()
        if step == "empty":
            payload = json.dumps({**answer, "choices": []}).encode()
        self.send_response(step if isinstance(step, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    running = []

    def start(script=()):
        server = Server(script)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path):
    store = Cache(tmp_path / "cache" / "generations.sqlite")
    yield store
    store.close()


def endpoint(server, **options):
    generator = EndpointGenerator(server.url, "writer", **options)
    generator.wait = 0.01
    return generator


def test_an_endpoint_writes_and_the_cache_keeps(serve, cache):
    server = serve()
    found = transform_texts(TEXTS, CONFIG, endpoint(server), cache)
    assert [len(variants) for variants in found] == [4, 4, 4]
    assert all(v.startswith(t.upper()) for t, row in zip(TEXTS, found, strict=True) for v in row)
    assert len(server.requests) == 12
    assert transform_texts(TEXTS[::-1], CONFIG, endpoint(server), cache) == found[::-1]
    assert len(server.requests) == 12
    turns = server.requests[0]["messages"]
    assert turns[1] == {"role": "assistant", "content": "Alright."}
    assert "do not provide any alternative or reasoning or explanation" in turns[0]["content"]


def test_compositional_summarises_each_variant(serve, cache):
    server = serve()
    config = CONFIG.model_copy(update={"compositional": True})
    transform_texts(TEXTS[:1], config, endpoint(server), cache)
    assert len(server.requests) == 8


@pytest.mark.parametrize("trouble", [429, 500, 503])
def test_passing_trouble_is_tried_again(serve, cache, trouble):
    server = serve([trouble, trouble])
    found = transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1), cache)
    assert len(found[0]) == 4
    assert len(server.requests) == 6


@pytest.mark.parametrize("trouble", [401, "empty", "malformed"])
def test_lasting_trouble_is_told_and_nothing_is_lost(serve, cache, trouble):
    server = serve([200, 200, trouble])
    with pytest.raises(GenerationError, match=r"writer|choices"):
        transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1, retries=0), cache)
    before = len(server.requests)
    transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1), cache)
    assert len(server.requests) - before == 2


def test_no_server_is_told():
    generator = EndpointGenerator("http://127.0.0.1:9/v1", "writer", retries=1)
    generator.wait = 0.01
    with pytest.raises(GenerationError, match="after 2 attempts"):
        list(generator.generate([[{"role": "user", "content": "x"}]], sampling(), [0]))


def sampling(**options):
    from embedlm.transform.generator import Sampling

    return Sampling(max_new_tokens=8, **options)


def test_a_local_answer_does_not_depend_on_its_company(tiny_llama):
    generator = LocalGenerator.load(str(tiny_llama))
    chats = [chats_for(text, CONFIG)[0] for text in TEXTS]
    together = list(generator.generate([c for c, _ in chats], sampling(), [s for _, s in chats]))
    alone = [next(generator.generate([c], sampling(), [s])) for c, s in chats]
    assert together == alone
    again = next(generator.generate([chats[0][0]], sampling(), [chats[0][1] + 1]))
    assert again != alone[0]


def test_greedy_and_nucleus(tiny_llama):
    generator = LocalGenerator.load(str(tiny_llama))
    chat = chats_for("light", CONFIG)[0][0]
    greedy = [next(generator.generate([chat], sampling(temperature=0), [s])) for s in (1, 2)]
    assert greedy[0] == greedy[1]
    tiny = [next(generator.generate([chat], sampling(top_p=1e-6), [s])) for s in (1, 2)]
    assert tiny[0] == tiny[1] == greedy[0]


def test_geneol_averages_text_and_variants(serve, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    server = serve()
    recipe = embedlm.Recipe.load("geneol").override({"transform.demonstrations": 1})
    model = embedlm.load(tiny_llama, recipe=recipe, generator=f"{server.url}#writer")
    plain = embedlm.load(tiny_llama, recipe=recipe.override({"transform": None}))
    found = model.encode(TEXTS)
    with Closing(Cache()) as store:
        variants = transform_texts(TEXTS, recipe.transform, f"{server.url}#writer", store)
    for text, row, vector in zip(TEXTS, variants, found, strict=True):
        wanted = plain.encode([text, *row]).mean(0)
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


class Closing:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        self.value.close()


def test_geneol_writes_with_its_own_model(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    changes = {"transform.max_new_tokens": 4, "transform.demonstrations": 0}
    recipe = embedlm.Recipe.load("geneol").override(changes)
    model = embedlm.load(tiny_llama, recipe=recipe)
    assert model.encode(TEXTS).shape == (3, 32)


def test_a_killed_writer_loses_nothing_that_was_saved(tmp_path):
    code = (
        "import sys; from pathlib import Path; from embedlm.transform.cache import Cache\n"
        "store = Cache(Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    store.put([(str(i), 'text')]); print(i, flush=True)\n"
    )
    path = tmp_path / "generations.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        last = [int(process.stdout.readline()) for _ in range(20)][-1]
        os.kill(process.pid, signal.SIGKILL)
    with Closing(Cache(path)) as store:
        assert len(store.get([str(i) for i in range(last + 1)])) == last + 1


def test_a_damaged_cache_is_set_aside(tmp_path, caplog):
    path = tmp_path / "generations.sqlite"
    path.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with Closing(Cache(path)) as store:
        store.put([("a", "b")])
        assert store.get(["a"]) == {"a": "b"}
    assert (tmp_path / "generations.damaged").is_file()
    assert "damaged" in caplog.text


@pytest.mark.parametrize("spec", ["http://127.0.0.1:1/v1", 7])
def test_a_generator_that_is_none(spec):
    with pytest.raises(GenerationError, match=r"names no model|generator is int"):
        resolve_generator(spec)
