"""Rows FH4, FH5 and FH7: responses to errors of clients and of views."""

import asyncio
import gzip
import json
import logging
import resource
import zlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict
from pydantic import BaseModel

from tests.application import Recorder
from tests.compression import brotli
from tests.records import errors, fields
from tests.serving import everything, first_answer, serving
from workerkit import HTTPView
from workerkit.http import raw_request
from workerkit.observe import Unhandled
from workerkit.testing.http_client import HTTPClient

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nHost: h\r\n\r\n"
SECRET = "hunter22"
BAD = ["\n", "\r", "\r\nX-Evil: 1", "\0", "\x07", "\x1b[2J", "\x7f", "\ud800"]
SENT = "a header of the response cannot be sent"


class Trail(Recorder):
    """A recorder of the responses that no view returned."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Unhandled] = []

    def unhandled(self, record: Unhandled) -> None:
        """Record it."""
        self.told.append(record)


class Order(BaseModel):
    id: float = 0
    name: str = ""


class Orders(HTTPView):
    routes = ["/orders"]

    async def get(self, limit: float = 0.0, steps: list[float] = []) -> float:  # noqa: B006
        """Give it back."""
        return limit

    async def post(self, order: Order) -> Order:
        """Give it back."""
        return order


def answering(make: Any) -> type[HTTPView]:
    """Return a view that answers with what *make* returns."""

    class Answering(HTTPView):
        routes = ["/"]

        async def get(self, request: web.Request) -> web.StreamResponse:
            """Answer."""
            answer: web.StreamResponse = await make(request)
            return answer

    return Answering


async def plainly(name: str, value: str, request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"hello", headers={name: value})


async def with_reason(name: str, value: str, request: web.Request) -> web.StreamResponse:
    response = web.Response(body=b"hello")
    response._reason = value  # A library may not check it.
    return response


async def with_cookie(name: str, value: str, request: web.Request) -> web.StreamResponse:
    response = web.Response(body=b"hello", headers={name: value})
    response.set_cookie("a", "b")
    return response


async def streaming(name: str, value: str, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={name: value})
    await response.prepare(request)
    return response


async def raising(name: str, value: str, request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/", headers={name: value})


async def in_name(name: str, value: str, request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"hello", headers={f"X-Own{value}": "a"})


FORMS = [plainly, with_reason, with_cookie, streaming, raising, in_name]


@pytest.mark.parametrize("form", FORMS)
async def test_fh4_a_control_character_in_a_header(
    caplog: pytest.LogCaptureFixture, form: Any
) -> None:
    """FH4: a 500 with the id of the request, and one record with only the header's name."""
    bad = iter([*BAD, *BAD, *BAD])

    async def make(request: web.Request) -> web.StreamResponse:
        answer: web.StreamResponse = await form("X-Own", f"{SECRET}{next(bad)}", request)
        return answer

    trail = Trail()
    named = "reason" if form is with_reason else "X-Own"
    async with serving(answering(make), recorder=trail) as client:
        for asked in [LAST, HEAD, OLD]:
            for _ in BAD:
                caplog.clear()
                sent = asked.replace(b"Host: h", b"Host: h\r\nX-Request-ID: mine")
                found = await everything(client, sent)

                assert found.startswith((b"HTTP/1.1 500 ", b"HTTP/1.0 500 ")), found
                assert b"x-request-id: mine\r\n" in found.lower()
                assert b"\nX-Evil" not in found
                assert SECRET.encode() not in found
                assert found.lower().count(b"content-length:") == 1
                _, _, body = found.partition(b"\r\n\r\n")
                if asked is HEAD:
                    assert body == b""
                else:
                    assert json.loads(body)["request_id"] == "mine"
                [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
                fields_ = vars(record)
                assert SECRET not in record.getMessage()
                assert named in str(fields_.get("header", fields_.get("error")))

    told = [each.status for each in trail.told]
    told += [getattr(each.delivery, "status", 0) for each in trail.settled]
    assert told == [500] * 3 * len(BAD)


async def test_fh4_a_header_that_a_middleware_adds(caplog: pytest.LogCaptureFixture) -> None:
    """FH4: the same if a middleware adds the header."""

    @web.middleware
    async def adding(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        answer.headers["X-Added"] = "a\nb"
        return answer

    async def make(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"hello")

    async with serving(answering(make), middlewares=[adding]) as client:
        found = await first_answer(client, GET)

    assert found.startswith(b"HTTP/1.1 500 ")
    [record] = fields(caplog, SENT)
    assert (record["header"], record["route"]) == ("X-Added", "/")


CODINGS = {
    "gzip": partial(gzip.compress, compresslevel=1),
    "deflate": partial(zlib.compress, level=1),
    "br": partial(brotli.compress, quality=1),
}


@pytest.mark.parametrize("coding", CODINGS)
async def test_fh5_an_encoded_body(coding: str) -> None:
    """FH5: it is decoded."""
    async with serving(Orders) as client:
        answer = await client.post(
            "/orders",
            body=CODINGS[coding](b'{"id": 1}'),
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )

    assert (answer.status, answer.json()["id"]) == (200, 1.0)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize(
    "junk",
    [b"junk", b"\x1f\x8b\x08junk", b"\0" * 70_000, gzip.compress(b'{"id": 1}', mtime=0)[:-12]],
)
@pytest.mark.parametrize("path", ["/orders", "/"])
async def test_fh5_a_body_that_does_not_match_its_coding(
    caplog: pytest.LogCaptureFixture, coding: str, junk: bytes, path: str
) -> None:
    """FH5: it is a 400, logged once at INFO; other requests are answered."""
    caplog.set_level(logging.INFO)

    class Raw(HTTPView):
        routes = ["/"]

        async def post(self, request: web.Request) -> web.Response:
            """Read it."""
            return web.json_response(await request.json())

    async with serving(Orders, Raw) as client:
        caplog.clear()
        answer = await client.post(
            path,
            body=junk,
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )
        neighbour = await client.get("/orders")

    assert neighbour.status == 200
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    records = [each for each in caplog.records if each.name.startswith(("workerkit", "aiohttp"))]
    records = [each for each in records if each.message != "stopping"]
    assert [each.levelno for each in records] == [logging.INFO]
    assert records[0].exc_info is None


@pytest.mark.parametrize("coding", ["snappy", "x", "gzip, gzip", "compress"])
async def test_fh5_an_unknown_coding(coding: str) -> None:
    """FH5: it is a 415 that lists the known codings."""
    async with serving(Orders) as client:
        answer = await client.post(
            "/orders",
            body=b"{}",
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )

    assert answer.status == 415
    assert "gzip" in answer.headers["Accept-Encoding"]
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(("coding", "flag"), [("br", "HAS_BROTLI"), ("zstd", "HAS_ZSTD")])
async def test_fh5_a_coding_without_its_library(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, coding: str, flag: str
) -> None:
    """FH5: it is a 415 as well."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(f"aiohttp.http_parser.{flag}", False)
    async with serving(Orders) as client:
        answer = await client.post(
            "/orders",
            body=b"{}",
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )

    assert answer.status == 415
    assert "gzip" in answer.headers["Accept-Encoding"]
    assert errors(caplog) == []


@pytest.mark.parametrize("coding", CODINGS)
async def test_fh5_a_decompression_bomb(coding: str) -> None:
    """FH5: a body that exceeds `max_body` when decoded is a 413, and is not decoded to its end."""
    bomb = CODINGS[coding](b" " * 128 * 1024 * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with serving(Orders) as client:
        answer = await client.post(
            "/orders",
            body=bomb,
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )

    assert answer.status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_fh5_the_codings_are_those_of_aiohttp() -> None:
    """FH5: with the libraries installed all four codings are decoded."""
    assert raw_request.SUPPORTED == ("gzip", "deflate", "br", "zstd")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"id": NaN}', 400),
        (b'{"id": Infinity}', 400),
        (b'{"id": -Infinity}', 400),
        (b'{"id": 1, "unknown": NaN}', 400),
        (b'{"id": 1, "name": "NaN and Infinity"}', 200),
        (b'\xef\xbb\xbf{"id": 1, "name": "NaN"}', 200),
        (b'{"id": 1, "NaN": 2}', 200),
    ],
)
async def test_fh7_nan_is_not_json(body: bytes, status: int) -> None:
    """FH7: NaN and Infinity in a body are a 400, unless they are part of a string."""
    async with serving(Orders) as client:
        answer = await client.post(
            "/orders", body=body, headers={"Content-Type": "application/json"}
        )

    assert answer.status == status


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-Infinity", "1e999"])
async def test_fh7_nan_in_a_query(text: str) -> None:
    """FH7: NaN and Infinity are invalid as a `float`, alone and in a list."""
    async with serving(Orders) as client:
        alone = await client.get("/orders", query={"limit": text})
        listed = await client.get(f"/orders?steps=1&steps={text}")
        fine = await client.get("/orders?limit=1e3")

    assert (alone.status, listed.status, fine.json()) == (422, 422, 1000.0)


BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


class Forms(HTTPView):
    """Reads a form in each way that aiohttp offers."""

    routes = ["/{way}"]

    async def post(self, way: str, request: web.Request) -> str:
        """Read it."""
        if way == "post":
            return str(dict(await request.post()))
        if way == "json":
            return str(await request.json())
        if way == "text":
            return await request.text()
        if way == "own":
            raise ValueError("not about the body")
        if way == "kept":
            try:
                await request.json()
            except json.JSONDecodeError:
                return "as in aiohttp"
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            assert isinstance(part, aiohttp.BodyPartReader)
            await part.read()
        return ""


@pytest.mark.parametrize(
    ("way", "kind", "body", "status"),
    [
        ("post", BOUNDARY, PART + b"1\r\n--b--\r\n", 200),
        ("post", BOUNDARY, PART + b"1", 400),
        ("post", BOUNDARY, b"junk", 400),
        ("post", BOUNDARY, b"--b\r\njunk", 400),
        ("post", BOUNDARY, b"--c\r\n\r\n--c--", 400),
        ("post", "multipart/form-data", PART, 400),
        ("post", "multipart/form-data; boundary=" + "b" * 100, PART, 400),
        ("post", "application/x-www-form-urlencoded; charset=nothing", b"a=1", 400),
        ("post", "application/x-www-form-urlencoded; charset=utf-8", b"a=\xff", 400),
        ("parts", BOUNDARY, PART + b"1\r\n--b--\r\n", 200),
        ("parts", BOUNDARY, PART + b"1", 400),
        ("parts", BOUNDARY, b"junk", 400),
        ("parts", "text/plain", b"junk", 400),
        ("json", "application/json", b"{", 400),
        ("json", "application/json", b"[" * 200_000, 400),
        ("json", "application/json; charset=nothing", b"{}", 400),
        ("text", "text/plain; charset=utf-8", b"\xff", 400),
        ("kept", "application/json", b"{", 200),
        ("own", "text/plain", b"", 500),
    ],
)
async def test_fh7_a_body_that_a_view_cannot_read(
    caplog: pytest.LogCaptureFixture, way: str, kind: str, body: bytes, status: int
) -> None:
    """FH7: a malformed form, JSON or text is a 400, unless the view catches the exception."""
    caplog.set_level(logging.INFO)
    async with serving(Forms) as client:
        answer = await client.post(f"/{way}", body=body, headers={"Content-Type": kind})

    assert answer.status == status, answer.text
    if status == 400:
        [record] = fields(caplog, "request refused" if status == 400 else "request failed")
        assert (record["levelno"], record["exc_info"]) == (logging.INFO, None)


async def test_fh7_a_form_that_a_middleware_cannot_read(caplog: pytest.LogCaptureFixture) -> None:
    """FH7: it is a 400 as well."""

    @web.middleware
    async def reading(request: web.Request, handler: Any) -> web.StreamResponse:
        await request.post()
        answer: web.StreamResponse = await handler(request)
        return answer

    async with serving(Forms, middlewares=[reading]) as client:
        answer = await client.post("/post", body=PART, headers={"Content-Type": BOUNDARY})

    assert answer.status == 400
    assert errors(caplog) == []


@pytest.mark.parametrize("method", [b"FOO", b"GETX", b"get", b"X-Y"])
async def test_fh7_an_unknown_method(caplog: pytest.LogCaptureFixture, method: bytes) -> None:
    """FH7: it is a 501; a known method that the view does not have is a 405."""
    caplog.set_level(logging.INFO)
    async with serving(Orders) as client:
        unknown = await everything(client, method + b" /orders HTTP/1.1\r\nHost: h\r\n\r\n")
        other = await first_answer(client, b"PURGE /orders HTTP/1.1\r\nHost: h\r\n\r\n")
        junk = await everything(client, b"\x16\x03\x01\x02\r\n\r\n")

    assert b" 501 " in unknown.partition(b"\r\n")[0]
    assert b"application/problem+json" in unknown
    assert other.startswith(b"HTTP/1.1 405 ")
    assert b" 400 " in junk.partition(b"\r\n")[0]
    assert [each.levelno for each in caplog.records if each.levelno > logging.INFO] == []


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ((1, 2, 3), 500),
        ((), 500),
        ((1, "a"), 500),
        ((1, 99), 500),
        (({"a": 1}, 200, {"X-Own": "a"}), 500),
        (({"a": 1}, True), 500),
        (({"a": 1}, 202), 202),
        (Point(1, 404), 200),
        ([1, 2], 200),
        ({"a": (1, 2)}, 200),
    ],
)
async def test_fh7_an_invalid_tuple(
    caplog: pytest.LogCaptureFixture, value: Any, status: int
) -> None:
    """FH7: only `(body, status)` is valid; for other tuples the log says what to write."""

    class Tuples(HTTPView):
        routes = ["/"]

        async def get(self) -> Any:
            """Answer."""
            return value

    async with serving(Tuples) as client:
        answer = await client.get("/")

    assert answer.status == status
    if status == 500:
        [record] = fields(caplog, "request refused" if status == 400 else "request failed")
        assert "write (body, status)" in record["error"]


async def test_fh7_the_route_of_a_405(caplog: pytest.LogCaptureFixture) -> None:
    """FH7: observers, metrics and the log get the route that has other methods."""
    caplog.set_level(logging.DEBUG)

    class Parts(HTTPView):
        routes = ["/orders/{id:[0-9]+}/{rest}"]

        async def get(self) -> None:
            """Answer."""

    @web.middleware
    async def passing(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        return answer

    for middlewares in ([], [passing]):
        trail = Trail()
        caplog.clear()
        async with serving(Parts, Orders, recorder=trail, middlewares=middlewares) as client:
            await client.delete("/orders/7/x%20y?a=1")
            await client.delete("/orders")
            await client.delete("/orders/x/y")

        assert [(each.route, each.status) for each in trail.told] == [
            ("/orders/{id}/{rest}", 405),
            ("/orders", 405),
            ("", 404),
        ]
        logged = fields(caplog, "answered without a view")
        assert [each["route"] for each in logged] == [each.route for each in trail.told]
        assert {each["levelno"] for each in logged} == {logging.DEBUG}


TWICE = CIMultiDict([("Content-Type", "text/a"), ("X-Own", "1"), ("content-type", "text/b")])


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TWICE)
    await response.prepare(request)
    await response.write_eof(b"hello")
    return response


async def whole(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"hello", headers=TWICE)


async def raised(request: web.Request) -> web.StreamResponse:
    raise web.HTTPBadRequest(text="hello", headers=TWICE)


async def found(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/", text="hello", headers=TWICE)


@pytest.mark.parametrize("make", [whole, streamed, raised, found])
@pytest.mark.parametrize("request_", [LAST, HEAD])
async def test_fh7_one_content_type(make: Any, request_: bytes) -> None:
    """FH7: a response with two content types is sent with the first one."""
    async with serving(answering(make)) as client:
        answer = await everything(client, request_)

    assert answer.lower().count(b"content-type:") == 1, answer
    assert b"text/a" in answer or make in (raised, found)


@pytest.fixture
async def socket_client() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session for WebSockets."""
    async with aiohttp.ClientSession() as session:
        yield session


def sockets(form: str, ended: list[str]) -> type[HTTPView]:
    """Return a view with a WebSocket that notes its end."""

    class Sockets(HTTPView):
        routes = ["/"]
        timeout = None

        async def get(self, request: web.Request) -> web.StreamResponse:
            """Talk."""
            socket = web.WebSocketResponse(heartbeat=5.0)
            await socket.prepare(request)
            if form == "receiving":
                async for message in socket:
                    await socket.send_str(message.data)
            else:
                while not socket.closed:
                    await socket.send_str("tick")
                    await asyncio.sleep(0.01)
            ended.append(form)
            return socket

    return Sockets


@pytest.mark.parametrize("form", ["receiving", "sending"])
@pytest.mark.parametrize("answers", [True, False])
async def test_fh7_a_websocket_is_closed_at_once(
    caplog: pytest.LogCaptureFixture,
    socket_client: aiohttp.ClientSession,
    form: str,
    answers: bool,
) -> None:
    """FH7: with 1001 when the process stops, without waiting for the grace period."""
    ended: list[str] = []
    loop = asyncio.get_running_loop()
    async with serving(sockets(form, ended), grace=60.0) as client:
        socket = await socket_client.ws_connect(client.url, autoclose=answers)
        if form == "receiving":
            await socket.send_str("a")
        assert (await socket.receive()).type is aiohttp.WSMsgType.TEXT
        reading = asyncio.create_task(_until_closed(socket)) if answers else None
        began = loop.time()
    took = loop.time() - began

    if reading is not None:
        assert await reading == 1001
    assert took < 30.0
    assert ended == [form] or form == "sending"
    assert errors(caplog) == []
    await socket.close()


async def _code_of(session: aiohttp.ClientSession, url: str) -> int | None:
    return await _until_closed(await session.ws_connect(url))


async def _until_closed(socket: "aiohttp.ClientWebSocketResponse[Any]") -> int | None:
    async for _ in socket:
        pass
    return socket.close_code


async def test_fh7_a_websocket_that_begins_during_the_stop() -> None:
    """FH7: it is closed with 1001 as well."""
    asked, stopping, ended = asyncio.Event(), asyncio.Event(), list[str]()

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> web.StreamResponse:
        asked.set()
        await stopping.wait()
        answer: web.StreamResponse = await handler(request)
        return answer

    async with aiohttp.ClientSession() as session:
        async with serving(sockets("receiving", ended), middlewares=[slow], grace=60.0) as client:
            reading = asyncio.create_task(_code_of(session, client.url))
            await asked.wait()
            asyncio.get_running_loop().call_later(0.2, stopping.set)

        assert await reading == 1001
    assert ended == ["receiving"]


async def test_fh7_a_request_next_to_a_websocket() -> None:
    """FH7: a request in progress is answered while a WebSocket is closed."""
    going = asyncio.Event()
    ended: list[str] = []

    class Slow(HTTPView):
        routes = ["/slow"]

        async def get(self) -> str:
            """Take a moment."""
            going.set()
            await asyncio.sleep(0.3)
            return "done"

    async with aiohttp.ClientSession() as session:
        client: HTTPClient
        async with serving(sockets("receiving", ended), Slow, grace=60.0) as client:
            socket = await session.ws_connect(client.url)
            url = client.url
            asking = asyncio.create_task(_text(session, f"{url}/slow"))
            reading = asyncio.create_task(_until_closed(socket))
            await going.wait()

        assert await asking == '"done"'
        assert await reading == 1001


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()


ONCE = web.Response(text="the same for all")


async def test_fh7_a_response_that_was_sent_before(caplog: pytest.LogCaptureFixture) -> None:
    """It is a 500 with a record; the connection is not closed without a response."""

    class Constant(HTTPView):
        routes = ["/constant"]

        async def get(self) -> web.Response:
            return ONCE

    request = b"GET /constant HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving(Constant) as client:
        first = await first_answer(client, request)
        again = await first_answer(client, request)

    assert first.endswith(b"the same for all")
    assert again.startswith(b"HTTP/1.1 500 ")
    [record] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "a response can be sent once" in record.message
