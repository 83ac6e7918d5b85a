"""How much of what an endpoint can serve a job of `embedlm synthesize` asks of it.

    python benchmarks/synthesis_speed.py [--requests 2000] [--concurrency 16] [--delay 0.1]

A server on loopback answers each request after the same delay, so that with so many requests in
flight it can serve concurrency / delay a second. It runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import embedlm
from embedlm.generation import EndpointGenerator

STEPS = [
    {"kind": "generate", "prompt": "Passage: {passage}\nQuestion:", "into": "query"},
    {"kind": "check", "fields": ["query"], "words": [3, 20]},
    {"kind": "write"},
]


def serve(delay: float, port: Any) -> None:
    """Answer chat completions for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(delay)
            message = {"role": "assistant", "content": f"what is number {body['seed']} about"}
            answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1}
            answer |= {"model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 6}}
            answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            payload = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


def main() -> None:
    """Time one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.1)
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(given.delay, there), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    rows = [{"id": str(i), "text": f"passage number {i}"} for i in range(given.requests)]
    with tempfile.TemporaryDirectory() as name:
        os.environ["EMBEDLM_CACHE"] = name
        writer = EndpointGenerator(url, "m", concurrency=given.concurrency)
        # What a process does once, to load packages and to open connections, is not counted.
        embedlm.synthesize({"steps": STEPS}, ["a first passage"], llm=writer)
        start = time.perf_counter()
        made = embedlm.synthesize({"steps": STEPS}, rows, llm=writer, output=Path(name) / "o.jsonl")
        took = time.perf_counter() - start
    process.terminate()
    least = given.requests * given.delay / given.concurrency
    print(f"{made.report['written']} records in {took:.1f} s; the endpoint needs {least:.1f} s")
    print(f"{least / took:.1%} of what it can serve with {given.concurrency} requests in flight")


if __name__ == "__main__":
    main()
