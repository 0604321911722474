"""Views as a test watches them: a stream that is open is no answer that somebody waits for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from workerkit.endpoint import Endpoint
from workerkit.health import Health
from workerkit.http.connection import is_event_stream
from workerkit.http.wire import HTTPWire
from workerkit.transport import Context


class WatchedViews:
    """A wire of HTTP that knows which of its answers are event streams, which have no end."""

    def __init__(self, wire: HTTPWire) -> None:
        self._wire = wire
        self._answering: dict[int, web.Request] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Listen, with a middleware more."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._answering[id(request)] = request
            try:
                return await handler(request)
            finally:
                del self._answering[id(request)]

        context = replace(context, middlewares=[watch, *context.middlewares])
        return await self._wire.start(endpoints, context)

    def unanswered(self) -> list[str]:
        """Views that answer requests, unless all of the answers are open event streams."""
        waiting = [each for each in self._answering.values() if not is_event_stream(each)]
        busy: list[str] = self._wire.busy() if waiting else []
        return busy
