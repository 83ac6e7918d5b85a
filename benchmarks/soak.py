"""Minutes of mixed load with faults: every answer is checked against the library's vectors.

    python -m benchmarks.soak [--minutes 20] [--rate 4]

The server runs in a process of its own. Beside good requests in four forms come malformed and
oversized bodies, clients that are slow, leave or close one half, and now and then ten times the
load that it is given time for. Nothing may be wrong or lost: a good request gets its vectors, or is
told to come again (429) and does. The memory of the server is told at the start and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import embedlm
from benchmarks.serve import mixed, started

Texts = dict[str, npt.NDArray[np.float32]]
CLOSE = 1e-5
"""The most by which a number of a vector may differ."""
CALM = 60
"""Seconds from the start after which memory is told: what is made once is made by then."""


class WrongError(Exception):
    """An answer that is wrong, or none."""


async def sent(port: int, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    more = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head += "".join(f"{name}: {value}\r\n" for name, value in more.items())
    try:
        writer.write(head.encode() + b"\r\n" + body)
        answer = await asyncio.wait_for(reader.read(), 120)
    finally:
        writer.close()
    first, _, rest = answer.partition(b"\r\n\r\n")
    if not first:
        raise WrongError("no answer")
    return int(first.split()[1]), json.loads(rest or b"null")


def openai(found: Any) -> list[Any]:
    """Return the vectors of an answer in OpenAI's form."""
    return [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in found["data"]]


FORMS: list[tuple[str, Callable[[list[str]], Any], Callable[[Any], list[Any]]]] = [
    ("/embed", lambda texts: {"inputs": texts}, list),
    ("/v1/embeddings", lambda texts: {"input": texts, "encoding_format": "base64"}, openai),
    (
        "/v2/embed",
        lambda texts: {"input_type": "clustering", "texts": texts},
        lambda found: list(found["embeddings"]["float"]),
    ),
    (
        "/v1/encode",
        lambda texts: {"texts": texts, "heads": ["dense"]},
        lambda found: list(found["outputs"]["dense"]),
    ),
]


class Soak:
    """A server under load, and what became of each request."""

    def __init__(self, port: int, known: Texts, seed: int = 0) -> None:
        self.port, self.known = port, known
        self.texts = list(known)
        self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (3, self.malformed),
            (1, self.oversized),
            (1, self.slow),
            (3, self.leaves),
            (2, self.half),
            (1, self.short_of_time),
        ]

    async def good(self) -> None:
        """Ask for vectors, again where the server is full, and compare them."""
        texts = self.rng.sample(self.texts, self.rng.choice([1, 1, 1, 2, 4, 8]))
        path, body, vectors = self.rng.choice(FORMS)
        for _ in range(60):
            status, found = await sent(self.port, path, json.dumps(body(texts)).encode())
            if status != 429:
                break
            self.seen["told to come again"] += 1
            await asyncio.sleep(1 + self.rng.random())
        if status != 200:
            raise WrongError(f"{path} gave {status}: {found}")
        expected = np.array([self.known[text] for text in texts])
        away = np.abs(np.array(vectors(found)) - expected).max()
        if away > CLOSE:
            raise WrongError(f"{path} gave another vector: {away:.1e} away")
        self.seen["good, and right"] += 1

    async def malformed(self) -> None:
        """Send what no one can read; it is refused."""
        body = self.rng.choice(
            [b"", b"{", b"[]", b"\xff", b'{"inputs": 5}', b'{"inputs": ""}', b'{"inputs": [""]}']
        )
        status, _ = await sent(self.port, "/embed", body)
        self._expect("malformed", status, 400)

    async def oversized(self) -> None:
        """Say that a body is larger than allowed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        self._expect("oversized", int(answer.split()[1]), 413)

    async def slow(self) -> None:
        """Send the headers a byte at a time; the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        begun = time.monotonic()
        writer.write(b"GET /health HTTP/1.1\r\nx-slow: ")
        try:
            while not reader.at_eof() and time.monotonic() - begun < 60:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(1)
        except ConnectionError:
            pass
        writer.close()
        if time.monotonic() - begun >= 60:
            raise WrongError("a slow client was served for a minute")
        self.seen["slow, and closed"] += 1

    async def leaves(self) -> None:
        """Ask, and go before the answer."""
        await self._begun(1.0)
        self.seen["left"] += 1

    async def half(self) -> None:
        """Ask and close one half, as those do who have left; either end is right."""
        reader, writer = await self._begun(None)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 120)
        writer.close()
        self.seen["half closed"] += 1

    async def short_of_time(self) -> None:
        """Ask for an answer in no time; it comes, or 504 does."""
        body = json.dumps({"inputs": self.rng.sample(self.texts, 16)}).encode()
        status, _ = await sent(self.port, "/embed", body, **{"x-embedlm-timeout": "0.01"})
        self._expect("short of time", status, 504, 200, 429)

    async def _begun(self, stay: float | None) -> tuple[Any, Any]:
        body = json.dumps({"inputs": self.rng.sample(self.texts, 8)}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        await writer.drain()
        if stay is not None:
            await asyncio.sleep(self.rng.random() * stay / 10)
            writer.transport.abort()
        return reader, writer

    def _expect(self, what: str, status: int, *allowed: int) -> None:
        if status not in allowed:
            raise WrongError(f"{what} gave {status}")
        self.seen[f"{what}: {status}"] += 1

    async def run(self, seconds: float, rate: float) -> None:
        """Send requests at random moments, `rate` a second, and for a tenth of it ten times so."""
        weights = [weight for weight, _ in self.faults]
        tasks: set[asyncio.Task[None]] = set()
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            # Three seconds of each two minutes are the overload.
            rush = 10 if now % 120 > 117 else 1
            await asyncio.sleep(self.rng.expovariate(rate * rush))
            fault = self.rng.random() < 0.25
            one = self.rng.choices(self.faults, weights)[0][1] if fault else self.good
            tasks.add(asyncio.ensure_future(self._kept(one)))
            tasks = {task for task in tasks if not task.done()}
        await asyncio.gather(*tasks)

    async def _kept(self, one: Callable[[], Awaitable[None]]) -> None:
        try:
            await one()
        except Exception as error:
            self.seen["WRONG"] += 1
            print(f"{one.__name__}: {type(error).__name__}: {error}", flush=True)


def memory(pid: int) -> float:
    """Return the megabytes that a process has in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Run it; the exit status is 1 where an answer was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=4, help="requests a second")
    parser.add_argument("--model", help="without it the built-in one")
    given = parser.parse_args()
    texts = mixed(200, 120)
    vectors = embedlm.load(given.model).encode(texts, show_progress=False, normalize=True)
    process, port, _ = started(given.model, "--max-waiting", "24")
    drain = asyncio.new_event_loop()
    lines = process.stderr
    assert lines is not None
    reader = drain.run_in_executor(None, lambda: Counter(map(_level, lines)))
    soak = Soak(port, dict(zip(texts, vectors, strict=True)))
    try:
        asyncio.run(soak.run(min(CALM, given.minutes * 6), given.rate))
        early = memory(process.pid)
        asyncio.run(soak.run(given.minutes * 60 - CALM, given.rate))
        late = memory(process.pid)
    finally:
        process.terminate()
        ended = process.wait(60)
        levels = drain.run_until_complete(reader)
    for what, count in sorted(soak.seen.items()):
        print(f"{count:7,} {what}")
    print(f"memory {early:,.0f} MB after {CALM} s, {late:,.0f} MB at the end; exit status {ended}")
    print(f"log lines by level: {dict(levels)}")
    sys.exit(bool(soak.seen["WRONG"] or ended))


def _level(line: str) -> str:
    return str(json.loads(line)["level"])


if __name__ == "__main__":
    main()
