"""The page at the root of the ops server: what else there is."""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from html import escape
from typing import Any, Protocol

from aiohttp import web
from yarl import URL

from workerkit.config.sections import HTTPSettings
from workerkit.http.page import ASYNCAPI, PAGE, index_page
from workerkit.ops.debug_pages import STACKS, TASKS, DebugPages

_TEXTS = {
    "/health/live": "whether the event loop runs",
    "/health/ready": "whether the process is ready for work, and each consumer",
    "/health/startup": "whether every consumer has been ready once",
    TASKS: "where each task is",
    STACKS: "where each thread is",
    PAGE: "the messages that the process receives and publishes",
    ASYNCAPI: "the same as an AsyncAPI document",
}
_METRICS = "metrics for Prometheus"


class _Extension(Protocol):
    @property
    def links(self) -> Mapping[str, str]: ...

    async def document(self, request: web.Request) -> web.Response: ...


Links = Mapping[str, str]
"""What each page shows, by its address."""


class Index:
    """The page of links.

    Args:
        paths: The pages of the ops server.
        debug: Decides who may see the debug pages.
        views: The settings of the HTTP views, if there are views whose documentation is served.
        status: Returns the body of the readiness page.
        extension: The console, whose page browsers get instead of this one; None for none.
    """

    def __init__(
        self,
        paths: Collection[str],
        debug: DebugPages | None,
        views: HTTPSettings | None,
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        extension: _Extension | None = None,
    ) -> None:
        self._paths = paths
        self._debug = debug
        self._views = views
        self._status = status
        self._extension = extension

    async def respond(self, request: web.Request) -> web.Response:
        """Respond with the links: as a page for browsers, and as JSON for everybody else."""
        if self._extension is not None and _wants_html(request):
            return await self._extension.document(request)
        return _page(request, await self._status(), self.links(request))

    def links(self, request: web.Request) -> Links:
        """Return the pages that the client of a request may see."""
        return dict(self._links(request))

    def _links(self, request: web.Request) -> Iterator[tuple[str, str]]:
        shows_debug = self._debug is not None and self._debug.may_see(request)
        for path in self._paths:
            if shows_debug or path not in (TASKS, STACKS):
                yield path, _TEXTS.get(path, _METRICS)
        if self._extension is not None:
            yield from self._extension.links.items()
        if self._views is not None and self._views.port:
            with suppress(ValueError):  # The client may send any host.
                url = URL(f"http://{request.host}").with_port(self._views.port)
                yield str(url.with_path(PAGE)), "the HTTP API"


def _wants_html(request: web.Request) -> bool:
    return "text/html" in ", ".join(request.headers.getall("Accept", []))


def _page(request: web.Request, status: Mapping[str, Any], links: Links) -> web.Response:
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if not _wants_html(request):
        body = {"status": status["status"], "links": dict(links)}
        return web.json_response(body, headers=headers)
    rows = "".join(
        f'<tr><th scope="row"><a href="{escape(address)}">{escape(address)}</a></th>'
        f"<td>{escape(text)}</td></tr>\n"
        for address, text in links.items()
    )
    reasons = "".join(f"<p>{escape(str(each))}</p>\n" for each in status["reasons"])
    kind = "bad" if status["reasons"] else "good"
    shown = f'<p class="{kind}"><b>{escape(str(status["status"]))}</b></p>\n{reasons}'
    body_, more = index_page(shown, f"<table>\n{rows}</table>")
    return web.Response(body=body_, headers={**headers, **more})
