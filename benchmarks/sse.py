"""CPU per event of an `SSEConsumer` against bare aiohttp-sse-client, in one run.

    python -m benchmarks.sse [EVENTS] [ROUNDS]

Each side reads the same stream in a separate process: events with an id, a name and 120 bytes of
JSON, fifty to a chunk, and reads them into the same pydantic model. Rounds alternate between the
sides, the order drawn each time; the ratio is taken within a round, and the median of the
rounds counts.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import suppress

from aiohttp_sse_client.client import EventSource
from pydantic import BaseModel

from workerkit import Runner, SSEConsumer, WorkerContainer

EVENTS_A_CHUNK = 50
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps({"id": 1, "item": "x" * 40, "quantity": 3, "note": "y" * 30})


class Order(BaseModel):
    """The body."""

    id: int
    item: str
    quantity: int
    note: str


class Count(SSEConsumer, abstract=len(sys.argv) > 1 and sys.argv[1] != "workerkit"):
    """Counts events, and stops the clock at the last one."""

    def __init__(self) -> None:
        self.clock = Clock(int(sys.argv[2]))

    async def handle(self, order: Order) -> None:
        """Count."""
        self.clock.tick(order)


class Clock:
    """CPU from the first event to the last."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.wanted = wanted
        self.began = 0.0

    def tick(self, order: Order) -> None:
        """Count a handled event."""
        assert order.quantity == 3
        if self.left == self.wanted:
            self.began = time.process_time()
        self.left -= 1
        if not self.left:
            micros = (time.process_time() - self.began) / self.wanted * 1e6
            print(f"{micros:.2f}", flush=True)


async def bare(url: str, wanted: int) -> None:
    """aiohttp-sse-client alone: iterate and decode."""
    clock = Clock(wanted)
    async with EventSource(url) as source:
        async for event in source:
            clock.tick(Order.model_validate_json(event.data))


async def ours() -> None:
    """The same with workerkit, in a complete application."""
    async with Runner(WorkerContainer(), packages=["benchmarks.sse"]).running():
        await asyncio.sleep(3600)


async def serve(count: int) -> None:
    """Send *count* events to each client, and then nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD)
            for first in range(0, count, EVENTS_A_CHUNK):
                numbers = range(first, min(first + EVENTS_A_CHUNK, count))
                texts = [f"id: {n}\nevent: placed\ndata: {BODY}\n\n" for n in numbers]
                chunk = "".join(texts).encode()
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await writer.drain()
            await reader.read()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measure(side: str, url: str, count: int) -> float:
    """Return microseconds of CPU per event that a process of this *side* takes."""
    environment = {**os.environ, "WORKERKIT_SSE__DEFAULT__URL": url}
    command = [sys.executable, "-m", "benchmarks.sse", side, str(count), url]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        micros = float(process.stdout.readline())
        process.kill()
    return micros


def main(count: int = 50_000, rounds: int = 5) -> None:
    """Print the figures of each round, and the ratio."""
    ratios = []
    command = [sys.executable, "-m", "benchmarks.sse", "serve", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        for _ in range(rounds):
            sides = ["workerkit", "aiohttp-sse-client"]
            random.shuffle(sides)
            micros = {side: measure(side, url, count) for side in sides}
            ratios.append(micros["workerkit"] / micros["aiohttp-sse-client"])
            print({side: micros[side] for side in sorted(micros)}, f"ratio {ratios[-1]:.3f}")
        server.kill()
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["aiohttp-sse-client"]:
        asyncio.run(bare(sys.argv[3], int(sys.argv[2])))
    elif sys.argv[1:2] == ["workerkit"]:
        asyncio.run(ours())
    elif sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(int(sys.argv[2])))
    else:
        main(*(int(each) for each in sys.argv[1:]))
