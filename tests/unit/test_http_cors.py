"""CORS by settings: who gets in, preflight requests, and headers on every kind of response."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from tests.command import workerkit, write_package
from tests.serving import first_answer, serving
from workerkit import HTTPView, Reject, WorkerSettings
from workerkit.config.sections import CORSSettings
from workerkit.testing.http_client import HTTPAnswer

SITE = "https://shop.example"
ALLOWED = "Access-Control-Allow-Origin"


class Items(HTTPView):
    routes = ["/items", "/items/{number}"]

    async def get(self, how: str = "") -> Any:
        if how == "reject":
            raise Reject("no")
        if how == "fail":
            raise RuntimeError
        if how == "redirect":
            raise web.HTTPFound("/other")
        if how == "vary":
            return web.Response(text="x", headers={"Vary": "Accept"})
        return {"a": 1}

    async def put(self, item: dict[str, int]) -> None: ...


class Stream(HTTPView):
    routes = ["/stream"]

    async def get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data")
        return response


class Options(HTTPView):
    routes = ["/options"]

    async def get(self) -> None: ...

    async def options(self) -> str:
        return "mine"


def cors_of(answer: HTTPAnswer) -> dict[str, str]:
    """Return the headers of CORS, without the beginning of their names."""
    start = "access-control-"
    return {
        name.lower().removeprefix(start): value
        for name, value in answer.headers.items()
        if name.lower().startswith(start)
    }


async def preflight(client: Any, path: str = "/items", **headers: str) -> HTTPAnswer:
    """Send a preflight request."""
    sent = {"Origin": SITE, "Access-Control-Request-Method": "PUT"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    found: HTTPAnswer = await client.options(path, headers=sent)
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/items", 200),
        ("GET", "/items/1", 200),
        ("HEAD", "/items", 200),
        ("GET", "/items?how=reject", 422),
        ("GET", "/items?how=fail", 500),
        ("GET", "/items?how=redirect", 302),
        ("GET", "/items?how=vary", 200),
        ("PUT", "/items", 400),
        ("DELETE", "/items", 405),
        ("OPTIONS", "/items", 204),
        ("OPTIONS", "/options", 200),
        ("GET", "/nothing", 404),
        ("GET", "/stream", 200),
        ("GET", "/openapi.json", 200),
    ],
)
@pytest.mark.parametrize("has_middleware", [False, True])
async def test_every_response(method: str, path: str, status: int, has_middleware: bool) -> None:
    """Also errors have the headers: otherwise a page could not read why it failed."""

    @web.middleware
    async def passing(request: web.Request, handler: Any) -> Any:
        return await handler(request)

    used = [passing] if has_middleware else []
    settings = {"origins": [SITE], "cookies": True}
    async with serving(Items, Stream, Options, middlewares=used, cors=settings) as client:
        url, _, how = path.partition("?how=")
        query = {"how": how} if how else None
        allowed = await client.request(method, url, query=query, headers={"Origin": SITE})
        other = await client.request(method, url, query=query, headers={"Origin": f"{SITE}.eu"})

    assert (allowed.status, other.status) == (status, status)
    assert cors_of(allowed) == {
        "allow-origin": SITE,
        "allow-credentials": "true",
        "expose-headers": "ETag, Location, Retry-After, X-Request-ID",
    }
    assert cors_of(other) == {}
    vary = "Accept, Origin" if "vary" in path else "Origin"
    assert (allowed.headers["Vary"], other.headers["Vary"]) == (vary, vary)


@pytest.mark.parametrize("origins", [[SITE], ["*"]])
async def test_a_head_that_is_no_http(origins: list[str]) -> None:
    """It has no headers that could be read; the client gets its 400."""
    head = f"GET /items HTTP/1.1\r\nHost: x\r\nOrigin: {SITE}\r\nA : b\r\n\r\n"
    async with serving(Items, cors={"origins": origins}) as client:
        answer = await first_answer(client, head.encode())

    assert b" 400 Bad Request" in answer.splitlines()[0]


async def test_a_preflight() -> None:
    """It is answered without the view, and lists what the page may send."""
    cors = {"origins": [SITE], "max_age": 5}
    async with serving(Items, Options, cors=cors) as client:
        answer = await preflight(client, Access_Control_Request_Headers="authorization, x-a")
        own = await preflight(client, "/options")
        plain = await client.options("/options")

    assert (answer.status, answer.body) == (204, b"")
    assert cors_of(answer) == {
        "allow-origin": SITE,
        "allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "allow-headers": "authorization, x-a",
        "max-age": "5",
        "expose-headers": "ETag, Location, Retry-After, X-Request-ID",
    }
    vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    assert answer.headers["Vary"] == vary
    assert (own.status, plain.json()) == (204, "mine")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Access_Control_Request_Method": "DELETE"}, 403),
        ({"Access_Control_Request_Method": "put"}, 403),
        ({"Access_Control_Request_Headers": "x-a, X-B"}, 204),
        ({"Access_Control_Request_Headers": "x-c"}, 403),
        ({"Access_Control_Request_Headers": "x-a\tx"}, 403),
    ],
)
async def test_a_refused_preflight(headers: dict[str, str], status: int) -> None:
    """Another origin, method or header is refused with a problem that says which."""
    cors = {"origins": [SITE], "methods": ["GET", "PUT"], "headers": ["X-A", "X-B"]}
    async with serving(Items, cors=cors) as client:
        answer = await preflight(client, **headers)

    assert answer.status == status
    assert status == 204 or answer.json()["status"] == 403


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ([SITE], SITE, True),
        ([SITE.upper()], SITE, True),
        ([f"{SITE}/"], SITE, True),
        ([f"{SITE}:443"], SITE, True),
        ([SITE], "http://shop.example", False),
        ([SITE], f"{SITE}:8443", False),
        (["https://*.shop.example"], "https://a.shop.example", True),
        (["https://*.shop.example"], "https://a.b.shop.example", True),
        (["https://*.shop.example"], SITE, False),
        (["https://*.shop.example"], "https://evil.example/.shop.example", False),
        (["https://*.shop.example"], "https://evilshop.example", False),
        (["https://*.shop.example"], "https://a.shop.example.evil.example", False),
        (["https://*.shop.example"], "https://a.shopxexample", False),
        (["https://*.shop.example"], "https://.shop.example", False),
        (["http://a.example", "http://[::1]:80"], "http://[::1]", True),
        (["*"], "https://anybody.example", True),
    ],
)
async def test_origins(origins: list[str], origin: str, allowed: bool) -> None:
    """A wildcard stands for whole labels only."""
    async with serving(Items, cors={"origins": origins}) as client:
        answer = await client.get("/items", headers={"Origin": origin})

    anybody = origins == ["*"]
    expected = ("*" if anybody else origin) if allowed else None
    assert answer.headers.get(ALLOWED) == expected
    assert answer.headers.get("Vary") == (None if anybody else "Origin")


async def test_two_origins() -> None:
    """They are none."""
    request = b"GET /items HTTP/1.1\r\nHost: a\r\nOrigin: %s\r\nOrigin: b\r\n\r\n" % SITE.encode()
    async with serving(Items, cors={"origins": [SITE]}) as client:
        assert ALLOWED.encode() not in await first_answer(client, request)


async def test_without_settings() -> None:
    """No response has a header of CORS."""
    async with serving(Items) as client:
        answers = [await client.get("/items", headers={"Origin": SITE}), await preflight(client)]

    assert [cors_of(each) for each in answers] == [{}, {}]
    assert "Vary" not in answers[0].headers


@pytest.mark.parametrize(
    "settings",
    [
        {"origins": ["*"], "cookies": True},
        {"origins": ["shop.example"]},
        {"origins": ["https://shop.example/path"]},
        {"origins": ["https://*.com"]},
        {"origins": ["https://*"]},
        {"origins": ["https://a*.shop.example"]},
        {"origins": ["https://user@shop.example"]},
        {"origins": ["null"]},
        {"origins": [SITE], "headers": ["a b"]},
        {"origins": [SITE], "methods": ["GET\r\nX: y"]},
        {"origins": [SITE], "max_age": -1},
    ],
)
def test_invalid_settings(settings: dict[str, Any]) -> None:
    """They stop the start."""
    with pytest.raises(ValidationError):
        CORSSettings(**settings)


def test_cookies_of_any_site(tmp_path: Path) -> None:
    """`workerkit check` names both variables."""
    package = write_package(tmp_path, consumers="")
    allowed = {"WORKERKIT_HTTP__CORS__ORIGINS": "*", "WORKERKIT_HTTP__CORS__COOKIES": "true"}

    done = workerkit("check", package, cwd=tmp_path, **allowed)

    names = "WORKERKIT_HTTP__CORS__ORIGINS, WORKERKIT_HTTP__CORS__COOKIES"
    assert f"{names}: should not be true with the origin *: name the sites" in done.stderr


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Origins are a list with commas."""
    monkeypatch.setenv("WORKERKIT_HTTP__CORS__ORIGINS", "https://a.example,https://*.b.example")

    origins = WorkerSettings().http.cors.origins

    assert origins == ("https://a.example", "https://*.b.example")
