"""Agents get the library's own hits and vectors, over HTTP and over standard input and output."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import embedlm
from embedlm.search import Index, build_index
from embedlm.serving import Mounted
from tests.command import ROOT
from tests.serving.conftest import running

mcp = pytest.importorskip("mcp", reason="needs the extra mcp")
pytest.importorskip("mcp.server.mcpserver", reason="needs mcp 2.3")
pytest.importorskip("fastapi", reason="needs the extra serve")

TEXTS = ["Plants make food.", "A dog runs."]
QUERY = "Which sugar stores energy?"


async def asked(server, index, model):
    """Use every tool of a server, and compare with the library."""
    async with mcp.Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"search", "fetch", "embed", "similarity"}
        for tool in tools.values():
            assert tool.annotations.read_only_hint is True
            assert tool.output_schema["properties"]
            assert tool.input_schema["additionalProperties"] is False
        with Index.open(index, model) as opened:
            expected = [(str(hit.id), hit.score) for hit in opened.search(QUERY, 2)]
        found = (await client.call_tool("search", {"query": QUERY, "k": 2})).structured_content
        assert [hit["id"] for hit in found["hits"]] == [identity for identity, _ in expected]
        scores = [hit["score"] for hit in found["hits"]]
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-5)
        where = {"type": "eq", "key": "year", "value": 2001}
        call = {"query": QUERY, "filters": where, "mode": "bm25", "k": 5}
        found = (await client.call_tool("search", call)).structured_content
        assert {hit["metadata"]["year"] for hit in found["hits"]} <= {2001}
        document = (await client.call_tool("fetch", {"id": "7"})).structured_content
        assert (document["text"], document["metadata"]["year"]) == (
            "Plants make food from sunlight.",
            2001,
        )
        vectors = (await client.call_tool("embed", {"texts": TEXTS})).structured_content
        dense = model.encode(TEXTS, heads="dense")
        np.testing.assert_allclose(vectors["vectors"], dense, atol=2e-6)
        both = {"a": TEXTS[:1], "b": TEXTS}
        scores = (await client.call_tool("similarity", both)).structured_content["scores"]
        np.testing.assert_allclose(scores, model.similarity(dense[:1], dense), atol=1e-5)
        for name, call, told in (
            ("fetch", {"id": "none"}, "no document"),
            ("fetch", {"id": "²"}, "no document"),
            ("fetch", {"id": "--7"}, "no document"),
            ("fetch", {"id": "07"}, "no document"),
            ("fetch", {"id": "7" * 5000}, "no document"),
            ("embed", {"texts": []}, "no text"),
            ("search", {"query": " "}, "empty"),
            ("search", {"query": "a", "mode": "nope"}, "mode"),
            ("embed", {"texts": ["a"], "role": "nope"}, "role"),
            ("embed", {"texts": [5]}, "texts.0: "),
            ("embed", {}, "texts: "),
            ("search", {"query": "a", "k": 0}, "k is 0"),
            ("search", {"query": "a", "k": True}, "k: Input should be a number"),
            ("search", {"query": "a", "k": "true"}, "k: "),
            ("search", {"query": "a", "mode": ""}, "mode '' is not known"),
            ("fetch", {"id": True}, "id: Input should be a text or a whole number"),
            ("search", {"query": "a", "top_k": 1}, "no option 'top_k'"),
            ("similarity", {"a": ["a"], "b": ["a"], "role": "query"}, "no option 'role'"),
            ("fetch", {"ids": ["7"]}, "Did you mean 'id'"),
            ("nope", {"a": 1}, "Unknown tool"),
        ):
            answer = await client.call_tool(name, call)
            assert answer.is_error
            assert told in answer.content[0].text
            assert "\n" not in answer.content[0].text


def test_http(place, index, model):
    asyncio.run(asked(f"{place.url}/mcp", index, model))


LIKE_JSON = ["null", "true", "5", "[1]", '{"a": 1}', '"quoted"']


@pytest.fixture(scope="module")
def instructed(tiny_llama):
    """Return a model whose prompt has a place for an instruction."""
    recipe = embedlm.Recipe.load("plain-mean").override(
        {"prompt.query": "{instruction}: {text}", "prompt.default": "{instruction}: {text}"}
    )
    return embedlm.load(tiny_llama, recipe, device="cpu")


@pytest.fixture(scope="module")
def tools(instructed, tmp_path_factory):
    """Return a caller of the tools of a server, whose index has ids that look like JSON."""
    folder = tmp_path_factory.mktemp("mcp")
    ids = [17, "17", "18", *LIKE_JSON]
    records = [{"id": one, "text": f"the word {one!r}"} for one in ids]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    build_index(folder / "corpus.jsonl", folder / "notes.index", instructed, store="exact")
    notes = Mounted.open("notes", folder / "notes.index")

    async def asking(url, name, call):
        async with mcp.Client(url) as client:
            return await client.call_tool(name, call)

    with running({"tiny": instructed}, {"notes": notes}) as found:
        yield lambda name, **call: asyncio.run(asking(f"{found.url}/mcp", name, call))


@pytest.mark.parametrize("text", LIKE_JSON)
def test_a_text_that_looks_like_json_stays_that_text(tools, instructed, text):
    found = tools("embed", texts=[text, "a"], instruction=text).structured_content["vectors"]
    expected = instructed.encode([text, "a"], instruction=text, heads="dense")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(expected - instructed.encode([text, "a"], heads="dense")).max() > 1e-3
    found = tools("embed", texts=["a"], role="query", instruction=text).structured_content
    expected = instructed.encode_query(["a"], instruction=text, heads="dense")
    np.testing.assert_allclose(found["vectors"], expected, atol=2e-6)
    scores = tools("similarity", a=[text], b=["a", text]).structured_content["scores"]
    dense = instructed.encode(["a", text], heads="dense")
    np.testing.assert_allclose(scores, instructed.similarity(dense[1:], dense), atol=1e-5)
    hits = tools("search", query=text, mode="bm25").structured_content["hits"]
    assert hits
    assert {hit["text"] for hit in hits} <= {f"the word {one!r}" for one in (17, "17", *LIKE_JSON)}
    for name, call in (
        ("embed", {"texts": ["a"], "role": text}),
        ("embed", {"texts": ["a"], "model": text}),
        ("similarity", {"a": ["a"], "b": ["a"], "model": text}),
        ("search", {"query": "a", "mode": text}),
        ("search", {"query": "a", "index": text}),
        ("fetch", {"id": "17", "index": text}),
    ):
        answer = tools(name, **call)
        assert answer.is_error, (name, call)
        assert repr(text) in answer.content[0].text


def test_what_is_no_text_may_be_sent_as_json_in_a_text(tools, instructed):
    found = tools("embed", texts='["null", "5"]').structured_content["vectors"]
    expected = instructed.encode(["null", "5"], heads="dense")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    where = '{"type": "eq", "key": "year", "value": 2001}'
    assert tools("search", query="word", k="5", filters=where).structured_content == {"hits": []}
    assert len(tools("search", query="word", k="5").structured_content["hits"]) == 5
    assert len(tools("search", query="word", k=2.0).structured_content["hits"]) == 2
    assert tools("search", query="word", filters=None).structured_content["hits"]


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (17, 17),
        ("17", 17),
        ('"17"', "17"),
        (18, "18"),
        ("18", "18"),
        ("null", "null"),
        ("true", "true"),
        ("[1]", "[1]"),
        (5, "5"),
        ('"quoted"', '"quoted"'),
    ],
)
def test_an_id_is_a_number_or_a_text(tools, sent, found):
    document = tools("fetch", id=sent).structured_content
    assert document["text"] == f"the word {found!r}"
    assert tools("fetch", id=document["id"]).structured_content == document


def test_an_id_that_no_document_has(tools):
    for sent in (7, -1, 10**40, 1.5, False, ["17"], {"id": 17}):
        assert tools("fetch", id=sent).is_error


def test_a_page_of_another_site_cannot_ask(place):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = "application/json, text/event-stream"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert place.post("/mcp", body, Accept=accept, **headers).status in (403, 421)


def test_standard_input_and_output(index, model):
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "embedlm.cli", "mcp", str(index)],
        cwd=str(ROOT),
        env=dict(os.environ),
    )
    asyncio.run(asyncio.wait_for(asked(server, index, model), 120))  # a hang is a failure


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_though_standard_input_stays_open(sent, index):
    command = [sys.executable, "-m", "embedlm.cli", "mcp", str(index)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, **pipes) as started:
        try:
            started.stdin.write(b"no JSON\n" + json.dumps(hello).encode() + b"\n")
            started.stdin.flush()
            assert json.loads(started.stdout.readline())["id"] == 0
            started.send_signal(sent)
            assert started.wait(60) == 0
            assert b"Traceback" not in started.stderr.read()
        finally:
            started.kill()
