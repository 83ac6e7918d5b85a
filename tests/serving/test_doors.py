"""What probes, proxies and careless clients send is answered as it is meant, or refused."""

import json
import shutil
import signal
import socket
import time

import pytest

from embedlm.serving import Keys, Models, Mounted
from embedlm.serving.names import Names, WrongNameError
from tests.serving.conftest import process, running

LONG = "word " * 500
MCP = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def test_head_is_get_without_the_body(place):
    for path in ("/", "/health", "/v1/models", "/info", "/metrics", "/docs", "/page/app.js"):
        head, got = place.ask("HEAD", path), place.get(path)
        assert (head.status, head.body) == (got.status, b"") == (200, b""), path
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(got.body))
    assert place.ask("HEAD", "/embed").status == 405
    assert place.ask("HEAD", "/nowhere").status == 404


def test_a_slash_at_the_end_is_answered_without_a_redirect(place):
    body = {"input": "a", "dimensions": 2}
    assert place.post("/v1/embeddings/", body).json() == place.post("/v1/embeddings", body).json()
    assert place.get("/health/").status == place.get("/v1/models/tiny/").status == 200
    assert place.post("/mcp/", MCP, **ACCEPT).status == 200


@pytest.mark.parametrize(
    ("host", "given", "right"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "localhost", True),
        ("localhost", "LOCALHOST.:80", True),
        ("::1", "[::1]:8080", True),
        ("127.0.0.1", "", True),
        ("127.0.0.1", "api:8080", True),
        ("127.0.0.1", "host.docker.internal:8080", True),
        ("127.0.0.1", "192.168.1.5", True),
        ("127.0.0.1", "evil.example:8080", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("::1", "[evil.example]:80", False),
        ("127.0.0.1", "\xff.example", False),
        ("0.0.0.0", "evil.example", True),
        ("my.example", "my.example", True),
    ],
)
def test_names_by_which_a_server_is_asked(host, given, right):
    names = Names.at(host)
    if right:
        names.check(given.encode("latin-1"))
    else:
        with pytest.raises(WrongNameError, match="Host: localhost"):
            names.check(given.encode("latin-1"))


def test_a_page_of_another_site_that_points_its_name_here_is_refused(place, model, tmp_path):
    wrong = {"Host": "evil.example:8080"}
    for path, body in (("/v1/search", {"query": "plants"}), ("/embed", {"inputs": "a"})):
        assert place.post(path, body, **wrong).status == 421
        assert place.post(path, body, Host="localhost:80").status == 200
    assert place.get("/v1/served", **wrong).status == 421
    file = tmp_path / "keys"
    file.write_text("0123456789abcdef\n")
    with running({"tiny": model}, keys=Keys.read(file)) as other:
        key = {"X-Api-Key": "0123456789abcdef"}  # which such a page does not have
        assert other.post("/embed", {"inputs": "a"}, **wrong, **key).status == 200
        assert other.post("/embed", {"inputs": "a"}, **wrong).status == 401


def test_query_parameters_are_taken_or_refused(place):
    told = place.post("/v1/embeddings?dimensions=2", {"input": "a"})
    assert (told.status, "no query parameter 'dimensions'" in told.json()["error"]["message"]) == (
        400,
        True,
    )
    assert place.get("/v1/models?limit=1").status == 400
    for path in ("/?x=1", "/health?x=1", "/metrics?name[]=a", "/docs?x", "/page/app.js?v=2"):
        assert place.get(path).status == 200, path


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/embeddings", '{"input": "a", "dimensions": 2, "dimensions": 3}', "'dimensions' is"),
        ("/v2/rerank", '{"query": "a", "documents": [{"text": "a", "text": "b"}]}', "'text' is"),
        ("/v1/vector_stores/notes/search", '{"query": "a", "query": "b"}', "'query' is given"),
        ("/v1/search", '{"query": "a", "where": {"key": NaN}}', "holds NaN"),
        ("/v1/vector_stores/notes/search", '{"query": "a", "filters": {"a": -Infinity}}', "-Inf"),
        (
            "/v1/vector_stores/notes/search",
            '{"query": "a", "ranking_options": {"score_threshold": 1e999}}',
            "finite",
        ),
        ("/v1/search", '{"query": "a", "weights": {"dense": 1e999}}', "finite"),
        (
            "/v1/search",
            '{"query": "glucose", "weights": {"dense": 1e308, "sparse": 1e308, "bm25": 1.7e308}}',
            "too large",
        ),
        ("/decode", '{"ids": [5, 2000000000]}', "token id 2000000000 is not in"),
        ("/decode", '{"ids": [[], [2000000000]]}', "token id 2000000000 is not in"),
    ],
)
def test_nothing_in_a_body_is_passed_over(place, path, body, told):
    for kind in ("application/json", "application/JSON; charset=utf-8"):
        answer = place.post(path, body.encode(), Content_Type=kind)
        assert answer.status == 400, answer.body
        assert told in answer.body.decode()


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/embeddings", {"input": LONG}, "shorten it, or send it to /v1/encode with truncate"),
        ("/embed", {"inputs": LONG}, "shorten it, or send truncate: true"),
        ("/rerank", {"query": "a", "texts": [LONG]}, "shorten it, or send truncate: true"),
        ("/v1/encode", {"texts": LONG}, "shorten it, or send truncate: true"),
        ("/v1/compare", {"texts": [LONG]}, "shorten it, or send truncate: true"),
        (
            "/v2/embed",
            {"input_type": "search_query", "texts": [LONG], "truncate": "NONE"},
            "shorten it, or send truncate: END",
        ),
        ("/v1/search", {"query": LONG}, "shorten it"),
        ("/v1/vector_stores/notes/search", {"query": LONG}, "shorten it"),
    ],
)
def test_a_text_that_is_too_long_is_refused_with_what_the_route_can_do(place, path, body, told):
    answer = place.post(path, body)
    assert answer.status == 413
    assert answer.body.decode().rpartition("; ")[2].partition('"')[0] == told


def test_tokenize_and_decode_have_the_limits_of_other_routes(model):
    with running({"tiny": model}, inputs=3, request_tokens=20) as place:
        for path, field, value in (
            ("/tokenize", "inputs", "a b " * 40),
            ("/decode", "ids", [5] * 21),
            ("/decode", "ids", [[5]] * 4),
        ):
            assert place.post(path, {field: value}).status == 413


def test_a_key_is_the_bytes_that_are_sent(tmp_path, model):
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf" + "schlüssel-von-uns\nzweiter-schlüssel\n".encode())
    with running({"tiny": model}, keys=Keys.read(file)) as place:
        for key in ("schlüssel-von-uns", "zweiter-schlüssel"):
            with socket.create_connection((place.host, place.port)) as line:
                head = f"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n"
                line.sendall(head.encode())
                assert line.recv(100).startswith(b"HTTP/1.1 200"), key


def test_an_index_that_is_gone_is_no_fault_of_the_request(model, index, tmp_path):
    folder = shutil.copytree(index, tmp_path / "i.index")
    with running({"tiny": model}, {"i": _mounted(folder, model)}) as place:
        assert place.post("/v1/search", {"query": "a"}).status == 200
        folder.rename(tmp_path / "elsewhere")
        answer = place.post("/v1/search", {"query": "a"})
        assert (answer.status, answer.json()["error"]["code"]) == (503, "index_unavailable")
        (tmp_path / "elsewhere").rename(folder)
        assert place.post("/v1/search", {"query": "a"}).status == 200


def test_no_stream_of_an_agent_holds_up_the_end(tiny_llama):
    with process(f"tiny={tiny_llama}", "-r", "plain-mean", "--workers", "0", "--drain", "0") as (
        started,
        place,
        lines,
    ):
        with socket.create_connection((place.host, place.port)) as line:
            line.sendall(b"GET /mcp HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 405")  # as the protocol allows
            begun = time.monotonic()
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 0
            assert time.monotonic() - begun < 15
        assert not [one for one in lines if '"error"' in one]


def test_agents_may_send_null_and_are_told_ids_apart(model, tmp_path):
    from embedlm.search import build_index

    records = [
        {"id": 7, "text": "Plants make food."},
        {"id": "7", "text": "A dog runs."},
        {"id": '"7"', "text": "Shares fell."},
        {"id": '"half', "text": "Tyres wear."},
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    build_index(corpus, tmp_path / "i.index", model, store="exact")

    with running({"tiny": model}, {"i": _mounted(tmp_path / "i.index", model)}) as place:

        def call(name, arguments):
            params = {"name": name, "arguments": arguments}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            return place.post("/mcp", body, **ACCEPT).json()["result"]

        nothing = dict.fromkeys(("k", "mode", "filters", "index"))
        hits = call("search", {"query": "a", **nothing})["structuredContent"]["hits"]
        assert {hit["id"] for hit in hits} == {"7", '"7"', '"\\"7\\""', '"\\"half"'}
        for hit in hits:
            found = call("fetch", {"id": hit["id"], "index": None})["structuredContent"]
            assert (found["id"], found["text"]) == (hit["id"], hit["text"])
        assert call("fetch", {"id": '"half'})["structuredContent"]["text"] == "Tyres wear."
        assert "id: " in call("fetch", {"id": None})["content"][0]["text"]
        long = call("embed", {"texts": [LONG]})["content"][0]["text"]
        assert long.endswith("; shorten it")


def _mounted(folder, model):
    return Mounted.open("i", folder, list(Models.of({"tiny": model}).embedders.values()))
