"""Index a few of this project's guides, serve them, ask over HTTP and as an agent would (MCP).

    make serve-demo

With `--stay` the server stays up until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import mcp

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("mcp", "search", "serve")
"""Few, so that two busy cores do it in two minutes; `embedlm index docs` takes all pages."""
QUESTION = "How does the server stop?"
AGENT_QUESTION = "May several processes open one index?"


def post(url: str, body: dict[str, Any]) -> Any:
    """Return the answer to a request."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


async def as_agent(url: str) -> Any:
    """Return the best hit that the MCP tool `search` finds."""
    async with mcp.Client(f"{url}/mcp") as client:
        found = await client.call_tool("search", {"query": AGENT_QUESTION, "k": 1})
        return found.structured_content["hits"][0]


def show(url: str, question: str, hit: dict[str, Any]) -> None:
    """Print a question and the passage that answers it, without the headings above it."""
    passage = hit["text"].partition("\n")[2] or hit["text"]
    print(f"\n{url}: {question}\n  {hit['file']}")
    print(fill(shorten(passage, 320), 80, initial_indent="  ", subsequent_indent="  "))


def started(index: Path) -> tuple[subprocess.Popen[str], str]:
    """Return a running server and its address."""
    command = [sys.executable, "-m", "embedlm", "serve", "--index", f"docs={index}", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if '"ready"' in line:
            return process, json.loads(line)["url"]
    raise SystemExit("the server did not start")


def main() -> None:
    """Run it."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        guides, index = Path(folder) / "docs", Path(folder) / "docs.index"
        guides.mkdir()
        for page in PAGES:
            shutil.copy(DOCS / f"{page}.md", guides)
        command = [sys.executable, "-m", "embedlm", "index", str(guides), "-o", str(index)]
        subprocess.run(command, check=True)
        server, url = started(index)
        try:
            vector = post(f"{url}/v1/embeddings", {"input": QUESTION})["data"][0]["embedding"]
            print(f"{url}/v1/embeddings: {len(vector)} numbers, the first {vector[0]:.4f}")
            (hit,) = post(f"{url}/v1/search", {"query": QUESTION, "top_k": 1})["hits"]
            show(f"{url}/v1/search", QUESTION, hit)
            show(f"{url}/mcp", AGENT_QUESTION, asyncio.run(as_agent(url)))
            seconds = time.perf_counter() - begun
            print(f"\n{seconds:.0f} s; {url}/ is the page, {url}/docs the routes")
            if "--stay" in sys.argv:
                server.wait()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
