"""The server of those pages: a port of its own, which the outside need not reach."""

from aiohttp import web
from yarl import URL

from workerkit.forking import keep_from_children
from workerkit.metrics import Metrics
from workerkit.ops import pages
from workerkit.readiness import Readiness
from workerkit.settings import WorkerSettings

_CLOSE_DEADLINE = 1.0


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
        application = web.Application()
        application.router.add_get("/health/live", self._live)
        application.router.add_get("/health/ready", self._ready)
        application.router.add_get("/health/startup", self._startup)
        if metrics is not None:
            application.router.add_get(settings.metrics.path, self._counted)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSE_DEADLINE)

    @property
    def url(self) -> str:
        """Where it listens; before `open`, where it is to."""
        port = self._runner.addresses[0][1] if self._runner.addresses else self._port
        return str(URL.build(scheme="http", host=self._host, port=port))

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: It cannot.
        """
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._host, self._port)
            await site.start()
            # aiohttp has no public name for it.
            keep_from_children(site._server)
        except BaseException:
            await self._runner.cleanup()
            raise

    async def close(self) -> None:
        """Close the port, and the connections of those who read."""
        await self._runner.cleanup()

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
