"""Bad requests, slow, leaving and too many clients, and the end of a server."""

import contextlib
import http.client
import json
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError
from embedlm.serving import Keys
from tests.command import sentences
from tests.serving.conftest import process, running

DEEP = b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}"
HALVES = [
    ("/embed", {"inputs": "a\ud800"}),
    ("/tokenize", {"inputs": ["a", "a\ud800"]}),
    ("/rerank", {"query": "a\ud800", "texts": ["a"]}),
    ("/rerank", {"query": "a", "texts": ["a", "a\ud800"]}),
    ("/v1/rerank", {"query": "a", "documents": ["a\ud800"]}),
    ("/v2/rerank", {"model": "cross", "query": "a\ud800", "documents": ["a"]}),
    ("/v1/render", {"texts": ["a\ud800"]}),
    ("/v1/search", {"query": "a\ud800"}),
    ("/v1/search", {"query": "a", "where": {"type": "eq", "key": "k", "value": "\ud800"}}),
]
BAD = [
    ("/v1/embeddings", b"", 400, "required"),
    ("/v1/embeddings", b"{not json", 400, "JSON"),
    ("/v1/embeddings", b"\xff\xfe", 400, "send one JSON object in UTF-8"),
    ("/v1/embeddings", b"[]", 400, "no JSON object; send one"),
    ("/v1/embeddings", DEEP, 400, "send one JSON object"),
    ("/v1/embeddings", {}, 400, "input: Field required"),
    ("/v1/embeddings", {"input": 5}, 400, "input"),
    ("/v1/embeddings", {"input": ""}, 400, "input 0 is empty"),
    ("/v1/embeddings", {"input": []}, 400, "no text"),
    ("/v1/embeddings", {"input": ["a", ""]}, 400, "input 1 is empty"),
    ("/v1/embeddings", {"input": [[]]}, 400, "input 0 is empty"),
    ("/v1/embeddings", {"input": ["a", 1]}, 400, "input"),
    ("/v1/embeddings", {"input": [True]}, 400, "input"),
    ("/v1/embeddings", {"input": [-1]}, 400, "input"),
    ("/v1/embeddings", {"input": [[2000000000]]}, 400, "vocabulary"),
    ("/v1/embeddings", b'{"input": "\\ud800"}', 400, ""),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "a", "dimensions": 10_000}, 400, "allowed are 1 to"),
    ("/v1/embeddings", {"input": "a", "dimensions": "8"}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "base64"),
    ("/v1/embeddings", {"input": "a", "temperature": 1}, 400, "temperature"),
    ("/v1/embeddings", {"input": "a", "model": "nope"}, 404, "not served"),
    ("/v1/encode", {"texts": "a", "role": "nope"}, 400, "role"),
    ("/v1/encode", {"texts": "a", "heads": ["nope"]}, 400, "nope"),
    ("/v1/encode", {"texts": "a", "heads": []}, 400, "heads is empty"),
    ("/v1/encode", {"texts": "a", "adapter": "nope"}, 400, "nope"),
    ("/v1/encode", {"texts": "a", "precision": "int8"}, 400, "range"),
    ("/v1/encode", {"texts": "a", "instruction": "b"}, 400, "instruction"),
    ("/v1/search", {"query": ""}, 400, "empty"),
    ("/v1/search", {"query": "a", "mode": "nope"}, 400, "mode"),
    ("/v1/search", {"query": "a", "mode": ""}, 400, "mode '' is not known"),
    ("/v1/vector_stores/notes/search", {"query": "a", "mode": ""}, 400, "mode '' is not known"),
    ("/v1/search", {"query": "a", "where": {"type": "nope"}}, 400, "filter type"),
    ("/v1/search", {"query": "a", "index": "nope"}, 404, "there are: notes"),
    ("/v1/search", b'{"query": "a", "weights": {"dense": NaN}}', 400, ""),
    ("/v1/vector_stores/nope/search", {"query": "a"}, 404, "there are: notes"),
    ("/v1/vector_stores/notes/search", {"query": "a", "rewrite_query": True}, 400, "rewrite_query"),
    ("/embed", {"inputs": []}, 400, "no text"),
    ("/embed", {"inputs": "a", "prompt_name": "nope"}, 400, "role"),
    (
        "/embed",
        {"inputs": "a", "truncate": True, "truncation_direction": "left"},
        400,
        "at the right",
    ),
    ("/rerank", {"query": "a", "texts": []}, 400, "no text"),
    *[(path, body, 400, "lone surrogate") for path, body in HALVES],
    ("/v2/embed", {"model": "tiny", "input_type": "search_query"}, 400, "texts, images or inputs"),
    ("/v2/embed", {"input_type": "image", "images": ["data:image/png;base64,!"]}, 400, "alone"),
    ("/v2/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}, 404, "embeds"),
    ("/nope", {}, 404, "/docs lists"),
]


NULLS = [
    ("/v1/embeddings", {"input": "a"}, ["encoding_format", "dimensions", "user", "model"]),
    ("/v1/encode", {"texts": ["a"]}, ["precision", "truncate", "heads", "dim", "recipe"]),
    ("/v1/search", {"query": "a"}, ["top_k", "mode", "fusion", "where"]),
    ("/v1/vector_stores/notes/search", {"query": "a"}, ["max_num_results", "rewrite_query"]),
    ("/embed", {"inputs": "a"}, ["normalize", "truncate", "prompt_name"]),
    ("/v2/embed", {"model": "tiny", "texts": ["a"], "input_type": "search_query"}, ["truncate"]),
]


@pytest.mark.parametrize(("path", "body", "fields"), NULLS)
def test_null_is_a_field_that_is_left_out(place, path, body, fields):
    answer, without = place.post(path, body | dict.fromkeys(fields)), place.post(path, body)
    assert (answer.status, without.status) == (200, 200), answer.body
    for name in body.keys() & {"input", "inputs", "query", "texts"}:
        assert place.post(path, body | {name: None}).status == 400


@pytest.mark.parametrize(("path", "body", "status", "told"), BAD)
def test_bad_requests_are_refused_with_what_is_wrong(place, path, body, status, told):
    answer = place.post(path, body)
    assert answer.status == status, answer.body
    assert told in json.dumps(answer.json())
    assert place.get("/health").status == 200


def test_a_refusal_has_the_form_of_its_interface(place):
    assert set(place.post("/v1/embeddings", {}).json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
    assert set(place.post("/embed", {}).json()) == {"error", "error_type"}
    assert set(place.post("/v2/embed", {}).json()) == {"message"}
    assert set(place.post("/v1/rerank", {}).json()) == {"detail"}
    assert place.ask("PUT", "/embed", {}).status == 405


def test_too_much_is_refused(model):
    limits = {"body_bytes": 4000, "inputs": 3, "request_tokens": 200}
    with running({"tiny": model}, **limits) as place:
        assert place.post("/embed", {"inputs": "a" * 5000}).status == 413
        assert place.post("/embed", {"inputs": ["a"] * 4}).status == 413
        assert place.post("/embed", {"inputs": ["a b c d " * 40] * 3}).status == 413
        with socket.create_connection((place.host, place.port)) as line:  # without a length
            line.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(5):
                line.sendall(b"3e8\r\n" + b"a" * 1000 + b"\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_no_text_is_shortened_in_silence(place, model):
    long = "word " * 500
    refused = place.post("/v1/embeddings", {"input": ["a", long]})
    assert refused.status == 413
    assert "input 1 is too long" in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert place.post("/embed", {"inputs": long}).status == 413
    allowed = place.post("/embed", {"inputs": ["a", long], "truncate": True})
    assert allowed.headers["x-embedlm-truncated"] == "1"
    expected = model.encode(["a", long], heads="dense", normalize=True)
    np.testing.assert_allclose(allowed.json(), expected, atol=2e-6)
    cohere = {"input_type": "search_document", "texts": [long]}
    assert "shortened" in place.post("/v2/embed", cohere).json()["meta"]["warnings"][0]
    assert place.post("/v2/embed", {**cohere, "truncate": "NONE"}).status == 413
    ranked = {"query": "a", "texts": [long]}
    assert place.post("/rerank", ranked).status == 413
    assert place.post("/rerank", {**ranked, "truncate": True}).headers["x-embedlm-truncated"] == "0"


def test_keys(model, tmp_path):
    first, second = "a-key-of-many-signs", "another-key-of-many"
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n{first}\nsha256:{sha256(second.encode()).hexdigest()}\n")
    with running({"tiny": model}, keys=Keys.read(file)) as place:
        body = {"inputs": "a"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": first}):
            refused = place.post("/embed", body, **headers)
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": f"Bearer {first}"}, {"x_api_key": second}):
            assert place.post("/embed", body, **headers).status == 200
        assert place.get("/health").status == place.get("/metrics").status == 200
        assert place.get("/docs").status == 401
        held = repr(place.service.keys)
        assert first not in held
        assert second not in held


@pytest.mark.parametrize("text", ["", "short\n", "sha256:12\n"])
def test_keys_that_protect_nothing_are_refused(text, tmp_path):
    (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(InputError):
        Keys.read(tmp_path / "keys.txt")


def test_other_sites_may_not_ask(place):
    headers = {"Origin": "http://else.where", "Access-Control-Request-Method": "POST"}
    for answer in (
        place.ask("OPTIONS", "/embed", **headers),
        place.post("/embed", {"inputs": "a"}, **headers),
    ):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_more_than_the_queue_holds_is_sent_away_and_the_rest_is_right(model):
    texts = sentences(64, seed=3)
    expected = model.encode(texts, heads="dense", normalize=True)
    with running({"tiny": model}, queue_requests=2, batch_tokens=64) as place:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: place.post("/embed", {"inputs": texts}), range(48)))
        good = [answer for answer in answers if answer.status == 200]
        late = [answer for answer in answers if answer.status == 429]
        assert len(good) + len(late) == 48
        assert good
        assert late
        for answer in good:
            np.testing.assert_allclose(answer.json(), expected, atol=2e-6)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in late)
        assert late[0].json()["error_type"] == "Overloaded"
        assert place.post("/embed", {"inputs": texts}).status == 200


def test_a_request_has_its_time(model):
    with running({"tiny": model}, timeout=0.02, batch_tokens=16) as place:
        answer = place.post("/embed", {"inputs": sentences(2000, seed=4)})
        assert answer.status == 504
        wait_until(lambda: not place.service.batcher.queue)


def test_a_request_may_ask_for_less_time_and_its_work_is_dropped(model):
    with running({"tiny": model}, timeout=30, batch_tokens=16) as place:
        body = {"inputs": sentences(2000, seed=4)}
        answer = place.post("/embed", body, x_embedlm_timeout="0.05")
        assert answer.status == 504
        assert "within 0.05 seconds" in answer.json()["error"]
        wait_until(lambda: not place.service.batcher.queue)
        for wrong in ("", "soon", "0", "-1", "nan", "inf", "31"):
            refused = place.post("/embed", {"inputs": "a"}, x_embedlm_timeout=wrong)
            assert refused.status == 400, wrong
            assert "up to the server's own 30" in refused.json()["error"]
        assert place.post("/embed", {"inputs": "a"}, x_embedlm_timeout="30").status == 200


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def begin(place, texts):
    """Send a whole request and return the connection."""
    body = json.dumps({"inputs": texts}).encode()
    line = socket.create_connection((place.host, place.port))
    head = "POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return line


@pytest.mark.parametrize("way", ["close", "half"])
def test_the_work_of_a_client_that_leaves_is_dropped(model, way):
    texts = sentences(2000, seed=5)
    with running({"tiny": model}, batch_tokens=16) as place:
        queue = place.service.batcher.queue
        line = begin(place, texts)
        wait_until(lambda: queue.tokens > 0)
        before = queue.tokens
        line.close() if way == "close" else line.shutdown(socket.SHUT_WR)
        wait_until(lambda: not queue)
        assert before > 1000
        line.close()
        total = sum(map(len, model.render(texts).ids))
        text = place.get("/metrics").body.decode()
        ran = next(
            float(x.split()[1])
            for x in text.splitlines()
            if x.startswith("embedlm_batch_tokens_sum")
        )
        assert ran < total / 2
        assert 'status="499"' in text


def test_slow_clients_are_let_go(model):
    with running({"tiny": model}, header_timeout=0.2, body_timeout=0.2) as place:
        with socket.create_connection((place.host, place.port)) as line:
            line.sendall(b"POST /embed HTTP/1.1\r\nHost:")
            assert line.recv(100) == b""
        with socket.create_connection((place.host, place.port)) as line:
            line.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        kept = http.client.HTTPConnection(place.host, place.port)
        for _ in range(3):  # an idle connection is no slow one
            kept.request("GET", "/health")
            assert kept.getresponse().read()
            time.sleep(0.3)
        kept.close()


def test_headers_have_a_size(model):
    with running({"tiny": model}) as place:
        with socket.create_connection((place.host, place.port)) as line:
            line.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
            told = b""
            with contextlib.suppress(ConnectionError):  # closed while more is on its way
                for at in range(4000):
                    line.sendall(b"x-more-%d: %s\r\n" % (at, b"a" * 90))
            with contextlib.suppress(ConnectionError):
                told = line.recv(100)
        assert told == b"" or told.startswith(b"HTTP/1.1 400")
        many = {f"x-more-{at}": "a" * 90 for at in range(20)}
        assert place.post("/embed", {"inputs": "one"}, **many).status == 200
        assert place.get("/health").status == 200


def test_a_fault_of_the_server_is_told_with_an_id(model, monkeypatch):
    with running({"tiny": model}) as place:
        monkeypatch.setattr(place.service, "check_count", lambda _: 1 / 0)
        answer = place.post("/embed", {"inputs": "a"})
        assert answer.status == 500
        assert "a fault in the server" in answer.json()["error"]
        assert answer.headers["x-request-id"]


def test_ids_of_requests_follow_no_seed(place):
    ids = set()
    for _ in range(3):
        random.seed(0)
        ids.add(place.get("/health").headers["x-request-id"])
    assert len(ids) == 3


def test_bodies_that_nobody_reads_are_no_headers(model, tmp_path):
    (file := tmp_path / "keys.txt").write_text("a-key-of-many-signs\n")
    body = json.dumps({"inputs": "a" * 4_000_000})
    with (
        running({"tiny": model}, keys=Keys.read(file)) as place,
        closing(http.client.HTTPConnection(place.host, place.port)) as line,
    ):
        for path, method, status in (("/embed", "POST", 401), ("/health", "GET", 200)) * 2:
            line.request(method, path, body)
            with line.getresponse() as answer:
                assert answer.status == status
                answer.read()
            line.request("GET", "/ping")
            assert line.getresponse().read() == b'{"status":"ok"}'


def test_headers_behind_a_request_that_runs_have_a_size(model):
    pytest.importorskip("httptools", reason="h11 reads nothing meanwhile")
    with (
        running({"tiny": model}, batch_tokens=16) as place,
        begin(place, sentences(2000, seed=4)) as line,
    ):
        wait_until(lambda: place.service.batcher.queue.tokens > 0)
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(10):
                line.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nx-more: ")
                line.sendall(b"a" * (1 << 18))
                time.sleep(0.02)
        assert place.service.batcher.queue.tokens > 0


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_upgrade_that_is_not_made_costs_no_body(model, upgrade):
    """Java's client offers h2c with each first request."""
    body = json.dumps({"inputs": "one"}).encode()
    asks = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAA\r\n"
    head = "POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    first = f"{head}{asks}Content-Length: {len(body)}\r\n\r\n".encode() + body
    last = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with running({"tiny": model}) as place:
        for cuts in ((), (30,), (len(head) + 10,), (len(first) - 5,)):
            with socket.create_connection((place.host, place.port)) as line:
                for start, stop in pairwise((0, *cuts, len(first))):
                    line.sendall(first[start:stop])
                    time.sleep(0.02)
                line.settimeout(20)
                assert line.recv(1 << 16).startswith(b"HTTP/1.1 200")
                line.sendall(last)
                assert line.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_sigterm_under_load_loses_no_answer_and_logs_hold_no_text(tiny_llama):
    expected = embedlm.load(tiny_llama, "plain-mean", device="cpu").encode(["secretword one"])
    ended, lost, good = threading.Event(), [], []

    def ask(place):
        while not ended.is_set():
            try:
                line = http.client.HTTPConnection(place.host, place.port, timeout=30)
                line.connect()
            except OSError:
                return  # no longer there, which is no loss
            try:
                body = json.dumps({"input": ["secretword one", *sentences(30)]})
                line.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
                answer = line.getresponse()
                found = json.loads(answer.read())["data"][0]["embedding"]
                np.testing.assert_allclose(found, expected[0], atol=2e-6)
                good.append(answer.status)
            except Exception as error:
                lost.append(repr(error))
            finally:
                line.close()

    options = (tiny_llama, "-r", "plain-mean", "--device", "cpu", "--drain", "0.5")
    with process(*options) as (started, place, lines):
        workers = [threading.Thread(target=ask, args=(place,)) for _ in range(8)]
        for worker in workers:
            worker.start()
        wait_until(lambda: len(good) > 20)
        started.send_signal(signal.SIGTERM)
        wait_until(lambda: place_drains(place))
        assert started.wait(30) == 0
        ended.set()
        for worker in workers:
            worker.join(30)
        assert lost == []
        time.sleep(0.1)
        told = [json.loads(line) for line in lines]
        assert {"ready", "request", "draining"} <= {one["event"] for one in told}
        assert "secretword" not in "".join(lines)
        request = next(one for one in told if one["event"] == "request" and one["texts"])
        assert request["status"] == 200
        assert request["tokens"] > 31


def place_drains(place):
    try:
        return place.get("/health").status == 503
    except OSError:
        return True


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], "0 to 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--api-key-file", "none.txt"], "cannot be read"),
        (["a=builtin", "a=builtin-base"], "two models are called 'a'"),
        (["--index", "nothing"], "is not an index"),
        (["--timeout", "0"], "--timeout is 0"),
    ],
)
def test_a_server_that_cannot_be_is_refused_first(run, arguments, told):
    port = [] if "--port" in arguments else ["--port", "0"]
    ran = run("serve", *arguments, *port)
    assert ran.code == 2
    assert told in ran.err.splitlines()[-1]
