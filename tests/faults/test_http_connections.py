"""Rows FH2 and FH3: slow clients, many clients, and clients that wait for a blocked event loop."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.application import container_of
from tests.command import Application, process, write_package
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.serving import NO_BROKER, everything, serving
from tests.waiting import eventually
from workerkit import HTTPView
from workerkit.health import Readiness
from workerkit.http.listener import max_connections
from workerkit.ops.metrics import Metrics
from workerkit.ops.server import OpsServer

HELLO = b"GET /hello HTTP/1.1\r\nHost: h\r\n\r\n"
HALF = b"GET /hello HTTP/1.1\r\nHost:"
POST = (
    b"POST /hello HTTP/1.1\r\nHost: h\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
)


class Hello(HTTPView):
    routes = ["/hello"]
    begun = 0
    gate: asyncio.Event

    async def get(self, wait: bool = False) -> str:
        """Say hello."""
        if wait:
            type(self).begun += 1
            await self.gate.wait()
        return "hello"

    async def post(self, body: dict[str, int]) -> str:
        """Say hello."""
        return "hello"


@contextmanager
def clients(url: str, count: int, *sent: bytes) -> Iterator[list[socket.socket]]:
    """Open connections, and send each of them the given bytes."""
    at = URL(url)
    opened: list[socket.socket] = []
    try:
        for number in range(count):
            opened.append(socket.create_connection((at.host or "", at.port or 0), timeout=30.0))
            if sent:
                opened[-1].sendall(sent[number % len(sent)])
        yield opened
    finally:
        for each in opened:
            each.close()


async def received(client: socket.socket) -> bytes:
    """Return what arrives next; b"" if the server has closed the connection."""

    def receive() -> bytes:
        try:
            return client.recv(65_536)
        except ConnectionError:
            return b""

    return await asyncio.to_thread(receive)


@asynccontextmanager
async def ops_server(**settings: Any) -> AsyncIterator[OpsServer]:
    """Run an ops server without consumers."""
    whole = container_of(NO_BROKER, ops={"port": 0, **settings}).settings()
    readiness = Readiness()
    server = OpsServer(whole, readiness, Metrics(whole.metrics, readiness))
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@contextmanager
def clock_jump(seconds: float) -> Iterator[None]:
    """Let the clock of the event loop jump, as if it had been blocked for this time."""
    loop = asyncio.get_running_loop()
    real = loop.time
    loop.time = lambda: real() + seconds  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop.time = real  # type: ignore[method-assign]


async def test_fh2_data_that_arrives_while_the_loop_is_blocked() -> None:
    """FH2: a first head, the rest of a head, a body and a next request are answered."""
    first = [b"", HALF, POST, HELLO]
    rest = [HELLO, HELLO[len(HALF) :], b"{}", HELLO]
    async with serving(Hello) as client:
        with clients(client.url, 4, *first) as opened:
            assert b" 200 " in await received(opened[3])
            assert (await client.get("/hello")).status == 200
            for each, data in zip(opened, rest, strict=True):
                each.sendall(data)
            with clock_jump(100.0):
                answers = [await received(each) for each in opened]

    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 4


async def test_fh2_a_complete_head_is_not_late() -> None:
    """FH2: a request is answered once, even if its view is called late."""
    async with serving(Hello, read_timeout=0.2) as client:
        for _ in range(20):
            answer = await everything(
                client, HELLO.replace(b"h\r\n\r\n", b"h\r\nConnection: close\r\n\r\n")
            )
            assert answer.count(b"HTTP/1.1") == 1
            assert b" 200 " in answer


BLOCKING = """
    import asyncio, time
    from workerkit import HTTPView

    class Blocks(HTTPView):
        routes = ["/block"]

        async def get(self, seconds: float) -> str:
            print("blocking", flush=True)
            time.sleep(seconds)
            return "done"

        async def post(self, body: dict[str, int]) -> str:
            return "done"
"""


@pytest.mark.parametrize("uvloop", [True, False])
async def test_fh2_a_view_that_blocks_the_loop(tmp_path: Path, uvloop: bool) -> None:
    """FH2: no client gets a 408 or a closed connection because the event loop was blocked."""
    variables: dict[str, Any] = {
        "WORKERKIT_HTTP__READ_TIMEOUT": "2",
        "WORKERKIT_HTTP__KEEP_ALIVE": "2",
        "WORKERKIT_OPS__ENABLED": "false",
    }
    next_one = HELLO.replace(b"/hello", b"/nothing")
    post = POST.replace(b"/hello", b"/block")
    async with worker(tmp_path, BLOCKING, uvloop=uvloop, **variables) as (application, url):
        with clients(url, 4, b"", HALF, post, next_one) as opened:
            assert b" 404 " in await received(opened[3])
            async with aiohttp.ClientSession() as session:
                blocking = asyncio.create_task(_status(session, f"{url}/block?seconds=4"))
                await application.says("blocking")
                for each, data in zip(
                    opened, [next_one, HELLO[len(HALF) :], b"{}", next_one], strict=True
                ):
                    each.sendall(data)
                answers = [await received(each) for each in opened]
                assert await blocking == 200

    assert [answer.split(b" ")[1:2] for answer in answers] == [
        [b"404"],
        [b"404"],
        [b"200"],
        [b"404"],
    ]


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


async def test_fh3_limits_of_the_ops_port() -> None:
    """FH3: idle and half-open connections are closed, a late head gets a 408."""
    async with ops_server(read_timeout=0.2, keep_alive=0.3) as server:
        rested = HELLO.replace(b"/hello", b"/health/live")
        with clients(server.url, 3, b"", HALF, rested) as (silent, half, kept):
            assert b" 200 " in await received(kept)
            assert await received(silent) == b""
            assert b" 408 " in await received(half)
            assert await received(kept) == b""


async def test_fh3_a_client_that_does_not_read_metrics() -> None:
    """FH3: it is disconnected."""
    async with ops_server(read_timeout=0.2) as server:
        at = URL(server.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30.0)
            client.connect((at.host, at.port))

            def ask() -> None:
                while True:
                    client.sendall(HELLO.replace(b"/hello", b"/metrics") * 100)

            with pytest.raises(ConnectionError):
                await asyncio.to_thread(ask)


async def test_fh3_views_have_a_keep_alive_limit() -> None:
    """FH3: an idle connection is closed."""
    async with serving(Hello, keep_alive=0.2, read_timeout=0.4) as client:
        with clients(client.url, 1, HELLO) as (kept,):
            assert b" 200 " in await received(kept)
            assert await received(kept) == b""


async def test_fh3_the_longest_idle_connection_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FH3: at the limit, an idle connection is closed and a new one is served."""
    async with serving(Hello, max_connections=5) as client:
        with clients(client.url, 5, HELLO, HALF) as waiting:
            assert b" 200 " in await received(waiting[0])
            with clients(client.url, 20, HELLO) as others:
                answers = [await received(each) for each in others]
            gone = [await received(each) for each in waiting]

    assert all(b" 200 " in answer for answer in answers)
    assert gone == [b""] * 5 or gone[2] != b""
    assert errors(caplog) == []
    records = fields(caplog, "connection limit reached")
    assert sum(each["closed"] for each in records) >= 16
    assert len(records) <= 4
    assert {each["limit"] for each in records} == {5}


async def test_fh3_connections_that_are_all_in_use(caplog: pytest.LogCaptureFixture) -> None:
    """FH3: a new one gets a 503, and those in use are answered."""
    Hello.gate = asyncio.Event()
    Hello.begun = 0
    waits = HELLO.replace(b"/hello", b"/hello?wait=true")
    async with serving(Hello, max_connections=3) as client:
        with clients(client.url, 3, waits) as busy:
            await eventually(lambda: Hello.begun == 3)
            with clients(client.url, 4) as more:
                refused = [await received(each) for each in more]
            Hello.gate.set()
            answered = [await received(each) for each in busy]
            with clients(client.url, 1, HELLO) as (one,):
                assert b" 200 " in await received(one)

    for answer in refused:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert json.loads(body)["detail"] == "too many connections"
    assert all(b" 200 " in answer for answer in answered)
    records = fields(caplog, "connection limit reached")
    assert records
    assert sum(each["refused"] for each in records) <= 4


@pytest.mark.parametrize(
    ("soft", "views", "ops"),
    [(256, 128, 32), (1024, 512, 128), (20, 16, 16), (65_536, 32_768, 8192)],
)
def test_fh3_the_limits_follow_the_number_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, views: int, ops: int
) -> None:
    """FH3: together they leave enough descriptors for the rest; a setting takes precedence."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, soft))

    assert (max_connections(None, "http"), max_connections(None, "ops")) == (views, ops)
    assert max_connections(7, "http") == 7


async def test_fh3_connections_that_are_opened_during_the_stop() -> None:
    """FH3: they are closed, and do not delay the stop."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(5):
        async with serving(Hello, grace=60.0) as client:
            at = URL(client.url)
            late = [socket.create_connection((at.host or "", at.port or 0)) for _ in range(3)]
        assert [await received(each) for each in late] == [b""] * 3
        for each in late:
            each.close()

    assert loop.time() - began < 60.0


CONSUMERS = """
    from workerkit import AMQPConsumer, HTTPView

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            print("handled", body, flush=True)

    class Hello(HTTPView):
        routes = ["/hello"]

        async def get(self) -> str:
            return "hello"
"""


@asynccontextmanager
async def worker(
    directory: Path, consumers: str, *, uvloop: bool, descriptors: int = 1024, **variables: str
) -> AsyncIterator[tuple[Application, str]]:
    """Run consumers in a process with few descriptors, and return the URL of its views."""
    package = write_package(directory, consumers=consumers)
    start = ["-m", "workerkit"] if uvloop else ["-c", _WITHOUT_UVLOOP]
    limited = ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", sys.executable, *start)
    given = {
        "WORKERKIT_LOG__FORMAT": "json",
        "WORKERKIT_HTTP__PORT": "0",
        "WORKERKIT_OPS__PORT": "0",
        **variables,
    }
    async with process(*limited, "run", package, cwd=directory, **given) as application:
        line = await application.says('"listening"')
        yield application, json.loads(line)["url"]


_WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from workerkit.cli import main; main()"


@pytest.mark.parametrize("uvloop", [True, False])
async def test_fh3_many_idle_connections(
    rabbit: PrivateRabbit, url: str, tmp_path: Path, uvloop: bool
) -> None:
    """FH3: with 256 descriptors, 375 idle and half-open connections to each port do no harm.

    Probes and views are answered, the broker connection is opened again, and the log is short.
    """
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        variables = {"WORKERKIT_AMQP__DEFAULT__URL": proxy.url(url)}
        async with worker(tmp_path, CONSUMERS, uvloop=uvloop, descriptors=256, **variables) as (
            application,
            views,
        ):
            ops = (await application.says("ops server at")).removeprefix("ops server at ")
            async with aiohttp.ClientSession() as session:

                async def ready() -> bool:
                    return await _status(session, f"{ops}/health/ready") == 200

                await eventually(ready)
                with clients(ops, 375, b"", HALF), clients(views, 375, b"", HALF):
                    assert await _status(session, f"{ops}/health/live") == 200
                    assert await _status(session, f"{views}/hello") == 200
                    proxy.drop()

                    async def lost() -> bool:
                        return any('"connection lost' in each for each in application.err)

                    await eventually(lost)
                    await eventually(ready)
                    assert await _status(session, f"{ops}/metrics") == 200
                    assert await _status(session, f"{views}/hello") == 200
            records = [json.loads(each) for each in application.err if each.startswith("{")]

    loud = [each["message"] for each in records if each["level"] in ("ERROR", "CRITICAL")]
    assert len(loud) <= 3, loud
    assert len([each for each in records if each["message"] == "connection limit reached"]) < 60


@pytest.mark.parametrize("uvloop", [True, False])
async def test_fh3_no_descriptor_is_left(tmp_path: Path, uvloop: bool) -> None:
    """FH3: the error is logged at most once a second, and accepting continues by itself."""
    consumers = """
        import os
        from workerkit import HTTPView

        taken = []

        class Files(HTTPView):
            routes = ["/files"]

            async def post(self) -> None:
                while True:
                    try:
                        taken.append(os.open("/dev/null", os.O_RDONLY))
                    except OSError:
                        return

            async def delete(self) -> None:
                while taken:
                    os.close(taken.pop())
    """
    variables = {"WORKERKIT_OPS__ENABLED": "false", "WORKERKIT_AMQP__DEFAULT__URL": NO_BROKER}
    async with worker(tmp_path, consumers, uvloop=uvloop, descriptors=256, **variables) as (
        application,
        views,
    ):
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{views}/files") as answer:
                assert answer.status == 204
            with clients(views, 10, HELLO) as opened:
                await application.says("cannot accept connections")
                async with session.delete(f"{views}/files") as answer:
                    assert answer.status == 204
                answers = [await received(each) for each in opened]
        records = [json.loads(each) for each in application.err if each.startswith("{")]

    assert all(b" 404 " in each or each == b"" for each in answers)
    assert any(b" 404 " in each for each in answers)
    failed = [each for each in records if each["message"] == "cannot accept connections"]
    times = [datetime.fromisoformat(each["timestamp"]) for each in failed]
    assert failed
    assert all((later - time).total_seconds() > 0.9 for time, later in pairwise(times))
    assert all(each["count"] >= 1 for each in failed)
    assert "Too many open files" in failed[0]["error"]
