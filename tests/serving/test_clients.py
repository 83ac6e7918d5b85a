"""Clients of other libraries get the library's own vectors and hits, over real sockets."""

import asyncio
import os
import sys

import numpy as np
import pytest

from embedlm.search import Index
from tests.command import ROOT

TEXTS = ["Plants make food from light.", "A dog runs."]
QUERY = "Which sugar stores energy?"


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-6)


@pytest.mark.filterwarnings("default")
def test_langchain(place, model):
    langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{place.url}/v1", api_key="any", model="tiny", check_embedding_ctx_length=False
    )
    close(embeddings.embed_documents(TEXTS), model.encode(TEXTS, heads="dense"))
    close(embeddings.embed_query(TEXTS[0]), model.encode(TEXTS[0], heads="dense"))


@pytest.mark.filterwarnings("default")
def test_llama_index(place, model):
    reason = "needs llama-index-embeddings-openai-like"
    module = pytest.importorskip("llama_index.embeddings.openai_like", reason=reason)
    embedding = module.OpenAILikeEmbedding(
        model_name="tiny", api_base=f"{place.url}/v1", api_key="any"
    )
    close(embedding.get_text_embedding_batch(TEXTS), model.encode(TEXTS, heads="dense"))
    close(embedding.get_query_embedding(TEXTS[1]), model.encode(TEXTS[1], heads="dense"))


async def as_agent(server, index, model):
    """List and call the tools as an agent of the OpenAI Agents SDK does."""
    async with server:
        tools = {tool.name: tool for tool in await server.list_tools()}
        assert set(tools) == {"search", "fetch", "embed", "similarity"}
        hits = await called(server, "search", {"query": QUERY, "k": 2})
        with Index.open(index, model) as opened:
            expected = opened.search(QUERY, 2)
        assert [hit["id"] for hit in hits["hits"]] == [str(hit.id) for hit in expected]
        close([hit["score"] for hit in hits["hits"]], [hit.score for hit in expected])
        document = await called(server, "fetch", {"id": "g1"})
        assert document["text"] == "Chemical energy is stored in glucose."
        vectors = await called(server, "embed", {"texts": TEXTS})
        close(vectors["vectors"], model.encode(TEXTS, heads="dense"))


async def called(server, name, arguments):
    answer = await server.call_tool(name, arguments)
    return getattr(answer, "structured_content", None) or answer.structuredContent


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["http", "stdio"])
def test_an_agent(way, place, index, model):
    sdk = pytest.importorskip("agents.mcp", reason="needs openai-agents")
    if way == "http":
        server = sdk.MCPServerStreamableHttp({"url": f"{place.url}/mcp"})
    else:
        command = {
            "command": sys.executable,
            "args": ["-m", "embedlm.cli", "mcp", str(index)],
            "env": dict(os.environ),
            "cwd": str(ROOT),
        }
        server = sdk.MCPServerStdio(command, client_session_timeout_seconds=100)
    asyncio.run(asyncio.wait_for(as_agent(server, index, model), 120))
