"""The live stream: the state of all processes, as Server-Sent Events."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from workerkit.console.model import FleetView
from workerkit.errors import InvalidRequest
from workerkit.http.disconnect import while_connected
from workerkit.tasks import cancel_and_wait, guard

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two events."""

MOST_CLIENTS = 500

_DEADLINE = 10.0  # Seconds for one view; processes have one second to answer.
_HEARTBEAT = b": no view\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events back.
    "X-Content-Type-Options": "nosniff",
}


class Live:
    """Sends the same view of all processes to each client, every few seconds.

    The view is created and encoded once for all clients, and only while there is one. A client that
    reads slowly misses events: it gets the newest one when it has read the one before.

    Args:
        view: Returns the view.
        interval: Seconds between two events.
        most: Clients at the same time.
    """

    def __init__(
        self,
        view: Callable[[], Awaitable[FleetView]],
        interval: float = INTERVAL,
        most: int = MOST_CLIENTS,
    ) -> None:
        self._view = view
        self._interval = interval
        self._most = most
        self._clients: set[web.RequestHandler] = set()
        self._event = b""
        self._number = 0
        self._changed = asyncio.Event()
        self._left = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None
        self._closed = False
        self._has_failed = False

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self._clients)

    @property
    def is_sampling(self) -> bool:
        """Whether views are created."""
        return self._sampling is not None and not self._sampling.done()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Send events until the client disconnects, or `close`.

        Raises:
            InvalidRequest: There are too many clients, or the process stops.
            ClientConnectionResetError: The client has disconnected.
        """
        if self._closed or len(self._clients) >= self._most:
            text = "the process stops" if self._closed else "too many clients"
            raise InvalidRequest(503, text, headers={"Retry-After": "5"})
        response = web.StreamResponse(headers=_HEADERS)
        self._clients.add(request.protocol)
        try:
            if request.method != hdrs.METH_HEAD:
                await while_connected(request, self._send(request, response))
        finally:
            self._clients.discard(request.protocol)
            if not self._clients:
                self._left.set()
        return response

    async def close(self) -> None:
        """End all streams at once."""
        self._closed = True
        self._changed.set()
        for each in self._clients:
            transport: Any = each.transport
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()  # Its client would have to read first.
        if self._sampling is not None:
            await cancel_and_wait([self._sampling])

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        sent = self._number
        if self.is_sampling and self._event:
            # It is not older than the interval.
            await response.write(self._event)
        elif not self.is_sampling:
            self._left.clear()
            self._sampling = asyncio.create_task(self._sample(), name="console live stream")
        while not self._closed:
            if sent == self._number:
                await self._changed.wait()
                continue
            sent = self._number
            # This waits while the client does not read what was sent before.
            await response.write(self._event)

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._clients:
                due = loop.time() + self._interval
                self._event = await self._next_event()
                self._number += 1
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
                await self._until(due)
        finally:
            self._event = b""

    async def _next_event(self) -> bytes:
        try:
            async with asyncio.timeout(_DEADLINE):
                view = await guard(self._view())
            event = b"event: fleet\ndata: " + view.model_dump_json().encode() + b"\n\n"
        except Exception:
            if not self._has_failed:
                log.exception("the view of the live stream could not be created")
            self._has_failed = True
            return _HEARTBEAT
        self._has_failed = False
        return event

    async def _until(self, due: float) -> None:
        """Wait until it is time for the next event, or until there are no clients."""
        try:
            async with asyncio.timeout_at(due):
                while self._clients:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return
