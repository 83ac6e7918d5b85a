"""How much of what an endpoint can serve a job of `embedlm synthesize` asks of it.

    python benchmarks/synthesis_speed.py [--setting MS:SLOTS:REQUESTS[:uneven] ...] [--out FILE]

An endpoint on loopback, in a process of its own, answers each request after its latency, so that
with so many slots (requests in flight) it needs the sum of the latencies / slots at least: the
ideal time. A job is timed from its call to its finished files; the second column is a client that
does nothing but send as many requests over as many connections. What both lose to the ideal time
is the machine's doing (the endpoint shares its cores), what the job loses beyond it is its own.

`uneven` latencies differ as those of a language model do: a quarter of the mean at least, six
times the mean now and then. Language models take 0.2 s to 20 s a request. The last setting, 0.1 s,
leaves 6 ms for a record with 16 slots, and 1.6 ms with 64: that measures the processor, too.

An answer is sent as one piece. A server that sends its head and its body apart (Python's
`http.server`, as it is) makes its client's system wait for more: 44 ms a request on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import embedlm
from embedlm.generation import EndpointGenerator

STEPS = [
    {"kind": "generate", "prompt": "Passage: {passage}\nQuestion:", "into": "query"},
    {"kind": "check", "fields": ["query"], "words": [3, 20]},
    {"kind": "write"},
]
SETTINGS = ["200:16:1000", "100:16:2000", "200:64:4000", "200:64:4000:uneven", "100:64:4000"]
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Setting:
    """An endpoint, and how much is asked of it."""

    name: str
    latency: float
    slots: int
    requests: int
    uneven: bool

    @classmethod
    def of(cls, name: str) -> Setting:
        """Read MS:SLOTS:REQUESTS[:uneven]."""
        milliseconds, slots, requests, *uneven = name.split(":")
        return cls(name, int(milliseconds) / 1000, int(slots), int(requests), bool(uneven))


# -- the endpoint ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Endpoint:
    """Answers chat completions, each after its latency."""

    setting: Setting
    asked: list[float] = field(default_factory=list)
    """The latency of each request."""
    taken: list[float] = field(default_factory=list)
    """Seconds after which it was answered."""
    at_once: int = 0
    most: int = 0

    def latency(self, seed: int) -> float:
        """Return the latency of a request."""
        mean = self.setting.latency
        if not self.setting.uneven:
            return mean
        return mean * (0.25 + 0.75 * random.Random(seed).expovariate(1.0))

    async def serve(self, port: Any) -> None:
        """Tell the port, and answer for ever."""
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
                body = json.loads(await reader.readexactly(int(length)))
                answer = self.told() if "seed" not in body else await self.answered(body["seed"])
                payload = json.dumps(answer).encode()
                writer.write(REPLY % len(payload) + payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answered(self, seed: int) -> dict[str, Any]:
        """Return an answer after its latency."""
        begun, latency = time.perf_counter(), self.latency(seed)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(latency)
        self.at_once -= 1
        self.asked.append(latency)
        self.taken.append(time.perf_counter() - begun)
        message = {"role": "assistant", "content": f"what is number {seed} about"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 9, "completion_tokens": 6}
        about = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return {**about, "usage": usage, "choices": [choice]}

    def told(self) -> dict[str, Any]:
        """Return what was measured since it was asked last."""
        told = {
            "ideal": sum(self.asked) / self.setting.slots,
            "latency": sum(self.taken) / max(1, len(self.taken)),
            "most": self.most,
        }
        self.asked, self.taken, self.most = [], [], 0
        return told


def run_endpoint(setting: Setting, port: Any) -> None:
    """Serve in this process."""
    asyncio.run(Endpoint(setting).serve(port))


# -- its clients ----------------------------------------------------------------------------------


def connection(port: int) -> HTTPConnection:
    """Return an open connection that sends at once."""
    line = HTTPConnection("127.0.0.1", port)
    line.connect()
    line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def post(line: HTTPConnection, body: dict[str, Any]) -> Any:
    """Return the answer to a request."""
    headers = {"Content-Type": "application/json"}
    line.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return json.loads(line.getresponse().read())


def bare(setting: Setting, port: int) -> None:
    """Send the requests and do nothing with the answers."""
    lines = [connection(port) for _ in range(setting.slots)]
    seeds, lock = iter(range(setting.requests)), threading.Lock()

    def next_seed() -> int | None:
        with lock:
            return next(seeds, None)

    def work(line: HTTPConnection) -> None:
        while (seed := next_seed()) is not None:
            chat = [{"role": "user", "content": f"Passage: passage number {seed}\nQuestion:"}]
            post(line, {"model": "m", "messages": chat, "seed": seed})

    threads = [threading.Thread(target=work, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def job(setting: Setting, port: int) -> Callable[[], None]:
    """Return a call that synthesizes the records."""
    folder = Path(os.environ["EMBEDLM_CACHE"])
    url = f"http://127.0.0.1:{port}/v1"
    writer = EndpointGenerator(url, "m", concurrency=setting.slots)
    rows = [{"id": str(i), "text": f"passage number {i}"} for i in range(setting.requests)]
    # What a process does once, to load packages and to open connections, is not counted.
    warm = [f"a first passage {i}" for i in range(2 * setting.slots)]
    embedlm.synthesize({"steps": STEPS}, warm, llm=writer)

    def run() -> None:
        output = folder / "records.jsonl"
        made = embedlm.synthesize({"steps": STEPS}, rows, llm=writer, output=output)
        if made.report["written"] != setting.requests:
            raise SystemExit(f"{made.report['written']} of {setting.requests} records were written")

    return run


def timed(call: Callable[[], None], line: HTTPConnection) -> dict[str, float]:
    """Return what a client took, and what the endpoint tells of it."""
    post(line, {})
    start, cpu = time.perf_counter(), time.process_time()
    call()
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"took": took, "cpu": cpu, **post(line, {})}


def measure(setting: Setting) -> dict[str, Any]:
    """Return what both clients took."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=run_endpoint, args=(setting, there), daemon=True)
    process.start()
    port = here.recv()
    line = connection(port)
    try:
        with tempfile.TemporaryDirectory() as name:
            os.environ["EMBEDLM_CACHE"] = name
            ours = timed(job(setting, port), line)
        return {
            "setting": setting.name,
            "job": ours,
            "bare": timed(lambda: bare(setting, port), line),
        }
    finally:
        process.terminate()


def table(rows: Iterator[dict[str, Any]]) -> None:
    """Print a row for each setting."""
    print(
        "| latency | slots | requests | ideal s | bare client s | of ideal | job s | of ideal "
        "| most in flight | CPU ms a record |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        setting, ours, other = Setting.of(row["setting"]), row["job"], row["bare"]
        uneven = ", uneven" if setting.uneven else ""
        print(
            f"| {setting.latency * 1000:.0f} ms{uneven} | {setting.slots} | {setting.requests:,} | "
            f"{ours['ideal']:.2f} | {other['took']:.2f} | {other['ideal'] / other['took']:.1%} | "
            f"{ours['took']:.2f} | {ours['ideal'] / ours['took']:.1%} | {ours['most']} | "
            f"{ours['cpu'] / setting.requests * 1000:.2f} |",
            flush=True,
        )


def main() -> None:
    """Time a job, and a bare client, for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", action="append", help="MS:SLOTS:REQUESTS[:uneven]")
    parser.add_argument("--out", type=Path, help="takes the rows as JSON, too")
    given = parser.parse_args()

    def rows() -> Iterator[dict[str, Any]]:
        for name in given.setting or SETTINGS:
            row = measure(Setting.of(name))
            if given.out is not None:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            yield row

    table(rows())


if __name__ == "__main__":
    main()
