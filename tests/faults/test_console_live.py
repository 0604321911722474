"""The live stream of the console, over real sockets."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from tests.console import Served, console
from tests.waiting import eventually
from workerkit.console.live import Live
from workerkit.console.model import FleetView

LIVE = "/api/v1/live"
REQUEST = f"GET {LIVE} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()


@asynccontextmanager
async def streams(served: Served, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open streams, and yield what reads their events after the head of each response."""
    url = URL(served.url)
    opened = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**24)
            opened.append((reader, writer))
            writer.write(REQUEST)
        for reader, _ in opened:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10.0)
            assert head.startswith(b"HTTP/1.1 200")
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def event(reader: asyncio.StreamReader) -> FleetView:
    """Return the next event."""
    async with asyncio.timeout(10.0):
        while not (line := await reader.readuntil(b"\n")).startswith(b"data: "):
            assert not reader.at_eof()
    return FleetView.model_validate_json(line.removeprefix(b"data: "))


async def ended(reader: asyncio.StreamReader) -> None:
    """Read until the stream has ended."""
    async with asyncio.timeout(10.0):
        while await reader.read(2**20):
            pass


async def test_all_clients_get_the_same_view() -> None:
    """100 clients get each event, and for each event one view is created."""
    async with console(interval=0.2, max_connections=200) as served:
        async with streams(served, 100) as opened:
            await eventually(lambda: served.console.live.clients == 100)
            await asyncio.gather(*(event(each) for each in opened))
            before = served.overview.views
            events = await asyncio.gather(*(event(each) for each in opened))
            created = served.overview.views - before
        await eventually(lambda: not served.console.live.is_sampling)

    numbers = {int(each.problems[0]) for each in events}
    assert len(numbers) <= 2
    assert created <= 2


async def test_nothing_runs_without_a_client() -> None:
    """Before the first client and after the last one no view is created."""
    async with console(interval=0.02) as served:
        idle = served.console.live.is_sampling, served.overview.views
        async with streams(served, 2) as opened:
            await asyncio.gather(*(event(each) for each in opened))
            active = served.console.live.is_sampling
        await eventually(lambda: served.console.live.clients == 0)
        await eventually(lambda: not served.console.live.is_sampling)
        views = served.overview.views
        async with streams(served, 1) as opened:
            again = await event(opened[0])

    assert (idle, active) == ((False, 0), True)
    assert int(again.problems[0]) > views


async def test_a_client_that_does_not_read_misses_events() -> None:
    """Others get each event; what is kept for the slow one does not grow."""
    async with console(interval=0.02) as served:
        served.overview.size = 500_000
        url = URL(served.url)
        with socket.create_connection((url.host or "", url.port or 0)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(REQUEST)
            async with streams(served, 1) as opened:
                await eventually(lambda: served.console.live.clients == 2)
                buffers = []
                for _ in range(30):
                    await event(opened[0])
                    buffers.append(max(served.console.live.unsent()))
            await eventually(lambda: served.console.live.clients == 1)
            events = await asyncio.to_thread(_read_until, slow, served.overview)

    assert 0 < max(buffers) < 3 * served.overview.size
    assert events
