"""The ops server: health, metrics and debug pages on a separate port."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from yarl import URL

from workerkit.config.settings import WorkerSettings
from workerkit.health import Health, Readiness
from workerkit.http import page
from workerkit.http.listener import max_connections
from workerkit.http.server import HTTPServer
from workerkit.ops.debug_pages import STACKS, TASKS, DebugPages
from workerkit.ops.index import Link, index
from workerkit.ops.metrics import Metrics
from workerkit.safe_text import Redact

OK = 200
UNAVAILABLE = 503


def live() -> tuple[int, dict[str, Any]]:
    """Respond that the event loop runs, whatever the state of any broker."""
    return OK, {"status": "alive"}


def ready(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Respond whether the process is ready for work."""
    obstacles = readiness.obstacles()
    status = "not ready" if obstacles else "ready"
    body = {"status": status, "reasons": obstacles, "consumers": _consumers(readiness)}
    return UNAVAILABLE if obstacles else OK, body


def startup(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Respond whether every consumer has been ready at least once."""
    started = readiness.was_ready
    reasons = [] if started else readiness.obstacles()
    status = "started" if started else "starting"
    body = {"status": status, "reasons": reasons, "consumers": _consumers(readiness)}
    return OK if started else UNAVAILABLE, body


def metrics(ours: Collector, accept: str) -> tuple[bytes, str]:
    """Return the metrics page: ours, and those of prometheus_client's default registry.

    Args:
        accept: The Accept header, which selects one of Prometheus' formats.

    Returns:
        The page, and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_CombinedCollector([ours, REGISTRY])), content_type


def _consumers(readiness: Readiness) -> dict[str, dict[str, Any]]:
    return {each.consumer: _consumer(each) for each in readiness.health}


def _consumer(health: Health) -> dict[str, Any]:
    fields: dict[str, Any] = {"state": health.state.value, "reason": health.reason}
    if role := health.role():
        fields["role"] = role
    if streams := {part.source: told for part in health.parts if (told := part.told())}:
        fields["streams"] = streams
    return fields


class _CombinedCollector(Collector):
    """Several registries on one page."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            yield from collector.collect()


_MAX_BODY = 1024  # No page reads one.


class OpsServer:
    """Serves the pages from before the first attempt to connect until the last connection closed.

    Args:
        metrics: None for no page of metrics.
        redact: The container's, for the debug pages.
        describe: Creates the AsyncAPI document; None for no page of it.
        serves_views: Whether the process has HTTP views.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        readiness: Readiness,
        metrics: Metrics | None,
        redact: Redact | None = None,
        describe: Callable[[], Mapping[str, Any]] | None = None,
        *,
        serves_views: bool = False,
    ) -> None:
        self._host = settings.ops.host
        self._port = settings.ops.port
        self._readiness = readiness
        self._metrics = metrics
        self._path = settings.metrics.path
        self._settings = settings.ops
        self._describe = describe if settings.ops.docs else None
        self._http = settings.http if serves_views and settings.http.openapi.enabled else None
        self._debug = DebugPages(redact) if settings.ops.debug else None
        self._server: HTTPServer | None = None

    @property
    def url(self) -> str:
        """Return where it listens, or before `open`, where it will."""
        port = URL(self._server.url).port if self._server is not None else self._port
        return str(URL.build(scheme="http", host=self._host, port=port))

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: The port cannot be opened.
        """
        limit = max_connections(self._settings.max_connections, "ops")
        server = HTTPServer(
            self._settings, limit, _MAX_BODY, has_other_routes=True, on_unhandled=None
        )
        router = server.application.router
        router.add_get("/", self._index)
        router.add_get("/health/live", self._live)
        router.add_get("/health/ready", self._ready)
        router.add_get("/health/startup", self._startup)
        if self._metrics is not None:
            router.add_get(self._path, self._metrics_page)
        if self._debug is not None:
            router.add_get(TASKS, self._debug.tasks)
            router.add_get(STACKS, self._debug.stacks)
        if self._describe is not None:
            page.add_message_routes(server.application, self._describe)
        await server.listen()
        if self._debug is not None:
            self._debug.enable(server.addresses)
        self._server = server

    async def close(self) -> None:
        """Close the port and all connections to it."""
        if self._server is not None:
            self._server.stop_accepting()
            await self._server.close()

    async def _index(self, request: web.Request) -> web.Response:
        _, status = ready(self._readiness)
        return index(request, status, list(self._links(request)))

    def _links(self, request: web.Request) -> Iterator[Link]:
        yield Link("/health/live", "whether the event loop runs")
        yield Link("/health/ready", "whether the process is ready for work, and each consumer")
        yield Link("/health/startup", "whether every consumer has been ready once")
        if self._metrics is not None:
            yield Link(self._path, "metrics for Prometheus")
        if self._debug is not None and self._debug.may_see(request):
            yield Link(TASKS, "where each task is")
            yield Link(STACKS, "where each thread is")
        if self._describe is not None:
            yield Link(page.PAGE, "the messages that the process receives and publishes")
            yield Link(page.ASYNCAPI, "the same as an AsyncAPI document")
        if self._http is not None and self._http.port:
            with suppress(ValueError):  # The client may send any host.
                views = URL(f"http://{request.host}").with_port(self._http.port)
                yield Link(str(views.with_path(page.PAGE)), "the HTTP API")

    async def _live(self, _: web.Request) -> web.Response:
        return _json(*live())

    async def _ready(self, _: web.Request) -> web.Response:
        return _json(*ready(self._readiness))

    async def _startup(self, _: web.Request) -> web.Response:
        return _json(*startup(self._readiness))

    async def _metrics_page(self, request: web.Request) -> web.Response:
        assert self._metrics is not None
        accept = ", ".join(request.headers.getall("Accept", []))
        body, content_type = metrics(self._metrics.registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})


def _json(status: int, body: dict[str, object]) -> web.Response:
    # Proxies must not cache the response to a probe.
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
