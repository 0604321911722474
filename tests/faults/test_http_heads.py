"""H1: what stands on the connection, whoever wrote it: workerkit at once, or aiohttp."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.serving import serving
from workerkit import HTTPView


class Heads(HTTPView):
    """Answers with the headers that the test has chosen."""

    routes = ["/"]
    headers: Any = {}
    body = b"hello"

    async def get(self, request: web.Request) -> web.Response:
        """Answer."""
        return web.Response(body=self.body, headers=self.headers)


async def raw(base: str, request: bytes) -> tuple[str, CIMultiDict[str], bytes]:
    """Status line, headers and body of the first answer to what is sent."""
    url = URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    async with asyncio.timeout(5.0):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = CIMultiDict([(name, value) for name, _, value in map(_partition, lines)])
        body = await reader.readexactly(int(headers["Content-Length"]))
        writer.close()
    return status, headers, body


def _partition(line: str) -> tuple[str, str, str]:
    return line.partition(": ")


GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


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
async def test_h1_each_header_is_there_once(headers: Any, kind: str) -> None:
    """Those of the view as it has them, and those of every answer beside."""

    class Own(Heads):
        pass

    Own.headers = headers
    async with serving(Own) as client:
        status, found, body = await raw(client.url, GET)

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
async def test_h1_a_value_makes_no_header_of_its_own(name: str, break_: str) -> None:
    """Nothing is sent of an answer whose header holds a line break."""

    class Own(Heads):
        headers = {name: f"a{break_}X-Evil: 1"}

    async with serving(Own) as client:
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(GET)
        async with asyncio.timeout(5.0):
            found = await reader.read()
        writer.close()

    assert b"X-Evil: 1\r\n" not in found
    assert b"200 OK" not in found


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
async def test_h1_bodies_of_all_sizes(size: int) -> None:
    """They come whole."""

    class Own(Heads):
        body = b"x" * size

    async with serving(Own) as client:
        _, _, body = await raw(client.url, GET)

    assert body == b"x" * size


async def test_h1_one_answer_may_serve_twice() -> None:
    """A view that keeps an answer gives it to everybody, each with an id of its own."""

    class Kept(HTTPView):
        routes = ["/"]
        answer = web.Response(body=b"kept")

        async def get(self, request: web.Request) -> web.Response:
            return self.answer

    async with serving(Kept) as client:
        first = await raw(client.url, GET)
        second = await raw(client.url, GET)

    assert (first[2], second[2]) == (b"kept", b"kept")
    assert first[1]["X-Request-ID"] != second[1]["X-Request-ID"]


@pytest.mark.parametrize("path", ["/orders/new", "/orders/new?a=1", "/orders/%6eew", "/orders/7"])
async def test_h1_however_a_path_is_written(path: str) -> None:
    """The same view answers, and aiohttp's request says the same about its route."""

    class New(HTTPView):
        routes = ["/orders/new"]

        async def get(self, request: web.Request) -> dict[str, Any]:
            match = request.match_info
            canonical = match.route.resource.canonical if match.route.resource else ""
            return {"route": canonical, "match": dict(match), "app": request.app is match.apps[0]}

    class Each(New):
        routes = ["/orders/{order_id}"]

    async with serving(Each, New) as client:
        _, _, body = await raw(client.url, b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())

    known = b'{"route":"/orders/new","match":{},"app":true}'
    other = b'{"route":"/orders/{order_id}","match":{"order_id":"7"},"app":true}'
    assert body == (other if path.endswith("7") else known)


async def test_h1_a_client_may_ask_before_it_sends_a_body() -> None:
    """It is told to go on, on a route without parts in braces too."""

    class Orders(HTTPView):
        routes = ["/orders"]

        async def post(self, order: dict[str, int]) -> dict[str, int]:
            return order

    async with serving(Orders) as client, asyncio.timeout(5.0):
        url = URL(client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"POST /orders HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            b"Content-Length: 8\r\nExpect: 100-continue\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"id":1}')
        answer = await reader.readuntil(b'{"id":1}')
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
