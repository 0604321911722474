"""Row H3, and the life cycle of the server: its address, its port, its stop."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.command import Application, running, workerkit, write_package
from tests.serving import serving
from tests.waiting import eventually
from workerkit import HTTPView

# Handlers that wait at a gate: a file that the test creates.
GATED = """
    import asyncio
    from pathlib import Path

    from aiohttp import web
    from pydantic import BaseModel

    from workerkit import HTTPView


    class Order(BaseModel):
        id: int


    class Gated(HTTPView):
        routes = ["/gated"]

        async def get(self) -> str:
            print("begin", flush=True)
            try:
                while not Path("gate").exists():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise
            print("end", flush=True)
            return "done"

        async def post(self, order: Order) -> Order:
            return order

        async def put(self) -> None:
            raise SystemExit(0)


    class Stream(HTTPView):
        routes = ["/stream"]
        timeout = None

        async def get(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            print("streaming", flush=True)
            while True:
                await response.write(b"data: x\\n\\n")
                await asyncio.sleep(0.01)
"""
NO_AMQP: dict[str, Any] = {"WORKERKIT_AMQP__DEFAULT__URL": "amqp://127.0.0.1:1/"}
ANY_PORT: dict[str, Any] = {"WORKERKIT_HTTP__PORT": "0", **NO_AMQP}


async def address(app: Application) -> str:
    """Return the URL on which the process listens."""
    line = await app.says("listening")
    found = re.search(r"url=(http://\S+)", line)
    assert found, line
    return found[1]


def refused(url: str) -> bool:
    """Return whether connections are refused."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0


@pytest.mark.parametrize("uvloop", [True, False])
async def test_h3_stop_while_requests_run(tmp_path: Path, uvloop: bool) -> None:
    """H3: new connections are refused, requests in progress are answered, the exit code is 0."""
    name = write_package(tmp_path, views=GATED)

    async with (
        running(name, cwd=tmp_path, uvloop=uvloop, **ANY_PORT) as app,
        aiohttp.ClientSession() as session,
    ):
        url = await address(app)
        idle = await session.post(f"{url}/gated", json={"id": 1})
        asking = asyncio.create_task(session.get(f"{url}/gated"))
        await app.says("begin")
        app.send(signal.SIGTERM)
        await eventually(lambda: refused(url))
        (tmp_path / "gate").touch()
        answer = await asking
        text = await answer.text()
        code = await app.ended()

    assert idle.status == 200
    assert (answer.status, text, answer.headers["Connection"]) == (200, '"done"', "close")
    assert code == 0, app
    assert not list(app.lines("cancelled"))


async def test_h3_a_body_that_is_still_arriving(tmp_path: Path) -> None:
    """H3: a request whose head arrived before the stop is read to its end."""
    name = write_package(tmp_path, views=GATED)

    async with running(name, cwd=tmp_path, **ANY_PORT) as app:
        url = await address(app)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(
            b"POST /gated HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 9\r\nExpect: 100-continue\r\n\r\n{"id"'
        )
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        app.send(signal.SIGTERM)
        await eventually(lambda: refused(url))
        writer.write(b": 1}")
        answer = await reader.read()
        writer.close()
        code = await app.ended()

    assert answer.startswith(b"\r\nHTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"id":1}')
    assert code == 0, app


async def test_h3_a_request_that_does_not_end(tmp_path: Path) -> None:
    """H3: its handler is cancelled after the grace period, and its connection is closed."""
    name = write_package(tmp_path, views=GATED)

    async with (
        running(name, cwd=tmp_path, WORKERKIT_SHUTDOWN_GRACE="0.3", **ANY_PORT) as app,
        aiohttp.ClientSession() as session,
    ):
        url = await address(app)
        asking = asyncio.create_task(session.get(f"{url}/gated"))
        await app.says("begin")
        before = time.monotonic()
        app.send(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientError):
            await asking
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 0, app
    assert list(app.lines("cancelled")) == [""]
    assert 0.3 <= seconds < 4.0
    assert [line for line in app.err if "shutdown grace period expired" in line and "Gated" in line]


async def test_h3_a_stream_of_events(tmp_path: Path) -> None:
    """H3: it is ended cleanly and immediately, so that its client reconnects elsewhere."""
    name = write_package(tmp_path, views=GATED)

    async with (
        running(name, cwd=tmp_path, **ANY_PORT) as app,
        aiohttp.ClientSession(headers={"Accept": "text/event-stream"}) as session,
    ):
        url = await address(app)
        async with session.get(f"{url}/stream") as stream:
            assert await stream.content.readline() == b"data: x\n"
            before = time.monotonic()
            app.send(signal.SIGTERM)
            rest = await stream.read()
            seconds = time.monotonic() - before
        code = await app.ended()

    assert (b"data: x\n" + rest).endswith(b"data: x\n\n")
    assert (stream.status, code) == (200, 0), app
    assert seconds < 4.0


async def test_h3_idle_connections() -> None:
    """H3: they do not delay the stop, whether they had a request or not."""

    class Hello(HTTPView):
        routes = ["/"]

        async def get(self) -> str:
            return "hello"

    stops = []
    for _ in range(3):  # a busy machine may delay one of them
        async with serving(Hello, grace=20.0) as client:
            await client.get("/")
            port = int(client.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            half, half_writer = await asyncio.open_connection("127.0.0.1", port)
            half_writer.write(b"GET / HTTP/1.1\r\n")
            before = time.monotonic()
        stops.append(time.monotonic() - before)

        assert await reader.read() == b""
        with suppress(ConnectionError):  # data that it has not read is lost
            assert await half.read() == b""
        for each in (writer, half_writer):
            each.close()

    assert min(stops) < 1.9  # aiohttp itself would wait for two


class _Hello(HTTPView):
    routes = ["/"]

    async def get(self) -> str:
        return "hello"


async def _requested(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Send a request, and return the head of the response."""
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len('"hello"'))
    return head


async def test_h3_a_client_that_has_just_connected() -> None:
    """H3: it does not know that the process stops; its request is answered."""

    async def late(url: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        accepted.set()
        await eventually(lambda: refused(url))
        head = await _requested(reader, writer)
        assert await reader.read() == b""
        writer.close()
        return head

    accepted = asyncio.Event()
    async with serving(_Hello) as client:
        sending = asyncio.create_task(late(client.url))
        await accepted.wait()
        # Connections are accepted in their order.
        await client.get("/")
    head = await sending

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in head


async def test_h3_an_inherited_socket() -> None:
    """H3: while another process keeps the port open, a client may use its connection once more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        async def send() -> list[bytes]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            heads = [await _requested(reader, writer)]
            begun.set()
            while b"Connection: close" not in heads[-1]:
                heads.append(await _requested(reader, writer))
            writer.close()
            return heads

        begun = asyncio.Event()
        async with serving(_Hello, fds=(os.dup(listening.fileno()),)) as client:
            assert client.url == f"http://127.0.0.1:{port}"
            sending = asyncio.create_task(send())
            await begun.wait()
        heads = await sending
        # It waits for another process.
        waiting = socket.create_connection(("127.0.0.1", port))
        waiting.close()

    assert {head.partition(b"\r\n")[0] for head in heads} == {b"HTTP/1.1 200 OK"}


async def test_h3_a_client_that_reads_slowly() -> None:
    """H3: a response that is being sent is completed within the grace period."""

    class Large(HTTPView):
        routes = ["/"]

        async def get(self) -> web.Response:
            return web.Response(body=b"x" * 20_000_000)

    read = b""
    async with serving(Large, grace=10.0) as client:
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read += await reader.readuntil(b"\r\n\r\n")
        reading = asyncio.create_task(reader.read())
    read += await reading

    assert len(read.partition(b"\r\n\r\n")[2]) == 20_000_000
    writer.close()


async def test_a_handler_that_raises_system_exit(tmp_path: Path) -> None:
    """`SystemExit` in a view stops the process with exit code not 0; its client gets a 500."""
    name = write_package(tmp_path, views=GATED)

    async with (
        running(name, cwd=tmp_path, **ANY_PORT) as app,
        aiohttp.ClientSession() as session,
    ):
        url = await address(app)
        answer = await session.put(f"{url}/gated")
        code = await app.ended()

    assert (answer.status, code) == (500, 1), app
    assert [line for line in app.err if line.startswith("stopped by HandlerExit: Gated: handle")]


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """One line with address and variable, exit code 1, and nothing is left running."""
    name = write_package(tmp_path, views=GATED)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = await asyncio.to_thread(
            workerkit, "run", name, cwd=tmp_path, WORKERKIT_HTTP__PORT=port, **NO_AMQP
        )

    fault = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert fault.startswith(f"WORKERKIT_HTTP__PORT={port}: cannot listen on 127.0.0.1:{port}: ")
    assert "address already in use" in fault
    assert "Traceback" not in done.stderr


async def test_a_port_that_is_shared(tmp_path: Path) -> None:
    """With `HTTP__REUSE_PORT` two processes serve the same port."""
    name = write_package(tmp_path, views=GATED)
    # This socket reserves the port until the processes listen; all have to set SO_REUSEPORT.
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
        settings: dict[str, Any] = {
            **NO_AMQP,
            "WORKERKIT_HTTP__PORT": port,
            "WORKERKIT_HTTP__REUSE_PORT": "true",
        }
        async with (
            running(name, cwd=tmp_path, **settings) as one,
            running(name, cwd=tmp_path, **settings) as other,
        ):
            urls = {await address(one), await address(other)}

    assert urls == {f"http://127.0.0.1:{port}"}


async def test_without_views_nothing_listens(tmp_path: Path) -> None:
    """The port is opened only if there are views."""
    consumers = """
        from workerkit import PeriodicTask

        class Tick(PeriodicTask):
            every = 60.0

            async def handle(self) -> None:
                print("tick", flush=True)
    """
    name = write_package(tmp_path, consumers=consumers)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with running(name, cwd=tmp_path, WORKERKIT_HTTP__PORT=port, **NO_AMQP) as app:
            await app.says("tick")
            app.send(signal.SIGTERM)
            code = await app.ended()

    assert code == 0
    assert "listening" not in repr(app)


async def test_the_log_of_a_request(tmp_path: Path) -> None:
    """Every record during a request has its id, as a field in JSON."""
    views = """
        import logging
        from workerkit import HTTPView

        class Logging(HTTPView):
            routes = ["/"]

            async def get(self) -> None:
                logging.getLogger("app").warning("mine")

            def post(self) -> None:
                logging.getLogger("app").warning("mine, in a thread")
                raise KeyError("x")
    """
    name = write_package(tmp_path, views=views)
    settings: dict[str, Any] = {**ANY_PORT, "WORKERKIT_LOG__FORMAT": "json"}

    async with (
        running(name, cwd=tmp_path, **settings) as app,
        aiohttp.ClientSession() as session,
    ):
        url = json.loads(await app.says("listening"))["url"]
        await session.get(url, headers={"X-Request-ID": "get-1"})
        answer = await session.post(url, headers={"X-Request-ID": "post-1"})
        await app.says("request failed")

    records: list[dict[str, Any]] = [json.loads(line) for line in app.err if line[:1] == "{"]
    found = [(each["message"], each.get("request_id")) for each in records if "request_id" in each]
    assert answer.status == 500
    assert found == [
        ("mine", "get-1"),
        ("mine, in a thread", "post-1"),
        ("request failed", "post-1"),
    ]


def test_the_commands(tmp_path: Path) -> None:
    """`list` shows routes and address, `openapi` prints the document; neither opens a socket."""
    name = write_package(tmp_path, views=GATED)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"WORKERKIT_HTTP__PORT": str(taken.getsockname()[1])}
        listed = workerkit("list", name, "--json", cwd=tmp_path, **port)
        printed = workerkit("openapi", name, cwd=tmp_path, **port)

    [gated, stream] = json.loads(listed.stdout)
    assert (gated["kind"], gated["source"], stream["source"]) == ("http", "/gated", "/stream")
    assert gated["options"]["timeout"] == 60.0
    assert "concurrency" not in gated["options"]
    assert sorted(json.loads(printed.stdout)["paths"]) == ["/gated", "/stream"]
