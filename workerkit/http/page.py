"""Pages that display the OpenAPI and the AsyncAPI document, without the internet."""

import asyncio
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from aiohttp import web
from pydantic_core import to_json
from yarl import URL

OPENAPI = "/openapi.json"
ASYNCAPI = "/asyncapi.json"
PAGE = "/docs"

_JSON = {"Content-Type": "application/json"}
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


def add_routes(application: web.Application, document: Mapping[str, Any]) -> None:
    """Add the OpenAPI document and its page, unless a view has the same route."""
    taken = {resource.canonical for resource in application.router.resources()}
    parts = {
        OPENAPI: _constant(to_json(document), _JSON),
        PAGE: _page("openapi.js", _origins(document)),
    }
    for route, handler in parts.items():
        if route not in taken:
            application.router.add_get(route, handler)


def message_pages(
    describe: Callable[[], Mapping[str, Any]],
) -> dict[str, Callable[[web.Request], Any]]:
    """Return the AsyncAPI document and its page, by path.

    Args:
        describe: Creates the document, at the first request, because most processes get none; in a
            thread, because 200 consumers take 0.4 s.
    """
    return {ASYNCAPI: _described(describe), PAGE: _page("asyncapi.js")}


def api_pages(
    describe: Callable[[], Mapping[str, Any]], prefix: str
) -> dict[str, Callable[[web.Request], Any]]:
    """Return an OpenAPI document and its page, by path, as `message_pages`.

    Args:
        prefix: Of the paths.
    """
    return {f"{prefix}{OPENAPI}": _described(describe), f"{prefix}{PAGE}": _page("openapi.js")}


def docs_page(script: str, origins: Sequence[str] = ()) -> tuple[bytes, Mapping[str, str]]:
    """Return the page that a script draws, and the headers of its response.

    Args:
        script: The file that draws one kind of document.
        origins: Other servers that the page may send requests to.
    """
    return _rendered(_text("page.html"), _text("page.js") + _text(script), origins)


def index_page(status: str, links: str) -> tuple[bytes, Mapping[str, str]]:
    """Return a page of links, and the headers of its response.

    Args:
        status, links: HTML.
    """
    html = _text("index.html").replace("<!-- status -->", status).replace("<!-- links -->", links)
    return _rendered(html)


def _rendered(
    html: str, script: str = "", origins: Sequence[str] = ()
) -> tuple[bytes, Mapping[str, str]]:
    """Return a page with our style and a script in their places, and the headers of its response.

    The page displays texts of the application. Only this style and this script have an effect in
    it, by their hashes, and with Trusted Types the script itself cannot insert HTML.
    """
    style = _text("page.css")
    allowed = " ".join(["'self'", *origins])
    policy = (
        f"default-src 'none'; connect-src {allowed}; img-src data:; "
        f"script-src {_source(script)}; style-src {_source(style)}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    body = html.replace("/* page.css */", style).replace("/* page.js */", script)
    return body.encode(), {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _origins(document: Mapping[str, Any]) -> list[str]:
    """Return the origins of the servers that clients may use, beside the own one."""
    found: dict[str, None] = {}
    for server in document.get("servers", ()):
        try:
            url = URL(str(server["url"]))
        except ValueError:
            continue
        if url.scheme in ("http", "https") and _HOST.fullmatch(url.host_subcomponent or ""):
            found[str(url.origin())] = None
    return list(found)


def _page(script: str, origins: Sequence[str] = ()) -> Callable[[web.Request], Any]:
    """Return a handler for a page, which is drawn for the first request: often there is none."""
    rendered = cache(lambda: docs_page(script, origins))

    async def respond(request: web.Request) -> web.Response:
        body, headers = rendered()
        return web.Response(body=body, headers=headers)

    return respond


def _described(describe: Callable[[], Mapping[str, Any]]) -> Callable[[web.Request], Any]:
    """Return a handler for a document that is created in a thread, at the first request."""
    described = cache(lambda: to_json(describe()))

    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(described), headers=_JSON)

    return respond


def _constant(body: bytes, headers: Mapping[str, str]) -> Callable[[web.Request], Any]:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    return respond
