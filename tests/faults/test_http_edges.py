"""H1 to H3: middlewares, partly read bodies, clients that do not read, and other rare cases."""

import asyncio
import threading
import time
import warnings
from contextlib import suppress
from typing import Annotated, Any

import pytest
from aiohttp import web
from yarl import URL

from tests.application import Recorder
from tests.serving import everything, serving
from tests.waiting import eventually
from workerkit import Header, HTTPView, RunError
from workerkit.http.view import THREADS
from workerkit.observe import Unhandled


class Echo(HTTPView):
    """Returns what it gets."""

    routes = ["/echo"]

    async def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Echo."""
        return body


class Narrow(Echo):
    """Returns what it gets, if it is short."""

    routes = ["/narrow"]
    max_body = 20


@web.middleware
async def reading(request: web.Request, handler: Any) -> web.StreamResponse:
    """Read the body, as a middleware that checks signatures does."""
    await request.read()
    response: web.StreamResponse = await handler(request)
    return response


async def test_h1_a_middleware_may_read_the_body() -> None:
    """The view gets the body as well, and its limit applies."""
    async with serving(Echo, Narrow, middlewares=[reading]) as client:
        echoed = await client.post("/echo", json={"a": 1})
        short = await client.post("/narrow", json={"a": 1})
        long = await client.post("/narrow", json={"a": "x" * 100})

    assert (echoed.status, echoed.json()) == (200, {"a": 1})
    assert (short.status, long.status) == (200, 413)


class Form(HTTPView):
    routes = ["/form"]

    async def post(self, request: web.Request) -> int:
        """Read a form."""
        return len(await request.post())


async def test_fp5_a_malformed_part_of_a_form_gives_no_warning() -> None:
    """It is a 400, and Python does not warn about each part with a quote of it."""
    part = '--B\r\nContent-Disposition: form-data; name="a"; \u202e\r\n\r\nx\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with serving(Form) as client:
            answer = await client.post("/form", body=f"{part}--B--\r\n".encode(), headers=headers)

    assert answer.status == 400
    assert not [str(each.message) for each in warned]


async def test_h1_a_body_that_is_too_large() -> None:
    """A view or middleware that reads it gets aiohttp's exception; the client gets a problem."""

    class Raw(HTTPView):
        routes = ["/raw"]

        async def post(self, request: web.Request) -> web.Response:
            await request.read()
            return web.Response()

    async with serving(Raw, max_body=10) as client:
        answer = await client.post("/raw", json={"a": "x" * 100})

    assert answer.status == 413
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_h1_headers_in_one_line_or_several() -> None:
    """Proxies may join lines with commas (RFC 9110, section 5.3)."""

    class Numbers(HTTPView):
        routes = ["/numbers"]

        async def get(self, x_number: Annotated[list[int], Header]) -> list[int]:
            return x_number

    async with serving(Numbers) as client:
        answer = await client.get("/numbers", headers={"X-Number": "1, 2,3"})

    assert answer.json() == [1, 2, 3]


async def test_h1_values_that_json_does_not_have_are_null() -> None:
    """A response is always valid JSON."""

    class Odd(HTTPView):
        routes = ["/odd"]

        async def get(self) -> dict[str, float]:
            return {"x": float("nan"), "y": float("inf")}

    async with serving(Odd) as client:
        answer = await client.get("/odd")

    assert answer.json() == {"x": None, "y": None}


async def test_h2_cookies_of_a_raised_response_are_sent() -> None:
    """A login that redirects sets the cookie of its session."""

    class Login(HTTPView):
        routes = ["/login"]

        async def get(self) -> None:
            answer = web.HTTPForbidden()
            answer.set_cookie("tried", "1")
            raise answer

    async with serving(Login) as client:
        answer = await client.get("/login")

    assert answer.status == 403
    assert answer.headers["Set-Cookie"].startswith("tried=1")


async def test_h2_a_base_exception_stops_the_process() -> None:
    """A BaseException is answered, and ends the process as SystemExit does."""

    class Own(BaseException):
        """Rare."""

    class Fatal(HTTPView):
        routes = ["/fatal"]

        async def get(self) -> None:
            raise Own("x")

    async def ask() -> int:
        async with serving(Fatal, grace=20.0) as client:
            return (await client.get("/fatal")).status

    began = time.monotonic()
    with pytest.raises(RunError, match="handle raised Own"):
        await ask()

    assert time.monotonic() - began < 15.0


async def test_h3_a_request_in_a_middleware_is_finished() -> None:
    """It counts as in progress before a view has it, and is not too slow."""
    entered = asyncio.Event()

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> web.StreamResponse:
        entered.set()
        await asyncio.sleep(1.0)
        response: web.StreamResponse = await handler(request)
        return response

    async with serving(Echo, middlewares=[slow], read_timeout=0.3) as client:
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        await entered.wait()
    answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n{}")


async def test_h1_the_rest_of_a_body_is_not_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client was answered and may be idle: no 408 is sent before its next request."""
    monkeypatch.setattr("workerkit.http.server.LINGERING", 30.0)
    loop = asyncio.get_running_loop()
    async with serving(Echo, read_timeout=0.25) as client, asyncio.timeout(30.0):
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        unwanted = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        until = loop.time() + 1.0
        await eventually(lambda: loop.time() > until)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n")
        writer.write(b'Content-Type: application/json\r\nConnection: close\r\n\r\n{"a": 1}')
        rest = await reader.read()
        writer.close()

    assert unwanted.startswith(b"HTTP/1.1 404")
    assert b"408" not in rest
    assert rest.endswith(b'\r\n\r\n{"a":1}')


async def test_h1_head_of_a_stream_has_no_body() -> None:
    """The next response on the connection is read correctly."""

    class Ticks(HTTPView):
        routes = ["/ticks"]

        async def get(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(3):
                await response.write(b"tick\n")
            await response.write_eof()
            return response

    async with serving(Ticks) as client:
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"HEAD /ticks HTTP/1.1\r\nHost: h\r\n\r\n")
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        rest = await reader.read()
        writer.close()

    assert first.startswith(b"HTTP/1.1 200 ")
    assert rest.startswith(b"HTTP/1.1 404 ")


async def test_h1_a_client_that_reads_nothing_is_disconnected() -> None:
    """Its response does not stay in memory."""

    class Large(HTTPView):
        routes = ["/large"]

        async def get(self) -> bytes:
            return b"x" * 30_000_000

    async with serving(Large, read_timeout=0.5) as client:
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        # Nothing is read, so only sending shows that the connection is closed.
        with suppress(ConnectionError):
            async with asyncio.timeout(10.0):
                while not writer.transport.is_closing():
                    writer.write(b"x")
                    await asyncio.sleep(0.05)
        closed = writer.transport.is_closing()
        writer.close()

    assert closed


async def test_h1_a_call_that_timed_out_before_a_thread_was_free() -> None:
    """It times out while it waits, and is not made after its client got the 504."""
    calls: list[int] = []

    class Blocking(HTTPView):
        routes = ["/blocking/{number}"]
        timeout = 0.3

        def get(self, number: int) -> None:
            calls.append(number)
            go.wait(10.0)

    go = threading.Event()
    recorder = Recorder()
    async with serving(Blocking, recorder=recorder) as client:
        asked = [asyncio.create_task(client.get(f"/blocking/{number}")) for number in range(40)]
        # A call that has a thread waits until the thread returns; only the others time out.
        await eventually(lambda: sum(each.done() for each in asked) == 40 - len(calls))
        late = {number for number, each in enumerate(asked) if each.done()}
        go.set()
        statuses = [(await each).status for each in asked]

    assert set(statuses) == {504}
    assert len(late) >= 40 - THREADS
    assert sorted([*calls, *late]) == [*range(40)]


async def test_sizes_of_requests() -> None:
    """Metrics get the bytes received and sent, for requests that reach a view."""
    recorder = Recorder()
    async with serving(Echo, recorder=recorder) as client:
        await client.post("/echo", json={"a": 1})
        await client.get("/echo")
    [settled] = recorder.settled
    delivery: Any = settled.delivery

    assert (delivery.request_size, delivery.response_size) == (7, 7)


class Trail(Recorder):
    """A recorder that also records requests without a view."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Unhandled] = []

    def unhandled(self, record: Unhandled) -> None:
        """Record it."""
        self.told.append(record)


async def test_observers_are_notified_of_requests_without_a_view() -> None:
    """Unknown routes, responses of a middleware, and malformed requests."""

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.query:
            await asyncio.sleep(0.02)
            raise web.HTTPUnauthorized
        answer: web.StreamResponse = await handler(request)
        return answer

    trail = Trail()
    for middlewares in ([], [guard]):
        async with serving(Echo, recorder=trail, middlewares=middlewares) as client:
            await client.get("/nowhere")
            await client.get("/echo")
            await client.post("/echo", json={})
            if middlewares:
                await client.post("/echo?refuse=1", json={"a": 1})
            await everything(client, b"\r\nno HTTP\r\n\r\n")

    nobodys = [("", "GET", 404), ("/echo", "GET", 405), ("", "UNKNOWN", 400)]
    refused = ("/echo", "POST", 401)
    found = [(each.route, each.method, each.status) for each in trail.told]
    assert found == [*nobodys, *nobodys[:2], refused, nobodys[2]]
    assert trail.told[-2].seconds >= 0.02
    assert trail.told[-2].response_size
    assert len(trail.settled) == 2


async def test_observers_are_notified_of_requests_that_are_too_slow() -> None:
    """And not of connections without a request."""
    trail = Trail()
    async with serving(Echo, recorder=trail, read_timeout=0.2) as client:
        assert await everything(client, b"") == b""
        answer = await everything(client, b"POST /echo HTTP/1.1\r\nHost:")

    [told] = trail.told
    assert (told.route, told.method, told.status) == ("", "UNKNOWN", 408)
    assert told.seconds > 0.2
    assert told.response_size == len(answer.partition(b"\r\n\r\n")[2])
