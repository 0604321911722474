"""H1 to H3 with middlewares of the user, whatever they do."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError, web

from tests.application import Recorder
from tests.records import errors
from tests.serving import everything, serving
from tests.waiting import eventually
from workerkit import HTTPView, Reject, Retry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Hello(HTTPView):
    """Answers immediately."""

    routes = ["/"]

    async def get(self) -> dict[str, int]:
        """Answer."""
        return {}


class Narrow(HTTPView):
    """Has a small limit."""

    routes = ["/narrow"]
    max_body = 10

    async def post(self, request: web.Request) -> dict[str, int]:
        """Read it."""
        return {"n": len(await request.read())}


class Wide(Narrow):
    """Has a large limit."""

    routes = ["/wide"]
    max_body = 1_000


@pytest.mark.parametrize("returned", [None, {"a": 1}])
async def test_h2_a_middleware_that_returns_nothing(
    returned: object, caplog: pytest.LogCaptureFixture
) -> None:
    """H2: 500 and an ERROR; the connection stays usable, and the stop is not delayed."""

    @web.middleware
    async def forgetful(request: web.Request, handler: Handler) -> Any:
        answer = await handler(request)
        return answer if "fine" in request.query else returned

    recorder = Recorder()
    async with (
        asyncio.timeout(15.0),
        serving(Hello, middlewares=[forgetful], recorder=recorder, grace=20.0) as client,
    ):
        statuses = [(await client.get(path)).status for path in ("/", "/?fine=1", "/")]

    assert statuses == [500, 200, 500]
    assert errors(caplog) == ["middleware failed: it has to return the response"] * 2
    seen: list[Any] = [each.delivery for each in recorder.settled]
    assert [each.status for each in seen] == statuses


async def test_observers_get_the_response_of_the_client() -> None:
    """Status and time are those of the response after the last middleware."""

    @web.middleware
    async def changing(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        await handler(request)
        return web.json_response({"why": "changed"}, status=409)

    recorder = Recorder()
    async with serving(Hello, middlewares=[changing], recorder=recorder) as client:
        answer = await client.get("/")

    [record] = recorder.settled
    delivery: Any = record.delivery
    assert (answer.status, delivery.status, delivery.response_size) == (409, 409, 18)
    assert record.seconds < delivery.seconds
    assert delivery.seconds >= 0.05


async def test_observers_are_notified_if_a_middleware_fails_after_a_view() -> None:
    """A middleware that raises after the view changes the response to a 500."""

    @web.middleware
    async def failing(request: web.Request, handler: Handler) -> web.StreamResponse:
        await handler(request)
        raise KeyError("no")

    recorder = Recorder()
    async with serving(Hello, middlewares=[failing], recorder=recorder) as client:
        answer = await client.get("/")

    [record] = recorder.settled
    delivery: Any = record.delivery
    assert (answer.status, delivery.status) == (500, 500)


async def test_observers_get_the_status_of_a_file(tmp_path: Path) -> None:
    """It is known when the file is sent."""

    class Download(HTTPView):
        routes = ["/{name}"]

        async def get(self, name: str) -> web.FileResponse:
            return web.FileResponse(tmp_path / name)

    (tmp_path / "there").write_bytes(b"x")
    recorder = Recorder()
    async with serving(Download, recorder=recorder) as client:
        statuses = [(await client.get(path)).status for path in ("/there", "/gone")]
        await eventually(lambda: len(recorder.settled) == 2)

    seen: list[Any] = [each.delivery for each in recorder.settled]
    assert [each.status for each in seen] == statuses == [200, 404]


async def test_h1_the_limit_of_a_view_applies_in_middlewares() -> None:
    """H1: 413 in a middleware as in the view, and not more than the limit of that view."""

    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)

    async with serving(Narrow, Wide, middlewares=[reading], max_body=100) as client:
        long = await client.post("/narrow", body=b"x" * 11)
        short = await client.post("/narrow", body=b"x" * 10)
        wide = await client.post("/wide", body=b"x" * 1_000)

    assert (long.status, short.status, wide.status) == (413, 200, 200)
    assert wide.json() == {"n": 1_000}


@pytest.mark.parametrize(
    ("raised", "status", "after"),
    [(Reject("no"), 422, None), (Retry("busy", after=3), 503, "3")],
)
async def test_h2_reject_and_retry_in_a_middleware(
    raised: Exception, status: int, after: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """H2: they have the same meaning as in a view."""

    @web.middleware
    async def refusing(request: web.Request, handler: Handler) -> web.StreamResponse:
        raise raised

    async with serving(Hello, middlewares=[refusing]) as client:
        answer = await client.get("/")

    assert (answer.status, answer.headers.get("Retry-After")) == (status, after)
    assert errors(caplog) == []


async def test_h1_a_truncated_body_is_not_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """H1: a client that disconnects while a middleware reads is not logged as an ERROR."""
    done: list[BaseException] = []

    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            await request.read()
        except BaseException as error:
            done.append(error)
            raise
        return await handler(request)

    async with serving(Narrow, middlewares=[reading]) as client:
        port = int(client.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /narrow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        await eventually(lambda: writer.transport.get_write_buffer_size() == 0)
        writer.close()
        await eventually(lambda: done)

    assert errors(caplog) == []


async def test_h2_an_upstream_that_breaks_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """H2: a lost connection of the view's own client is a failure: our client is still there."""

    class Proxying(HTTPView):
        routes = ["/"]

        async def get(self) -> None:
            raise ClientConnectionResetError("Cannot write to closing transport")

    async with serving(Proxying) as client:
        answer = await client.get("/")
        raw = await everything(client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.status == 500
    assert raw.startswith(b"HTTP/1.1 500")


async def test_the_time_of_a_handler_begins_with_the_body() -> None:
    """The time in which the client sends the body does not count."""

    class Taking(HTTPView):
        routes = ["/"]

        async def post(self, body: dict[str, int]) -> dict[str, int]:
            return body

    recorder = Recorder()
    async with serving(Taking, recorder=recorder) as client:
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n")
        writer.write(b"Content-Type: application/json\r\n\r\n")
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.3
        await eventually(lambda: loop.time() > until)
        writer.write(b'{"a": 1}')
        await reader.readuntil(b'{"a":1}')
        writer.close()

    [record] = recorder.settled
    delivery: Any = record.delivery
    assert delivery.seconds >= 0.2
    assert record.seconds < delivery.seconds - 0.2
