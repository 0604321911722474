"""CPU per request of an HTTPView against functions of bare aiohttp, in one run.

    python -m benchmarks.http [REQUESTS] [ROUNDS]

Two pairs: a hello, and a JSON body read into a pydantic model and written back. Each side serves
in a separate process, on uvloop; a client in another process keeps 16 connections busy and is
not counted. Rounds alternate between the sides, the order drawn each time; the ratio is taken
within a round, and the median of the rounds counts.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time

import uvloop
from aiohttp import web
from pydantic import BaseModel

from workerkit import HTTPView, Runner, WorkerContainer

CONNECTIONS = 16
BODY = b'{"id": 1, "item": "' + b"x" * 100 + b'", "quantity": 3, "note": "' + b"y" * 44 + b'"}'
HELLO = b"GET /hello HTTP/1.1\r\nHost: benchmark\r\n\r\n"
ORDER = (
    b"POST /orders HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
REQUESTS = {"hello": HELLO, "json": ORDER}


class Order(BaseModel):
    """The body."""

    id: int
    item: str
    quantity: int
    note: str


class Hello(HTTPView):
    """The raw form."""

    routes = ["/hello"]

    async def handle(self, request: web.Request) -> web.Response:
        """Say hello."""
        return web.Response(body=b"Hello world")


class Orders(HTTPView):
    """The typed form."""

    routes = ["/orders"]

    async def post(self, order: Order) -> Order:
        """Return it."""
        return order


class Clock(HTTPView):
    """Returns the CPU time of the process."""

    routes = ["/clock"]

    async def handle(self, request: web.Request) -> web.Response:
        """Return it."""
        return await clock(request)


async def clock(request: web.Request) -> web.Response:
    """Return the CPU time of the process."""
    return web.Response(text=str(time.process_time()))


async def hello(request: web.Request) -> web.Response:
    """Return the same in aiohttp alone."""
    return web.Response(body=b"Hello world")


async def orders(request: web.Request) -> web.Response:
    """... with a body."""
    order = Order.model_validate_json(await request.read())
    return web.Response(
        body=order.__pydantic_serializer__.to_json(order), content_type="application/json"
    )


async def bare() -> None:
    """aiohttp alone."""
    app = web.Application()
    app.router.add_get("/hello", hello)
    app.router.add_post("/orders", orders)
    app.router.add_get("/clock", clock)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site.port, flush=True)
    await asyncio.Event().wait()


async def ours() -> None:
    """The same with workerkit, in a complete application."""
    container = WorkerContainer()
    async with Runner(container, packages=["benchmarks.http"]).running():
        print(container.transports()[HTTPView].url.rpartition(":")[2], flush=True)
        await asyncio.Event().wait()


async def ask(port: int, request: bytes, count: int) -> None:
    """Send *count* requests over one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head[:20], head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def used(port: int) -> float:
    """Return the CPU that the server has used, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /clock HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return float(answer.rpartition(b"\r\n")[2])


async def load(port: int, request: bytes, count: int) -> float:
    """Return microseconds of the server's CPU per request."""
    each = count // CONNECTIONS
    await ask(port, request, 200)
    before = await used(port)
    await asyncio.gather(*(ask(port, request, each) for _ in range(CONNECTIONS)))
    return (await used(port) - before) / (each * CONNECTIONS) * 1e6


def measure(side: str, what: str, count: int) -> float:
    """Return microseconds of CPU per request that a server of this *side* takes."""
    command = [sys.executable, "-m", "benchmarks.http", side]
    environment = {**os.environ, "WORKERKIT_HTTP__PORT": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        micros = uvloop.run(load(port, REQUESTS[what], count))
        process.kill()
    return micros


def main(count: int = 30_000, rounds: int = 5) -> None:
    """Print the figures of each round, and the ratios."""
    for what in REQUESTS:
        ratios = []
        for _ in range(rounds):
            sides = ["workerkit", "aiohttp"]
            random.shuffle(sides)
            micros = {side: round(measure(side, what, count), 2) for side in sides}
            ratios.append(micros["workerkit"] / micros["aiohttp"])
            print(what, {side: micros[side] for side in sorted(micros)}, f"ratio {ratios[-1]:.3f}")
        median = statistics.median(ratios)
        print(f"{what}: median {median:.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["aiohttp"]:
        uvloop.run(bare())
    elif sys.argv[1:2] == ["workerkit"]:
        uvloop.run(ours())
    else:
        main(*(int(each) for each in sys.argv[1:]))
