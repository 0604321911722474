"""The page of the console, and the files that it consists of."""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any

from aiohttp import hdrs, web

from workerkit.http.etag import is_known
from workerkit.ops.debug_pages import is_loopback, names_loopback

FILES = "/console/{name}"
"""The route of the files."""

_DOCUMENT = "index.html"
_DIGEST = 16
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page displays texts from outside. Nothing in them can have an effect: there are no inline
# scripts or styles, and with Trusted Types the scripts themselves cannot insert HTML.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    compressed: bytes
    content_type: str
    tag: str


class PageFiles:
    """The files of the page, which are read at the first request.

    Args:
        folder: Where they are; None for the page of the package.
    """

    def __init__(self, folder: Traversable | None = None) -> None:
        self._folder = folder
        self._only_local = False

    def enable(self, addresses: Sequence[Any]) -> None:
        """Note where the port listens.

        Args:
            addresses: Of its sockets, as `getsockname` returns them.
        """
        self._only_local = bool(addresses) and all(is_loopback(each[0]) for each in addresses)

    async def document(self, request: web.Request) -> web.Response:
        """Respond with the page."""
        response = self._respond(request, _DOCUMENT)
        response.headers[hdrs.VARY] = f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}"
        return response

    async def file(self, request: web.Request) -> web.Response:
        """Respond with another file of the page."""
        return self._respond(request, request.match_info["name"])

    def _respond(self, request: web.Request, name: str) -> web.Response:
        """Respond with a file.

        Raises:
            web.HTTPMisdirectedRequest: The request is for another host, as with DNS rebinding.
            web.HTTPNotFound: There is no such file.
        """
        if self._only_local and not names_loopback(request.headers.getall(hdrs.HOST, [])):
            raise web.HTTPMisdirectedRequest
        if (found := self._files.get(name)) is None:
            raise web.HTTPNotFound
        headers = {**_HEADERS, "ETag": found.tag}
        if is_known(found.tag, request):
            return web.Response(status=304, headers=headers)
        headers |= {"Content-Type": found.content_type, "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            return web.Response(body=found.body, headers=headers)
        return web.Response(body=found.compressed, headers={**headers, "Content-Encoding": "gzip"})

    @cached_property
    def _files(self) -> Mapping[str, _File]:
        """The files by name: a request cannot name any other file."""
        folder = self._folder or files(__package__).joinpath("page")
        found = {}
        for each in folder.iterdir():
            kind = _TYPES.get(PurePath(each.name).suffix)
            if kind is not None and each.is_file():
                body = each.read_bytes()
                tag = f'"{blake2b(body, digest_size=_DIGEST).hexdigest()}"'
                found[each.name] = _File(body, gzip.compress(body, mtime=0), kind, tag)
        return found
