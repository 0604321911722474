"""H1: which view answers a path, in whatever way it is written, and with which arguments."""

import asyncio
import inspect
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from tests.serving import everything, serving
from workerkit import HTTPView
from workerkit.testing.http_client import HTTPClient


class Store:
    """A class that the container provides."""


async def get_raw(client: HTTPClient, path: str, method: str = "GET") -> tuple[str, bytes]:
    """Return status line and body of the response, without a client that rewrites the path."""
    request = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    head, _, body = (await everything(client, request.encode())).partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), body


@pytest.mark.parametrize("path", ["/orders/new", "/orders/new?a=1", "/orders/%6eew", "/orders/7"])
async def test_h1_different_spellings_of_a_path(path: str) -> None:
    """The same view answers, and aiohttp's request has the same route."""

    class New(HTTPView):
        routes = ["/orders/new"]

        async def get(self, request: web.Request) -> dict[str, Any]:
            match = request.match_info
            canonical = match.route.resource.canonical if match.route.resource else ""
            return {"route": canonical, "match": dict(match), "app": request.app is match.apps[0]}

    class Each(New):
        routes = ["/orders/{order_id}"]

    async with serving(Each, New) as client:
        _, body = await get_raw(client, path)

    known = b'{"route":"/orders/new","match":{},"app":true}'
    other = b'{"route":"/orders/{order_id}","match":{"order_id":"7"},"app":true}'
    assert body == (other if path.endswith("7") else known)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("route", ["/files/", "/"])
async def test_h1_the_first_of_two_routes_answers(route: str, method: str) -> None:
    """With each spelling of the path, with and without a middleware."""

    class Each(HTTPView):
        routes = [route + "{rest:.*}"]

        async def get(self, rest: str) -> str:
            return "each"

        async def delete(self, rest: str) -> str:
            return "each"

    class Index(HTTPView):
        routes = [route]

        async def get(self) -> str:
            return "index"

        async def delete(self) -> str:
            return "index"

    @web.middleware
    async def looking(request: web.Request, handler: Any) -> Any:
        return await handler(request)

    for middlewares in ([], [looking]):
        async with serving(Each, Index, middlewares=middlewares) as client:
            _, plain = await get_raw(client, route, method)
            _, with_query = await get_raw(client, route + "?a=1", method)
        assert (plain, with_query) == (b'"each"', b'"each"')


@pytest.mark.parametrize("route", ["/a%20b", "/a?b", "/%41", "/a#b"])
async def test_h1_a_route_that_matches_no_path(route: str) -> None:
    """aiohttp normalizes paths before it compares them, so such a route never answers."""

    class Odd(HTTPView):
        routes = [route]

        async def get(self) -> None:
            """Answer nobody."""

    async with serving(Odd) as client:
        status, _ = await get_raw(client, route)

    assert status == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("route", ["//a", "//[", "/a:b@c", "/a/"])
async def test_h1_odd_routes(route: str) -> None:
    """They are compared unchanged."""

    class Odd(HTTPView):
        routes = [route]

        async def get(self) -> str:
            return "odd"

    async with serving(Odd) as client:
        _, body = await get_raw(client, route)

    assert body == b'"odd"'


async def test_h1_match_info_is_read_only() -> None:
    """For a constant route it is shared with the next request."""
    found = []

    class Writing(HTTPView):
        routes = ["/"]

        async def get(self, request: web.Request) -> None:
            with pytest.raises(TypeError, match="read-only"):
                request.match_info["user"] = "alice"
            with pytest.raises(TypeError, match="read-only"):
                request.match_info.update(user="alice")
            found.append(dict(request.match_info))

    async with serving(Writing) as client:
        assert (await client.get("/")).status == 204

    assert found == [{}]


@pytest.mark.parametrize("name", ["handle", "provided", "function", "token"])
@pytest.mark.parametrize("blocking", [False, True])
async def test_h1_path_parameters_may_have_any_name(name: str, blocking: bool) -> None:
    """Also one that is used in workerkit's own functions."""

    class Named(HTTPView):
        routes = [f"/{{{name}}}"]

    async def get(self: Any, store: Store, **parts: str) -> str:
        return parts[name]

    def get_in_a_thread(self: Any, store: Store, **parts: str) -> str:
        return parts[name]

    method: Any = get_in_a_thread if blocking else get
    own, store, _ = inspect.signature(method).parameters.values()
    part = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str)
    method.__signature__ = inspect.Signature([own, store, part])
    method.__annotations__ = {"store": Store, name: str}
    Named.get = method  # type: ignore[attr-defined]

    async with serving(Named, provided={"store": Store()}) as client:
        answer = await client.get("/x")

    assert (answer.status, answer.json()) == (200, "x")


async def test_h1_a_client_that_waits_for_100_continue() -> None:
    """It gets a 100 Continue, also for a route with path parameters."""

    class Orders(HTTPView):
        routes = ["/orders"]

        async def post(self, order: dict[str, int]) -> dict[str, int]:
            return order

    async with serving(Orders) as client, asyncio.timeout(30.0):
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
