"""Rows H1 and H2: any request of a client and any exception of a handler gets a valid response."""

import asyncio
import json
import logging
from typing import Annotated, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, SecretStr

from tests.application import Recorder
from tests.records import errors, everything, fields
from tests.serving import first_answer, serving
from tests.waiting import eventually
from workerkit import Cookie, Header, HTTPView, Reject, Retry
from workerkit.testing.http_client import HTTPAnswer

SECRET = "hunter22"
UPLOAD = b"""PUT /orders/1 HTTP/1.1\r
Host: x\r
Content-Type: application/json\r
Content-Length: 9\r
\r
"""


class Order(BaseModel):
    id: int
    password: SecretStr = SecretStr("")


class Orders(HTTPView):
    """Takes values from every part of the request."""

    routes = ["/orders/{order_id}"]
    max_body = 1_000

    async def get(
        self,
        order_id: int,
        verbose: bool = False,
        ids: list[int] = [],  # noqa: B006
        x_count: Annotated[int, Header] = 0,
        sid: Annotated[int, Cookie] = 0,
    ) -> int:
        """Return the id."""
        return order_id

    async def put(self, order_id: int, order: Order, verbose: bool = False) -> Order:
        """Return the order."""
        return order


def problem(answer: HTTPAnswer) -> dict[str, Any]:
    """Return the problem in a response, after a check that it contains no secret."""
    found: dict[str, Any] = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (found["status"], found["type"]) == (answer.status, "about:blank")
    assert found["request_id"] == answer.headers["X-Request-ID"]
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text
    return found


@pytest.mark.parametrize(
    ("path", "more", "part", "name"),
    [
        (f"/orders/{SECRET}", {}, "path", "order_id"),
        ("/orders/%00", {}, "path", "order_id"),
        ("/orders/%FF", {}, "path", "order_id"),
        (f"/orders/1?verbose={SECRET}", {}, "query", "verbose"),
        (f"/orders/1?ids=1&ids={SECRET}", {}, "query", "ids"),
        ("/orders/1", {"headers": {"X-Count": SECRET}}, "header", "x-count"),
        ("/orders/1", {"cookies": {"sid": SECRET}}, "cookie", "sid"),
    ],
)
async def test_h1_an_invalid_value(
    caplog: pytest.LogCaptureFixture, path: str, more: Any, part: str, name: str
) -> None:
    """H1: 422 that names the value; its text is neither in the response nor in the log."""
    caplog.set_level(logging.DEBUG)
    async with serving(Orders) as client:
        answer = await client.get(path, **more)

    assert answer.status == 422
    [wrong] = problem(answer)["errors"]
    assert (wrong["in"], wrong["name"]) == (part, name)
    assert wrong["detail"].startswith("Input should be")
    [record] = fields(caplog, "request refused")
    assert SECRET not in json.dumps(record, default=str)


async def test_h1_several_invalid_values() -> None:
    """H1: all of them are named at once, including those of the body."""
    async with serving(Orders) as client:
        answer = await client.put(f"/orders/x?verbose={SECRET}", json={"password": SECRET})

    found = problem(answer)["errors"]
    assert [(each["in"], each["name"]) for each in found] == [
        ("path", "order_id"),
        ("query", "verbose"),
        ("body", "id"),
    ]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe{", "application/json", 400),
        (b'{"id": "hunter22"}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b'"hunter22"', "application/json", 422),
        (b"[" * 900, "application/json", 400),
        (b'{"id": 1}', "text/plain", 415),
        (b"id=1", "application/x-www-form-urlencoded", 415),
        (b'{"id": 1}', "application/json;;;", 200),
        (b'{"id": 1}', "hunter22", 415),
        (b'{"id": 1}' + b" " * 2_000, "application/json", 413),
    ],
)
async def test_h1_an_invalid_body(body: bytes, content_type: str, status: int) -> None:
    """H1: not JSON is 400, another form 422, another type 415, too large 413."""
    async with serving(Orders) as client:
        answer = await client.put("/orders/1", body=body, headers={"Content-Type": content_type})

    assert answer.status == status
    if status != 200:
        problem(answer)


async def test_h1_a_body_without_a_type() -> None:
    """H1: it is a 415: any web page could have a browser send it."""
    async with serving(Orders) as client, asyncio.timeout(30.0):
        head = b"PUT /orders/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        answer = await first_answer(client, head + b'{"id": 1}')

    assert b" 415 " in answer.partition(b"\r\n")[0]


async def test_h1_unknown_routes_and_methods() -> None:
    """H1: 404 and 405 are problems too; 405 and `OPTIONS` list the allowed methods."""
    async with serving(Orders) as client:
        unknown = await client.get("/nowhere")
        wrong = await client.delete("/orders/1")
        options = await client.options("/orders/1")
        head = await client.head("/orders/1")

    assert (unknown.status, problem(unknown)["title"]) == (404, "Not Found")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, OPTIONS, PUT")
    problem(wrong)
    assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, PUT")
    assert head.status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"hunter22\r\n\r\n",
        b"GET / HTTP/1.1\r\nhunter22\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_h1_a_malformed_request(caplog: pytest.LogCaptureFixture, request_: bytes) -> None:
    """H1: 400 that quotes nothing, and no ERROR: any client can send it."""
    caplog.set_level(logging.DEBUG)
    async with serving(Orders) as client, asyncio.timeout(30.0):
        answer = await first_answer(client, request_)
        still = await client.get("/orders/1")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    told = json.loads(body)
    too_long = len(request_) > 8_190
    assert told["detail"] == (
        "a line of the head is too long" if too_long else "the request is malformed"
    )
    assert f"X-Request-ID: {told['request_id']}".encode() in head
    assert b"hunter22" not in answer
    assert still.status == 200
    assert errors(caplog) == []


async def test_h1_a_body_that_is_encoded_wrongly() -> None:
    """H1: 400, or 413 if a small body decompresses to a large one."""
    bomb = b"\x78\x9c\xed\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee\x08\x0a"
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    async with serving(Orders) as client:
        answer = await client.put("/orders/1", body=b"no deflate" + bomb, headers=headers)

    assert answer.status == 400
    problem(answer)


@pytest.mark.parametrize(
    ("start", "answered"),
    [
        (b"GET /orders/1 HTTP/1.1\r\nHost:", True),
        (b"G", True),
        (b"", False),
        (UPLOAD + b"{", True),
    ],
)
async def test_h1_a_slow_client(start: bytes, answered: bool) -> None:
    """H1: 408 for a head or a body that is too slow; without data the connection is closed."""
    async with serving(Orders, read_timeout=0.2) as client, asyncio.timeout(30.0):
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        answer = await (reader.readuntil(b"}") if answered else reader.read())
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") is answered
    assert (b"application/problem+json" in answer) is answered
    if answered:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"X-Request-ID: {json.loads(body)['request_id']}".encode() in head


async def test_h1_an_unknown_expectation() -> None:
    """H1: 417 is a problem as well."""
    async with serving(Orders) as client:
        answer = await client.put("/orders/1", body=b"{}", headers={"Expect": "miracles"})

    assert answer.status == 417
    assert problem(answer)["detail"] == "the only known value of the header Expect is 100-continue"


async def test_h1_an_expectation_that_is_not_text(caplog: pytest.LogCaptureFixture) -> None:
    """H1: it is answered like any unknown one, and is not an ERROR."""
    async with serving(Orders) as client:
        answer = await first_answer(
            client,
            b"PUT /orders/1 HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\nContent-Length: 0\r\n\r\n",
        )

    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"the only known value of the header Expect is 100-continue" in answer
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_h1_an_idle_connection() -> None:
    """H1: a client may be idle between two requests."""
    async with serving(Orders, read_timeout=0.25) as client, asyncio.timeout(30.0):
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = asyncio.get_running_loop().time()
        for _ in range(2):
            writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n1")
            await eventually(lambda: asyncio.get_running_loop().time() > begun + 1.0)
        writer.close()


class Failing(HTTPView):
    """Raises the exception that the request names."""

    routes = ["/{what}"]

    async def get(self, what: str) -> Any:
        """Raise it."""
        return RAISED[what]()

    def post(self, what: str) -> Any:
        """Raise it in a thread."""
        return RAISED[what]()


class Late(HTTPView):
    """Takes too long."""

    routes = ["/late"]
    timeout = 0.05

    async def get(self) -> None:
        """Wait."""
        await asyncio.sleep(60)


class Unwritable:
    """An object that JSON cannot represent."""


def throw(error: Exception) -> Any:
    """Raise it."""
    raise error


RAISED: dict[str, Any] = {
    "bug": lambda: throw(KeyError(SECRET)),
    "reject": lambda: throw(Reject("no tea is left")),
    "retry": lambda: throw(Retry("later", after=7.2)),
    "soon": lambda: throw(Retry()),
    "timeout": lambda: throw(TimeoutError()),
    "lost": lambda: throw(ConnectionResetError()),
    "gone": lambda: throw(web.HTTPGone()),
    "reason": lambda: throw(web.HTTPConflict(reason="It is sold")),
    "own": lambda: throw(web.HTTPNotFound(text='{"a": 1}', content_type="application/json")),
    "login": lambda: throw(web.HTTPUnauthorized(headers={"WWW-Authenticate": "Basic"})),
    "moved": lambda: throw(web.HTTPFound("/elsewhere")),
    "down": lambda: throw(web.HTTPServiceUnavailable()),
    "unwritable": Unwritable,
    "status": lambda: (Unwritable(), 201),
}


@pytest.mark.parametrize("verb", ["get", "post"])
@pytest.mark.parametrize("what", ["bug", "unwritable", "status", "timeout", "lost"])
async def test_h2_a_handler_that_raises(
    caplog: pytest.LogCaptureFixture, verb: str, what: str
) -> None:
    """H2: 500 with an id that the log has next to the traceback, which the client never gets."""
    async with serving(Failing) as client:
        answer = await getattr(client, verb)(f"/{what}")

    assert answer.status == 500
    assert sorted(problem(answer)) == ["request_id", "status", "title", "type"]
    [record] = fields(caplog, "request failed")
    assert problem(answer)["request_id"] == record["request_id"]
    assert record["exc_info"]


@pytest.mark.parametrize(
    ("what", "status", "detail", "headers", "action"),
    [
        ("reject", 422, "no tea is left", {}, "reject"),
        ("retry", 503, "later", {"Retry-After": "8"}, "retry"),
        ("soon", 503, None, {"Retry-After": "1"}, "retry"),
        ("late", 504, None, {}, "reject"),
        ("gone", 410, None, {}, "ack"),
        ("reason", 409, "It is sold", {}, "ack"),
        ("login", 401, None, {"WWW-Authenticate": "Basic"}, "ack"),
        ("down", 503, None, {}, "reject"),
    ],
)
async def test_h2_exceptions_with_a_status(
    what: str, status: int, detail: str | None, headers: dict[str, str], action: str
) -> None:
    """H2: each has its status, and aiohttp's exceptions keep their status and headers."""
    recorder = Recorder()
    view = Late if what == "late" else Failing
    async with serving(view, recorder=recorder) as client:
        answer = await client.get(f"/{what}")

    assert (answer.status, problem(answer).get("detail")) == (status, detail)
    assert headers.items() <= dict(answer.headers).items()
    assert recorder.actions == [action]
    assert getattr(recorder.settled[0].delivery, "status", 0) == status


async def test_h2_exceptions_that_are_responses() -> None:
    """H2: a redirection, or an exception with its own body, is sent unchanged."""
    async with serving(Failing) as client:
        moved, own = await client.get("/moved"), await client.get("/own")

    assert (moved.status, moved.headers["Location"]) == (302, "/elsewhere")
    assert (own.status, own.json()) == (404, {"a": 1})


async def test_h2_the_id_of_a_request() -> None:
    """H2: the id of the client if it is valid, otherwise a new and unique one."""
    async with serving(Failing) as client:
        given = await client.get("/bug", headers={"X-Request-ID": "abc-1"})
        odd = [
            await client.get("/bug", headers={"X-Request-ID": each})
            for each in ("", "a b", "x" * 200, 'a"b', "a\tb")
        ]

    assert problem(given)["request_id"] == "abc-1"
    ids = [problem(each)["request_id"] for each in odd]
    assert len(set(ids)) == 5
    assert not {"", "a b", "x" * 200} & set(ids)


async def test_h2_half_of_a_response() -> None:
    """H2: a failure after half of a response closes the connection; no second head is sent."""

    class Half(HTTPView):
        routes = ["/{how}"]

        async def get(self, request: web.Request, how: str) -> Any:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"half")
            if how == "raise":
                raise KeyError(how)
            if how == "http":
                raise web.HTTPNotFound

    recorder = Recorder()
    async with serving(Half, recorder=recorder) as client:
        for how in ("raise", "http", "return"):
            with pytest.raises(aiohttp.ClientPayloadError):
                await client.get(f"/{how}")

    assert recorder.actions == ["reject", "ack", "ack"]


async def test_h2_a_middleware(caplog: pytest.LogCaptureFixture) -> None:
    """H2: middlewares surround every request, and their exceptions are problems as well."""
    seen: list[str] = []

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(request.path)
        if "fail" in request.query:
            raise KeyError(SECRET)
        if "refuse" in request.query:
            raise web.HTTPForbidden
        response: web.StreamResponse = await handler(request)
        response.headers["X-Guarded"] = "yes"
        return response

    async with serving(Orders, middlewares=[guard]) as client:
        good = await client.get("/orders/1")
        failed = await client.get("/orders/1?fail=1")
        refused = await client.get("/orders/1?refuse=1")
        unknown = await client.get("/nowhere")

    assert (good.status, good.headers["X-Guarded"]) == (200, "yes")
    assert (failed.status, problem(failed)["title"]) == (500, "Internal Server Error")
    assert (refused.status, problem(refused)["title"]) == (403, "Forbidden")
    assert problem(unknown)["title"] == "Not Found"
    assert seen == ["/orders/1"] * 3 + ["/nowhere"]
    assert "middleware failed" in errors(caplog)


async def test_h2_a_client_that_disconnects() -> None:
    """H2: its request is handled to the end, and is not a failure."""
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(HTTPView):
        routes = ["/"]

        async def get(self) -> str:
            begun.set()
            await go.wait()
            done.set()
            return "done"

    recorder = Recorder()
    async with serving(Slow, recorder=recorder) as client:
        asking = asyncio.create_task(client.get("/"))
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        go.set()
        await asyncio.wait_for(done.wait(), 30.0)
        await eventually(lambda: recorder.actions)

    assert recorder.actions == ["ack"]


async def test_h2_a_client_that_disconnects_from_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    """H2: the stream ends, and is not a failure."""

    class Stream(HTTPView):
        routes = ["/"]

        async def get(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            while True:
                await response.write(b"data: x\n\n")
                await asyncio.sleep(0.005)

    recorder = Recorder()
    async with serving(Stream, recorder=recorder) as client:
        async with aiohttp.ClientSession() as session, session.get(client.url) as answer:
            assert await answer.content.readline() == b"data: x\n"
        await eventually(lambda: recorder.actions)

    assert recorder.actions == ["ack"]
    assert errors(caplog) == []
    assert "Traceback" not in everything(caplog)


@pytest.mark.parametrize(
    ("request_", "answers", "stays"),
    [
        (b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n", 1, True),
        (b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n" * 3, 3, True),
        (b"GET /orders/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 1, False),
        (b"GET /orders/1 HTTP/1.0\r\n\r\n", 1, False),
        (b"GET /orders/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 1, True),
    ],
)
async def test_connections_of_all_kinds(request_: bytes, answers: int, stays: bool) -> None:
    """Old clients, clients that close, and pipelined requests get the right responses."""
    async with serving(Orders) as client, asyncio.timeout(30.0):
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        found = [await reader.readuntil(b"\r\n\r\n1") for _ in range(answers)]
        if stays:
            writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
            found.append(await reader.readuntil(b"\r\n\r\n1"))
        else:
            assert await reader.read() == b""
        writer.close()

    for head in found:
        assert head.split()[1] == b"200"
        for name in (b"Content-Length: 1", b"Date: ", b"Server: ", b"X-Request-ID: "):
            assert head.count(b"\r\n" + name) == 1
