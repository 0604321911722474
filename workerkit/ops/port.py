"""The port of the ops server."""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web
from yarl import URL

from workerkit.config.explain import Faults
from workerkit.config.sections import OpsSettings
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.errors import RunError
from workerkit.http.listener import max_connections
from workerkit.http.page import message_pages
from workerkit.http.server import HTTPServer
from workerkit.ops.debug_pages import DebugPages
from workerkit.ops.index import Index

log = logging.getLogger(__name__)

_MAX_BODY = 1024  # No page reads one.

Page = Callable[[web.Request], Awaitable[web.Response]]


class Extension(Protocol):
    """More that a port serves: the console.

    Attributes:
        links: Its pages beside that at the root, with their texts.
        middlewares: Of the application, the outermost first.
    """

    @property
    def links(self) -> Mapping[str, str]: ...

    @property
    def middlewares(self) -> Sequence[Any]: ...

    def add_routes(
        self, application: web.Application, links: Callable[[web.Request], Mapping[str, str]]
    ) -> None:
        """Add its routes, before the port listens.

        Args:
            links: Returns the pages of the port that the client of a request may see.
        """

    async def document(self, request: web.Request) -> web.Response:
        """Respond with the page at the root, for browsers."""

    def enable(self, addresses: Sequence[Any]) -> None:
        """Note the addresses of the sockets, as `getsockname` returns them."""

    async def close(self) -> None:
        """End what has no end by itself. The port accepts no connections any more."""


class OpsPort:
    """Serves pages on the port of the settings, also those that every ops server has.

    These are the AsyncAPI document with its page, and at the root the links to all pages.

    Args:
        debug: Gets to know whether only this machine can reach the port.
        describe: Creates the AsyncAPI document; None for no page of it.
        serves_views: Whether there are HTTP views.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        debug: DebugPages | None,
        describe: Callable[[], Mapping[str, Any]] | None,
        *,
        serves_views: bool,
    ) -> None:
        self._settings = settings.ops
        self._debug = debug
        self._describe = describe if settings.ops.docs else None
        self._views = settings.http if serves_views and settings.http.openapi.enabled else None
        self._server: HTTPServer | None = None
        self._extension: Extension | None = None

    @property
    def url(self) -> str:
        """Return where it listens, or before `open`, where it will."""
        settings = self._settings
        port = URL(self._server.url).port if self._server is not None else settings.port
        return str(URL.build(scheme="http", host=settings.host, port=port))

    async def open(
        self,
        pages: Mapping[str, Page],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        extension: Extension | None = None,
    ) -> None:
        """Serve *pages*, by path.

        Args:
            status: Returns the body of the readiness page.
            extension: The console. It is closed with the port, also if that cannot be opened.

        Raises:
            OSError: The port cannot be opened.
        """
        self._extension = extension
        limit = max_connections(self._settings.max_connections, "ops")
        server = HTTPServer(
            self._settings,
            limit,
            _MAX_BODY,
            () if extension is None else extension.middlewares,
            has_other_routes=True,
            on_unhandled=None,
        )
        every = dict(pages)
        if self._describe is not None:
            every |= message_pages(self._describe)
        index = Index([*every], self._debug, self._views, status, extension)
        every["/"] = index.respond
        for path, page in every.items():
            server.application.router.add_get(path, page)
        if extension is not None:
            extension.add_routes(server.application, index.links)
        await server.listen()
        self._server = server
        if self._debug is not None:
            self._debug.enable(server.addresses)
        if extension is not None:
            extension.enable(server.addresses)

    async def close(self) -> None:
        """Close the port and all connections to it."""
        if self._server is not None:
            self._server.stop_accepting()
        if self._extension is not None:
            await self._extension.close()
        if self._server is not None:
            await self._server.close()


class _Server(Protocol):
    @property
    def url(self) -> str: ...

    async def open(self) -> None: ...


async def open_ops_server(server: _Server, settings: WorkerSettings) -> None:
    """Open an ops server, if it is enabled and its address is free.

    Raises:
        RunError: The port that was set is taken, or the host that was set is not local. A default
            that is taken is only a warning: two workers may run on one machine.
    """
    if not settings.ops.enabled:
        return
    try:
        await server.open()
    except OSError as error:
        field = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        # asyncio's own text repeats the address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        variables = Variables(type(settings))
        default = OpsSettings.model_fields[field].default
        if variables.locate(("ops", field)) or getattr(settings.ops, field) != default:
            label = Faults(variables).label(("ops", field))
            taken = f"{label}: no ops server at {server.url}: {reason}; set another {field}"
            raise RunError(taken) from error
        variable = variables.name(("ops", field))
        fields = {"url": server.url, "reason": reason, "variable": variable}
        log.warning("no ops server", extra=fields)
        return
    log.info("ops server", extra={"url": server.url})
    if settings.ops.port == 0:
        print(f"ops server at {server.url}", flush=True)
