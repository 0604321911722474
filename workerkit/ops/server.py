"""The ops server: health and metrics pages on a port of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from yarl import URL

from workerkit.config.settings import WorkerSettings
from workerkit.health import Health, Readiness
from workerkit.http.listener import max_connections
from workerkit.http.server import HTTPServer
from workerkit.ops.metrics import Metrics

OK = 200
UNAVAILABLE = 503


def live() -> tuple[int, dict[str, Any]]:
    """That anybody answers is what it says: the event loop turns. It knows no broker."""
    return OK, {"status": "alive"}


def ready(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Whether the process should be given work."""
    obstacles = readiness.obstacles()
    status = "not ready" if obstacles else "ready"
    body = {"status": status, "reasons": obstacles, "consumers": _consumers(readiness)}
    return UNAVAILABLE if obstacles else OK, body


def startup(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Whether every consumer was ready once, whatever has become of it since."""
    started = readiness.was_ready
    reasons = [] if started else readiness.obstacles()
    status = "started" if started else "starting"
    body = {"status": status, "reasons": reasons, "consumers": _consumers(readiness)}
    return OK if started else UNAVAILABLE, body


def metrics(own: Collector, accept: str) -> tuple[bytes, str]:
    """What was counted here, and what users count with prometheus_client's own metrics.

    Args:
        accept: The header that says which of Prometheus' formats the reader knows.

    Returns:
        The page, and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Together([own, REGISTRY])), content_type


def _consumers(readiness: Readiness) -> dict[str, dict[str, Any]]:
    return {each.consumer: _consumer(each) for each in readiness.health}


def _consumer(health: Health) -> dict[str, Any]:
    said: dict[str, Any] = {"state": health.state.value, "reason": health.reason}
    if role := health.role():
        said["role"] = role
    if streams := {part.source: told for part in health.parts if (told := part.told())}:
        said["streams"] = streams
    return said


class _Together(Collector):
    """Several registries on one page."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            yield from collector.collect()


_MAX_BODY = 1024  # Nobody has to send one.


class OpsServer:
    """Answers from before the first connection is tried until the last one is closed.

    Args:
        metrics: None for no page of metrics.
    """

    def __init__(
        self, settings: WorkerSettings, readiness: Readiness, metrics: Metrics | None
    ) -> None:
        self._host = settings.ops.host
        self._port = settings.ops.port
        self._readiness = readiness
        self._metrics = metrics
        self._path = settings.metrics.path
        self._settings = settings.ops
        self._server: HTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it listens; before `open`, where it is to."""
        port = URL(self._server.url).port if self._server is not None else self._port
        return str(URL.build(scheme="http", host=self._host, port=port))

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: It cannot.
        """
        limit = max_connections(self._settings.max_connections, "ops")
        server = HTTPServer(
            self._settings, limit, _MAX_BODY, has_other_routes=True, on_unhandled=None
        )
        router = server.application.router
        router.add_get("/health/live", self._live)
        router.add_get("/health/ready", self._ready)
        router.add_get("/health/startup", self._startup)
        if self._metrics is not None:
            router.add_get(self._path, self._counted)
        await server.listen()
        self._server = server

    async def close(self) -> None:
        """Close the port, and the connections of those who read."""
        if self._server is not None:
            self._server.stop_accepting()
            await self._server.close()

    async def _live(self, _: web.Request) -> web.Response:
        return _json(*live())

    async def _ready(self, _: web.Request) -> web.Response:
        return _json(*ready(self._readiness))

    async def _startup(self, _: web.Request) -> web.Response:
        return _json(*startup(self._readiness))

    async def _counted(self, request: web.Request) -> web.Response:
        assert self._metrics is not None
        accept = ", ".join(request.headers.getall("Accept", []))
        body, content_type = metrics(self._metrics.registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})


def _json(status: int, body: dict[str, object]) -> web.Response:
    # A probe wants today's answer, whoever stands between.
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
