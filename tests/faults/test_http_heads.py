"""H1: the head of a response, whether workerkit or aiohttp writes it."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from tests.serving import everything, first_answer, serving
from workerkit import HTTPView
from workerkit.logs import request_id
from workerkit.testing.http_client import HTTPClient


class Heads(HTTPView):
    """Answers with headers that the test sets."""

    routes = ["/"]
    headers: Any = {}
    body = b"hello"

    async def get(self, request: web.Request) -> web.Response:
        """Answer."""
        return web.Response(body=self.body, headers=self.headers)


async def raw(client: HTTPClient, request: bytes) -> tuple[str, CIMultiDict[str], bytes]:
    """Return status line, headers and body of the first response."""
    head, _, body = (await first_answer(client, request)).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = CIMultiDict([(name, value) for name, _, value in map(_partition, lines)])
    return status, headers, body


def _partition(line: str) -> tuple[str, str, str]:
    return line.partition(": ")


GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({}, "application/octet-stream"),
        ({"X-Own": "1"}, "application/octet-stream"),
        ({"Content-Type": "text/plain"}, "text/plain"),
        ({"content-type": "text/plain", "x-own": "1"}, "text/plain"),
        ([("X-Own", "1"), ("X-Own", "ä"), ("Content-Type", "text/plain")], "text/plain"),
        ({"Date": "yesterday", "Server": "mine"}, "application/octet-stream"),
        ({"content-length": "5"}, "application/octet-stream"),
        ({"X-Request-ID": "theirs", "X-Own": "1"}, "application/octet-stream"),
    ],
)
async def test_h1_each_header_is_sent_once(headers: Any, kind: str) -> None:
    """The headers of the view, and those of every response."""

    class Own(Heads):
        pass

    Own.headers = headers
    async with serving(Own) as client:
        status, found, body = await raw(client, GET)

    given = CIMultiDict(headers)
    assert (status, body) == ("HTTP/1.1 200 OK", b"hello")
    assert found.getall("Content-Type") == [kind]
    assert found.getall("X-Own", []) == given.getall("X-Own", [])
    for name in ("Content-Length", "Date", "Server", "X-Request-ID"):
        assert len(found.getall(name)) == 1
    for name in ("Date", "Server"):
        assert found[name] == given.get(name, found[name])
    assert found["X-Request-ID"] != "theirs"


@pytest.mark.parametrize("break_", ["\r\n", "\n", "\r", "\0", "\x7f"])
@pytest.mark.parametrize("name", ["X-Own", "Content-Type"])
async def test_h1_a_value_cannot_add_a_header(name: str, break_: str) -> None:
    """A response with a line break in a header is not sent."""

    class Own(Heads):
        headers = {name: f"a{break_}X-Evil: 1"}

    async with serving(Own) as client:
        found = await everything(client, GET)

    assert b"X-Evil: 1\r\n" not in found
    assert b"200 OK" not in found


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
async def test_h1_bodies_of_all_sizes(size: int) -> None:
    """They arrive complete."""

    class Own(Heads):
        body = b"x" * size

    async with serving(Own) as client:
        _, _, body = await raw(client, GET)

    assert body == b"x" * size


@pytest.mark.parametrize("size", [4, 65_536])
async def test_h1_a_response_that_is_kept(size: int) -> None:
    """A view that returns the same response twice: each client gets it with its own id."""

    class Kept(HTTPView):
        routes = ["/"]
        answer = web.Response(body=b"x" * size)

        async def get(self, request: web.Request) -> web.Response:
            return self.answer

    async with serving(Kept) as client:
        first = await raw(client, GET)
        second = await raw(client, GET)

    assert (len(first[2]), len(second[2])) == (size, size)
    assert first[1]["X-Request-ID"] != second[1]["X-Request-ID"]


@pytest.mark.parametrize("name", ["X-Own", "Content-Type"])
async def test_h1_a_header_that_is_not_text(name: str) -> None:
    """The client gets a 500, and the stop is not delayed."""

    class Own(Heads):
        headers = {name: 5}

    async with asyncio.timeout(15.0), serving(Own, grace=20.0) as client:
        found = await everything(client, GET)

    assert found.startswith(b"HTTP/1.1 500 ")


async def test_h1_an_id_cannot_add_a_header() -> None:
    """Whatever value a view or a middleware sets."""

    class Own(Heads):
        async def get(self, request: web.Request) -> web.Response:
            request_id.set("b\r\nX-Evil: 2")
            return web.Response(body=b"hello")

    @web.middleware
    async def set_id(request: web.Request, handler: Any) -> web.StreamResponse:
        request_id.set("a\r\nX-Evil: 1")
        response: web.StreamResponse = await handler(request)
        return response

    async with serving(Own) as client:
        assert b"\nX-Evil" not in await everything(client, GET + LAST)
    async with serving(Own, middlewares=[set_id]) as client:
        assert b"\nX-Evil" not in await everything(client, GET + LAST)


@pytest.mark.parametrize("raised", [False, True])
async def test_h1_a_request_has_one_response(raised: bool) -> None:
    """Also if a middleware returns another response than the one that the view sent."""

    class Streamed(HTTPView):
        routes = ["/"]

        async def get(self, request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse(headers={"Content-Length": "5"})
            await stream.prepare(request)
            await stream.write(b"hello")
            await stream.write_eof()
            if raised:
                raise ValueError("behind the answer")
            return stream

    @web.middleware
    async def another(request: web.Request, handler: Any) -> web.StreamResponse:
        with suppress(Exception):
            await handler(request)
        return web.Response(body=b"another")

    async with serving(Streamed, middlewares=[another]) as client:
        found = await everything(client, GET + LAST)

    assert found.count(b"HTTP/1.1 200 OK") == 2
    assert found.count(b"hello") == 2
    assert b"another" not in found


async def test_h1_a_response_that_is_sent_and_raised() -> None:
    """It is a response like any other, and the connection stays open."""

    class Raising(HTTPView):
        routes = ["/"]

        async def get(self, request: web.Request) -> web.Response:
            answer = web.HTTPOk(text="hello")
            await answer.prepare(request)
            await answer.write_eof()
            raise answer

    async with serving(Raising) as client:
        found = await everything(client, GET + LAST)

    assert found.count(b"HTTP/1.1 200 OK") == 2
