"""HTTP as a transport: one server for all views, one endpoint for each of their methods."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from aiohttp import web

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.errors import RunError
from workerkit.health import Health, Part
from workerkit.http import openapi, page
from workerkit.http.cors import CORS
from workerkit.http.listener import max_connections
from workerkit.http.request import HTTPRequest
from workerkit.http.return_type import return_faults
from workerkit.http.routes import Routes, http_options
from workerkit.http.server import HTTPServer
from workerkit.http.signature import RequestSignature
from workerkit.http.traced import note_settled
from workerkit.http.view import (
    security_requirements,
    statuses,
    verbs_of,
    without_names,
)
from workerkit.observe import notify_event
from workerkit.options import Options
from workerkit.transport import Context, Declared

log = logging.getLogger(__name__)


class HTTPTransport:
    """The transport of `HTTPView`: it serves all views on one port.

    Args:
        setup: Called with the aiohttp application after all routes are added and before it
            listens, for libraries such as aiohttp-cors.
    """

    kind = "http"
    delivery: type[Delivery] | None = HTTPRequest

    def __init__(self, setup: Callable[[web.Application], None] | None = None) -> None:
        self._setup = setup
        self._routes = Routes()
        self._server: HTTPServer | None = None
        self._part = Part()

    @property
    def url(self) -> str:
        """The address, such as `http://127.0.0.1:8080`; empty if it does not listen."""
        return "" if self._server is None else self._server.url

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Return faults of routes, and of attributes that make no sense for a view."""
        where = describe_class(declared.consumer)
        options = http_options(declared.options)
        faults = [f"{where}: {fault}" for fault in _route_faults(options.routes)]
        if options.methods is not None and "handle" not in declared.signatures:
            at = options.origins.get("methods", where)
            faults.append(f"{at}: methods goes with handle; here each verb has its own method")
        if hasattr(declared.consumer, "concurrency"):
            faults.append(f"{where}: a view has no concurrency: requests are not limited")
        try:
            statuses(declared.consumer, declared.signatures)
        except ValueError as error:
            faults.append(f"{where}: {error}")
        faults += [f"{where}: {fault}" for fault in _security_faults(declared, settings)]
        if not isinstance(getattr(declared.consumer, "etag", False), bool):
            faults.append(f"{where}: etag has to be True or False")
        for name, signature in declared.signatures.items():
            assert isinstance(signature, RequestSignature)
            required = dict.fromkeys(signature.required.values())
            faults += [f"{where}: {fault}" for each in required for fault in each.faults(settings)]
            method = describe_class(getattr(declared.consumer, name))
            faults += [f"{method}: {fault}" for fault in return_faults(signature.returns)]
        return faults

    def source(self, options: Options) -> str:
        """Return the routes."""
        return ", ".join(http_options(options).routes)

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return the address of the server."""
        return f"{settings.http.host}:{settings.http.port}"

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Return the endpoint of a view's first method; the transport keeps those of the others."""
        return self._routes.endpoint(declared, consumer)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Listen.

        Raises:
            RunError: The server cannot listen on the address.
        """
        http = context.settings.http
        self._server = HTTPServer(
            http,
            max_connections(http.max_connections, "http"),
            http.max_body,
            context.middlewares,
            has_other_routes=self._setup is not None,
            on_unhandled=partial(notify_event, context.observers, "unhandled"),
            tracing=context.tracing,
            cors=CORS(http.cors) if http.cors.origins else None,
        )
        if context.tracing is not None:
            context = replace(context, observers=[note_settled, *context.observers])
        self._part = Part(context.changed)
        self._routes.add(self._server.application, endpoints, context)
        if http.openapi.enabled:
            document = openapi.document(self._routes.declared, http.openapi)
            page.add_routes(self._server.application, document)
        if self._setup is not None:
            self._setup(self._server.application)
        try:
            await self._server.listen()
        except OSError as error:
            raise RunError(listen_error(context.settings, error)) from error
        log.info("listening", extra={"url": self.url})
        self._part.ready()
        return [
            Health(name, [self._part], outside=False, in_flight=partial(self._routes.running, name))
            for name in self._routes.names
        ]

    async def stop(self) -> None:
        """Stop accepting connections and requests."""
        self._part.stopping()
        if self._server is not None:
            self._server.stop_accepting()

    async def drain(self) -> None:
        """Wait until every request is answered."""
        if self._server is not None:
            await self._server.drain()

    async def cancel(self) -> None:
        """Cancel the handlers that still run; the connections of their clients are closed."""
        if self._server is not None:
            await self._server.cancel()

    def busy(self) -> list[str]:
        """Return the views that handle requests, or the server if it still sends responses."""
        running = self._routes.busy()
        if not running and self._server is not None and self._server.is_draining:
            return ["HTTP server"]
        return running

    async def close(self) -> None:
        """Close every connection."""
        if self._server is not None:
            await self._server.close()
        self._routes.close()
        self._server = None


def _route_faults(routes: Sequence[str]) -> Iterator[str]:
    known = [without_names(route) for route in routes]
    for route in dict.fromkeys(routes):
        if known.count(without_names(route)) > 1:
            yield f"route {route!r} is listed twice in routes"
        try:
            if not route.startswith("/"):
                raise ValueError("a route has to begin with a slash")
            web.UrlDispatcher().add_resource(route)
        except ValueError as error:
            yield f"route {route!r}: {error}"


def _security_faults(declared: Declared, settings: WorkerSettings) -> Iterator[str]:
    known = settings.http.openapi.security_schemes
    try:
        required = security_requirements(declared.consumer, verbs_of(declared.signatures))
    except ValueError as error:
        yield str(error)
        return
    names = {name for each in required.values() for schemes in each for name in schemes}
    prefix = str(settings.model_config.get("env_prefix", "")).upper()
    for name in sorted(names - set(known)):
        names_known = ", ".join(sorted(known)) or "none"
        yield (
            f"security names {name!r}, which is not in {prefix}HTTP__OPENAPI__SECURITY_SCHEMES; "
            f"declared there: {names_known}"
        )


def listen_error(settings: WorkerSettings, error: OSError) -> str:
    """Return why the port of the views cannot be opened, and what to set."""
    http = settings.http
    prefix = str(settings.model_config.get("env_prefix", "")).upper()
    # The text of asyncio's error repeats the address.
    number = error.errno or 0
    reason = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
    return (
        f"{prefix}HTTP__PORT={http.port}: cannot listen on {http.host}:{http.port}: {reason}; "
        f"set it to another port, or {prefix}HTTP__HOST to another address"
    )
