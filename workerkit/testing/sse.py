"""A server of event streams for one test."""

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from workerkit.codec import encode

_DEADLINE = 10.0
_ANY_LINE_END = re.compile("\r\n|\n|\r")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, no seconds: closing sends a reset.
_RETRY = b"retry: 10\n\n"


@dataclass(frozen=True, slots=True)
class SSERequest:
    """A request of a client.

    Attributes:
        path: Without the query.
        headers: With the names as the client wrote them.
        last_event_id: The header `Last-Event-ID`; None if the client sent none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    last_event_id: str | None
    body: bytes


@dataclass(eq=False, slots=True)
class _Client:
    """An open stream; the lock keeps the order of concurrent writes."""

    route: str
    response: web.StreamResponse
    transport: asyncio.Transport
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, frames: Iterable[bytes]) -> None:
        """Write, unless the client has disconnected."""
        async with self.lock:
            with suppress(ConnectionError):
                for frame in frames:
                    await self.response.write(frame)


@dataclass(frozen=True, slots=True)
class _SentEvent:
    """An event that was sent, kept for clients that connect later."""

    id: str
    route: str | None
    frame: bytes


@dataclass(slots=True)
class _Refusal:
    """The response to requests instead of a stream, for a number of times; None for no limit."""

    status: int
    headers: Mapping[str, str]
    times: int | None


class SSEServer:
    """A server of event streams on a loopback port; `workerkit.testing.sse_server` creates one.

    Every path is a stream. Events are kept: a client gets those after its `Last-Event-ID`, or all
    events if it sends none. The server requests a reconnect after 10 ms.

    Attributes:
        requests: All requests in order, refused ones too.
        opened: The requests that were answered with a stream.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[SSERequest] = []
        self.opened: list[SSERequest] = []
        self._port = port
        self._sent: list[_SentEvent] = []
        self._clients: set[_Client] = set()
        self._refusal: _Refusal | None = None
        self._runner: web.ServerRunner | None = None
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The URL of the server, without a path."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    @property
    def clients(self) -> int:
        """The number of open streams."""
        return len(self._clients)

    async def start(self) -> None:
        """Listen; after `stop`, on the same port as before."""
        server = web.Server(self._answer, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections, and reset the open ones."""
        if self._runner is not None:
            self.cut()
            await self._runner.cleanup()
            self._runner = None

    async def send(
        self,
        body: Any = "",
        *,
        name: str | None = None,
        id: str | None = None,
        route: str | None = None,
    ) -> str:
        """Send an event, and return when it is written to every open stream.

        Args:
            body: A str is sent as it is, everything else as JSON.
            id: By default events are numbered from 1.
            route: Send it only to streams of this path; None for all.

        Returns:
            The id.
        """
        event_id = str(len(self._sent) + 1) if id is None else id
        lines = [f"id: {event_id}"] + ([] if name is None else [f"event: {name}"])
        lines += [f"data: {line}" for line in _ANY_LINE_END.split(encode(body)[0].decode())]
        sent = _SentEvent(event_id, route, ("\n".join(lines) + "\n\n").encode())
        self._sent.append(sent)
        await self._write(sent.frame, route)
        return event_id

    async def comment(self, text: str = "", *, route: str | None = None) -> None:
        """Send a comment, as servers do to keep an idle stream alive."""
        await self._write(f": {text}\n".encode(), route)

    async def raw(self, data: bytes, *, route: str | None = None) -> None:
        """Send bytes to the open streams, such as half an event."""
        await self._write(data, route)

    def cut(self) -> None:
        """Reset every open connection."""
        for client in list(self._clients):
            connection: socket.socket | None = client.transport.get_extra_info("socket")
            if connection is not None:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.transport.abort()
        self._clients.clear()

    def end(self) -> None:
        """End every open stream cleanly."""
        for client in list(self._clients):
            client.ended.set()
        self._clients.clear()

    def refuse(
        self, status: int, *, times: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the next requests with *status*; open streams stay open.

        Args:
            times: The number of requests; None for all until `accept`.
            headers: Of the response, such as `Retry-After`.
        """
        self._refusal = _Refusal(status, headers or {}, times)

    def accept(self) -> None:
        """Answer with streams again."""
        self._refusal = None

    async def client(self, number: int = 1, deadline: float = _DEADLINE) -> SSERequest:
        """Wait for a client, and return its request.

        Args:
            number: The number of the stream since the server was created, from 1.

        Raises:
            AssertionError: No such stream was opened in time.
        """
        try:
            async with asyncio.timeout(deadline), self._changed:
                await self._changed.wait_for(lambda: len(self.opened) >= number)
        except TimeoutError:
            found = f"{len(self.opened)} of {number} streams, {len(self.requests)} requests"
            raise AssertionError(f"no client after {deadline:g} s: {found}") from None
        return self.opened[number - 1]

    async def _write(self, frame: bytes, route: str | None) -> None:
        clients = [each for each in self._clients if route in (None, each.route)]
        await asyncio.gather(*(each.write([frame]) for each in clients))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        last_event_id = request.headers.get("Last-Event-ID")
        received = SSERequest(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            last_event_id,
            await request.read(),
        )
        self.requests.append(received)
        if (refusal := self._next_refusal()) is not None:
            return web.Response(status=refusal.status, headers=refusal.headers)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        assert request.transport is not None
        client = _Client(request.path, response, request.transport)
        frames = [_RETRY, *self._events_after(last_event_id, request.path)]
        self._clients.add(client)
        try:
            await client.write(frames)
            async with self._changed:
                self.opened.append(received)
                self._changed.notify_all()
            await client.ended.wait()
        finally:
            self._clients.discard(client)
        return response

    def _events_after(self, last_event_id: str | None, route: str) -> list[bytes]:
        """Return the events after an id; none if this id was never sent."""
        sent = [each for each in self._sent if each.route in (None, route)]
        if last_event_id is not None:
            places = [place for place, each in enumerate(sent) if each.id == last_event_id]
            sent = sent[places[-1] + 1 :] if places else []
        return [each.frame for each in sent]

    def _next_refusal(self) -> _Refusal | None:
        refusal = self._refusal
        if refusal is None or refusal.times is None:
            return refusal
        if not refusal.times:
            return None
        refusal.times -= 1
        return refusal


@asynccontextmanager
async def sse_server(
    port: int = 0, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SSEServer]:
    """Run a server of event streams on the loopback, controlled by the test.

    Args:
        port: 0 for any free port.
        tls: Serve HTTPS with the certificate of this context.
    """
    async with SSEServer(port, tls) as server:
        yield server
