"""A process with event streams stops on request, and fails to start if it is refused."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.command import Application, running, write_package
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit.sse.cursor import FileCursors
from workerkit.testing import sse_server

GATED = """
    import asyncio
    from pathlib import Path

    from workerkit import RetryPolicy, SSEConsumer, SSEEvent


    class Gated(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        retry = RetryPolicy(delays=(60,))

        async def handle(self, event: SSEEvent[str]) -> None:
            print("begin", event.body, flush=True)
            if event.body == "fail":
                raise ValueError("not now")
            while not Path("gate").exists():
                await asyncio.sleep(0.01)
            print("end", event.body, flush=True)


    class Batched(SSEConsumer):
        connection = "server"
        routes = ["/batches"]
        batch_interval = 3600.0

        async def handle(self, bodies: list[str]) -> None:
            print("batch", *bodies, flush=True)
"""


def begun(app: Application) -> list[str]:
    """Return the events that handlers have started, in order."""
    return list(app.lines("begin "))


@pytest.mark.parametrize("uvloop", [True, False])
async def test_stop_while_handling(tmp_path: Path, uvloop: bool) -> None:
    """Running handlers finish and are stored, a partial batch is handled, others are sent again."""
    name = write_package(tmp_path, consumers=GATED)
    store = FileCursors(tmp_path / "cursors")

    async with sse_server() as server:
        variables = {
            "WORKERKIT_SSE__SERVER__URL": server.url,
            "WORKERKIT_CURSORS": str(tmp_path / "cursors"),
        }
        async with running(name, cwd=tmp_path, uvloop=uvloop, **variables) as app:
            await server.client(2, 60.0)
            for number in range(1, 4):
                await server.send(str(number), id=str(number), route="/events")
            await server.send("half", id="h", route="/batches")
            await eventually(lambda: begun(app) == ["1"])
            app.send(signal.SIGTERM)
            await app.says("batch half")
            await app.says("stopping")
            (tmp_path / "gate").touch()
            assert await app.ended() == 0, app
            assert list(app.lines("end ")) == ["1"]

    assert "Traceback" not in repr(app)
    assert await store.load("Gated", "/events") == "1"
    assert await store.load("Batched", "/batches") == "h"


async def test_stop_during_a_pause(tmp_path: Path) -> None:
    """The stop does not wait a minute for the next attempt; the event is sent again."""
    name = write_package(tmp_path, consumers=GATED)

    async with sse_server() as server:
        variables = {
            "WORKERKIT_SSE__SERVER__URL": server.url,
            "WORKERKIT_CURSORS": str(tmp_path / "cursors"),
        }
        await server.send("fail", route="/events")
        async with running(name, cwd=tmp_path, uvloop=True, **variables) as app:
            await app.says("not handled")
            before = time.monotonic()
            app.send(signal.SIGTERM)
            assert await app.ended() == 0, app
            seconds = time.monotonic() - before

    assert seconds < 10.0
    assert await FileCursors(tmp_path / "cursors").load("Gated", "/events") is None


async def test_s2_a_process_that_is_refused_at_the_start(tmp_path: Path) -> None:
    """S2: exit code 1 after three attempts, with one line per stream, if nothing was ready."""
    name = write_package(tmp_path, consumers=GATED)

    async with sse_server() as server:
        server.refuse(403)
        async with running(name, cwd=tmp_path, WORKERKIT_SSE__SERVER__URL=server.url) as app:
            code = await app.ended()

    lines = [line for line in app.err if line.startswith("GET ")]
    assert (code, len(lines)) == (1, 2), app
    assert lines[0] == f"GET {server.url}/events was answered by 403 Forbidden"


async def test_a_handler_that_exits_settles_nothing(tmp_path: Path) -> None:
    """`SystemExit` in a handler ends the process with 1, and its event is sent again."""
    text = """
        from workerkit import SSEConsumer


        class Leaving(SSEConsumer):
            connection = "server"

            async def handle(self, body: str) -> None:
                if body == "leave":
                    raise SystemExit(3)
    """
    name = write_package(tmp_path, consumers=text)

    async with sse_server() as server:
        variables = {
            "WORKERKIT_SSE__SERVER__URL": server.url,
            "WORKERKIT_CURSORS": str(tmp_path / "cursors"),
        }
        await server.send("stay")
        await server.send("leave")
        async with running(name, cwd=tmp_path, uvloop=True, **variables) as app:
            assert await app.ended() == 1, app

    assert await FileCursors(tmp_path / "cursors").load("Leaving", "") == "1"
    assert "Leaving: handle raised SystemExit: 3" in repr(app)


async def test_no_task_is_left() -> None:
    """After the stop no task of the streams is left."""
    before = asyncio.all_tasks()
    consumer, handled = collector(concurrency=3)

    async with sse_server() as server:
        inside = asyncio.all_tasks()
        async with consuming(server, consumer):
            await server.send("a")
            await eventually(lambda: handled == ["a"])
            server.cut()
            await server.client(2, 60.0)
        left = {each.get_name() for each in asyncio.all_tasks() - inside}
        await eventually(lambda: asyncio.all_tasks() <= inside)  # tasks of the server included

    assert [name for name in left if name.startswith(consumer.__name__)] == []
    assert asyncio.all_tasks() - before == set()
