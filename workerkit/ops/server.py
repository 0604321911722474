"""The server of those pages: a port of its own, which the outside need not reach."""

from aiohttp import web
from yarl import URL

from workerkit.config.settings import WorkerSettings
from workerkit.http.limit import max_connections
from workerkit.http.server import Server
from workerkit.metrics import Metrics
from workerkit.ops import pages
from workerkit.readiness import Readiness

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
        self._server: Server | None = None

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
        server = Server(self._settings, limit, _MAX_BODY, foreign=True, unhandled=None)
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
            self._server.refuse()
            await self._server.close()

    async def _live(self, _: web.Request) -> web.Response:
        return _json(*pages.live())

    async def _ready(self, _: web.Request) -> web.Response:
        return _json(*pages.ready(self._readiness))

    async def _startup(self, _: web.Request) -> web.Response:
        return _json(*pages.startup(self._readiness))

    async def _counted(self, request: web.Request) -> web.Response:
        assert self._metrics is not None
        accept = ", ".join(request.headers.getall("Accept", []))
        body, content_type = pages.metrics(self._metrics.registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})


def _json(status: int, body: dict[str, object]) -> web.Response:
    # A probe wants today's answer, whoever stands between.
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
