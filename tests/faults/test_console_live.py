"""The live stream of the console, over real sockets."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from aiohttp import ClientSession
from yarl import URL

from tests.console import Served, console
from tests.waiting import eventually
from workerkit.console.model import FleetView

LIVE = "/api/v1/live"
HEAD = f"GET {LIVE} HTTP/1.1\r\nHost: localhost\r\n"
REQUEST = f"{HEAD}Accept: text/event-stream\r\n\r\n".encode()


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


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what is left of a stream."""
    async with asyncio.timeout(10.0):
        return await reader.read()


@contextmanager
def unread_stream(served: Served) -> Iterator[socket.socket]:
    """Open a stream, and read nothing of it.

    Without `Accept` the server does not know that the response has no end.
    """
    url = URL(served.url)
    with socket.socket() as opened:
        # Before the connection is opened: the window of TCP depends on it.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect((url.host or "", url.port or 0))
        opened.sendall(f"{HEAD}\r\n".encode())
        yield opened


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
    """Others get each event. The slow one gets what was sent, and then the newest."""
    async with console(interval=0.02) as served:
        served.overview.size = 1_000_000
        async with streams(served, 1) as opened:
            with unread_stream(served) as slow:
                await eventually(lambda: served.console.live.clients == 2)
                fast = [int((await event(opened[0])).problems[0]) for _ in range(40)]
                served.overview.size = 0
                slow.setblocking(False)
                reader, writer = await asyncio.open_connection(sock=slow, limit=2**24)
                found = [0]
                while found[-1] <= fast[-1]:
                    found.append(int((await event(reader)).problems[0]))
                writer.close()

    assert fast == [*range(fast[0], fast[0] + 40)]
    assert len([each for each in found if fast[0] <= each <= fast[-1]]) < 20


async def test_a_client_that_never_reads_is_dropped() -> None:
    """Its connection is closed when the port's `read_timeout` has passed."""
    async with console(interval=0.02, read_timeout=0.4) as served:
        served.overview.size = 10_000_000
        with unread_stream(served):
            await eventually(lambda: served.console.live.clients == 1)
            await eventually(lambda: served.console.live.clients == 0)
        await eventually(lambda: not served.console.live.is_sampling)


async def test_streams_end_at_once_when_the_process_stops() -> None:
    """Those that read get the end of their response; one that does not read delays nothing."""
    async with console(interval=60.0) as served:
        served.overview.size = 10_000_000
        with unread_stream(served):
            await eventually(lambda: served.console.live.is_sampling)
            async with streams(served, 20) as opened:
                await asyncio.gather(*(event(each) for each in opened))
                started = time.monotonic()
                await served.server.close()
                seconds = time.monotonic() - started
                endings = await asyncio.gather(*(rest(each) for each in opened))

    assert seconds < 1.0
    assert {each[-5:] for each in endings} == {b"0\r\n\r\n"}
    assert (served.overview.closed, served.desk.closed) == (True, True)
    assert not served.console.live.is_sampling


@pytest.mark.parametrize(("connections", "most"), [(40, 24), (20, 10), (1000, 500)])
async def test_the_number_of_clients_is_limited(connections: int, most: int) -> None:
    """Connections are left for probes, and one client more gets a 503."""
    async with (
        console(max_connections=connections) as served,
        streams(served, most),
        ClientSession(served.url) as client,
    ):
        async with client.get(LIVE) as response:
            body = await response.json(content_type="application/problem+json")
        async with client.get("/health/live") as probe:
            status = probe.status

    assert (response.status, body["detail"], status) == (503, "too many clients", 200)
    assert response.headers["Retry-After"] == "5"


async def test_a_view_that_fails_does_not_end_the_streams(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The clients get comments meanwhile, and it is logged once."""
    async with console(interval=0.02) as served, streams(served, 1) as [reader]:
        await event(reader)
        served.overview.error = RuntimeError("the overview failed")
        comments = 0
        while comments < 3:
            comments += (await reader.readuntil(b"\n")) == b": no view\n"
        served.overview.error = None
        found = await event(reader)

    records = [each for each in caplog.records if "could not be created" in each.getMessage()]
    assert found.app == "shop"
    assert len(records) == 1
