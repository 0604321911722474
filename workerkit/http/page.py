"""Routes for the OpenAPI document and for a page that displays it."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from aiohttp import web
from pydantic_core import to_json

DOCUMENT = "/openapi.json"
PAGE = "/docs"

_PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    # The page displays texts of the application; scripts in them must not run.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def add_routes(application: web.Application, document: Mapping[str, Any]) -> None:
    """Add both routes, unless a view has the same route."""
    html = files(__package__).joinpath("page.html").read_bytes()
    taken = {resource.canonical for resource in application.router.resources()}
    parts = {
        DOCUMENT: _constant(to_json(document), {"Content-Type": "application/json"}),
        PAGE: _constant(html, _PAGE_HEADERS),
    }
    for route, handler in parts.items():
        if route not in taken:
            application.router.add_get(route, handler)


def _constant(body: bytes, headers: Mapping[str, str]) -> Callable[[web.Request], Any]:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    return respond
