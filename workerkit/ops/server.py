"""The ops server: health, metrics and debug pages on a separate port."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from workerkit.config.settings import WorkerSettings
from workerkit.health import Health, Readiness
from workerkit.ops.debug_pages import STACKS, TASKS, DebugPages
from workerkit.ops.metrics import Metrics
from workerkit.ops.port import Extension, OpsPort, Page
from workerkit.safe_text import Redact

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
"""The Accept header for OpenMetrics, which has exemplars."""

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


class OpsServer:
    """Serves the pages from before the first attempt to connect until the last connection closed.

    Args:
        metrics: None for no page of metrics.
        redact: The container's, for the debug pages.
        describe: Creates the AsyncAPI document; None for no page of it.
        serves_views: Whether the process has HTTP views.
        extension: The console; None for none.
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
        extension: Extension | None = None,
    ) -> None:
        self._debug = DebugPages(redact) if settings.ops.debug else None
        self._port = OpsPort(settings, self._debug, describe, serves_views=serves_views)
        self._readiness = readiness
        self._metrics = metrics
        self._extension = extension
        self._path = settings.metrics.path

    @property
    def url(self) -> str:
        """Return where it listens, or before `open`, where it will."""
        return self._port.url

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: The port cannot be opened.
        """
        pages: dict[str, Page] = {
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/startup": self._startup,
        }
        if self._metrics is not None:
            pages[self._path] = self._metrics_page
        if self._debug is not None:
            pages |= {TASKS: self._debug.tasks, STACKS: self._debug.stacks}
        await self._port.open(pages, self._status, self._extension)

    async def close(self) -> None:
        """Close the port and all connections to it."""
        await self._port.close()

    async def _status(self) -> dict[str, Any]:
        _, status = ready(self._readiness)
        return status

    async def _live(self, _: web.Request) -> web.Response:
        return json_page(*live())

    async def _ready(self, _: web.Request) -> web.Response:
        return json_page(*ready(self._readiness))

    async def _startup(self, _: web.Request) -> web.Response:
        return json_page(*startup(self._readiness))

    async def _metrics_page(self, request: web.Request) -> web.Response:
        assert self._metrics is not None
        accept = ", ".join(request.headers.getall("Accept", []))
        body, content_type = metrics(self._metrics.registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})


def json_page(status: int, body: dict[str, Any]) -> web.Response:
    """Return a page of JSON."""
    # Proxies must not cache the response to a probe.
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
