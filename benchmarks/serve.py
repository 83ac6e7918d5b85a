"""Throughput and latency of a server over HTTP, against the library on the same texts offline.

    python benchmarks/serve.py [--model MODEL] [--connections 64] [--texts 4000] [--each 1]
                               [--rounds 3]
    python benchmarks/serve.py --model FOLDER --peer venv-infinity/bin/infinity_emb

The server runs in a process of its own. A closed loop of many connections, each of one request at
a time (of one text, or `--each` of them), gives the throughput as a share of the library's: they
run in turn, after a warm-up of both, and medians are told. An open loop at 70 % of that rate gives
the latency, which a closed loop would hide. Every vector is
compared with the library's. With `--peer` the same texts then go to infinity-emb (0.0.78, in an
environment of its own) with the same model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

import embedlm

WORDS = "river mountain water bridge quick brown fox jumps lazy dog winter engine music trade"
SHARE = 0.7
"""Of the measured throughput, for the open loop."""
WARM = 1000
"""Texts that both run before they are measured."""


def mixed(count: int, longest: int) -> list[str]:
    """Return texts of 3 to `longest` words, evenly in the logarithm of their length."""
    rng = random.Random(1)
    lengths = [int(3 * (longest / 3) ** rng.random()) for _ in range(count)]
    return [f"{at} " + " ".join(rng.choices(WORDS.split(), k=n)) for at, n in enumerate(lengths)]


def requests_of(texts: Sequence[str], each: int) -> list[Sequence[str]]:
    """Return the texts of each request."""
    return [texts[at : at + each] for at in range(0, len(texts), each)]


def request_of(texts: Sequence[str], path: str) -> bytes:
    """Return a request as it is sent."""
    body = json.dumps({"inputs" if path == "/embed" else "input": texts}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A kept connection, without a client library's costs: it runs on the server's own cores."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._line: Any = None
        self._answer: Any = None
        self._parts: list[bytes] = []
        self._missing = 0

    async def send(self, request: bytes) -> bytes:
        """Return the answer to a request, as it came."""
        loop = asyncio.get_running_loop()
        if self._line is None:
            self._line, _ = await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        self._answer, self._parts, self._missing = loop.create_future(), [], 0
        self._line.write(request)
        return bytes(await self._answer)

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        head, end, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if not end:
            return
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        self._missing = size - len(body)
        if self._missing <= 0:
            good = b" 200 " in head.split(b"\r\n")[0]
            done = self._answer.set_result if good else self._answer.set_exception
            done(body if good else RuntimeError(body.decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who still waits for an answer."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the line"))


def vectors_of(answer: bytes) -> list[list[float]]:
    """Return the vectors of an answer."""
    read = json.loads(answer)
    return read if isinstance(read, list) else [one["embedding"] for one in read["data"]]


async def closed_loop(
    port: int, texts: Sequence[str], connections: int, path: str = "/embed", each: int = 1
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the seconds for all texts, and their vectors."""
    requests = [request_of(some, path) for some in requests_of(texts, each)]
    answers = [b""] * len(requests)
    left = iter(range(len(requests)))

    async def worker() -> None:
        connection = Connection(port)
        for at in left:
            answers[at] = await connection.send(requests[at])

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(connections)))
    seconds = time.perf_counter() - begun
    return seconds, np.array([vector for answer in answers for vector in vectors_of(answer)])


async def open_loop(port: int, texts: Sequence[str], rate: float, each: int = 1) -> list[float]:
    """Return the seconds of each answer to requests that arrive at random (Poisson).

    `rate` is that of texts, and each request has `each` of them.
    """
    rng = random.Random(2)
    free: list[Connection] = []

    async def one(request: bytes) -> float:
        begun = time.perf_counter()
        connection = free.pop() if free else Connection(port)
        await connection.send(request)
        free.append(connection)
        return time.perf_counter() - begun

    tasks = []
    requests = [request_of(some, "/embed") for some in requests_of(texts, each)]
    due = time.perf_counter()
    for request in requests:
        due += rng.expovariate(rate / each)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(request)))
    return list(await asyncio.gather(*tasks))


def started(model: str | None, *options: str) -> tuple[subprocess.Popen[str], int, float]:
    """Return a server, its port, and the seconds until it was ready."""
    names = [] if model is None else [model]
    command = [sys.executable, "-m", "embedlm.cli", "serve", *names, "--port", "0", *options]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if '"ready"' in line:
            seconds = time.perf_counter() - begun
            return process, int(json.loads(line)["url"].rpartition(":")[2]), seconds
    raise RuntimeError("the server did not start")


def peer(
    program: str, model: str, texts: Sequence[str], connections: int, each: int
) -> tuple[float, Any]:
    """Return the texts a second that infinity-emb serves, and their vectors."""
    port = 7997
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
    command = [program, "v2", "--model-id", model, "--port", str(port), *options]
    settings = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        [*command, "--no-model-warmup"], env={**os.environ, **settings}, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                uvloop.run(Connection(port).send(request_of(["a"], "/embeddings")))
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("infinity-emb did not start") from None
                time.sleep(0.2)
        uvloop.run(closed_loop(port, texts[:64], connections, "/embeddings"))
        loop = closed_loop(port, texts, connections, "/embeddings", each)
        seconds, vectors = uvloop.run(loop)
        return len(texts) / seconds, vectors
    finally:
        process.terminate()
        process.wait(30)


class Server:
    """A server in a process of its own, whose log is read and dropped."""

    def __init__(self, model: str | None) -> None:
        self._process, self.port, self.ready = started(model)
        self._drain = asyncio.new_event_loop()
        lines = self._process.stderr or ()
        self._reader = self._drain.run_in_executor(None, lambda: [None for _ in lines])

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._drain.run_until_complete(self._reader)


def offline(model: Any, texts: Sequence[str]) -> tuple[float, Any]:
    """Return the library's texts a second, and their vectors."""
    begun = time.perf_counter()
    vectors = model.encode(texts, show_progress=False, normalize=True)
    return len(texts) / (time.perf_counter() - begun), vectors


def compared(given: argparse.Namespace, texts: Sequence[str], model: Any) -> tuple[float, Any]:
    """Measure library and server in turn, and print; the server's texts a second, and vectors."""
    server = Server(given.model)
    try:
        model.encode(texts[:WARM], show_progress=False)
        uvloop.run(closed_loop(server.port, texts[:WARM], given.connections, each=given.each))
        own, served = [], []
        for _ in range(given.rounds):
            rate, expected = offline(model, texts)
            own.append(rate)
            loop = closed_loop(server.port, texts, given.connections, each=given.each)
            seconds, vectors = uvloop.run(loop)
            served.append(len(texts) / seconds)
        rate = SHARE * float(np.median(served))
        took = uvloop.run(open_loop(server.port, texts[: int(10 * rate)], rate, given.each))
    finally:
        server.close()
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    shares = np.array(served) / np.array(own)
    print(f"ready in {server.ready:.1f} s")
    print(
        f"offline {np.median(own):,.0f} texts/s, served {np.median(served):,.0f} texts/s over "
        f"{given.connections} connections of {given.each} texts a request: {np.median(shares):.2f} "
        f"({shares.min():.2f} to {shares.max():.2f})"
    )
    print(f"open loop at {SHARE:.0%}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {p99 / p50:.1f} times")
    print(f"largest difference of a vector: {np.abs(vectors - expected).max():.1e}")
    return float(np.median(served)), expected


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="without it the built-in one")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--each", type=int, default=1, help="texts of a request")
    parser.add_argument("--longest", type=int, default=200, help="words of a text")
    parser.add_argument("--rounds", type=int, default=3, help="of library and server in turn")
    parser.add_argument("--peer", help="the program infinity_emb, to be measured too")
    given = parser.parse_args()
    texts = mixed(given.texts, given.longest)
    served, expected = compared(given, texts, embedlm.load(given.model))
    if given.peer is not None:
        sys.stdout.flush()
        rate, others = peer(given.peer, given.model, texts, given.connections, given.each)
        cosine = (others * expected).sum(1) / np.linalg.norm(others, axis=1)
        print(
            f"infinity-emb {rate:,.0f} texts/s: ours is {served / rate:.1f} times as fast; the "
            f"smallest cosine of its vectors with ours {cosine.min():.5f}"
        )


if __name__ == "__main__":
    main()
