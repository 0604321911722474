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
    """What a client asked for.

    Attributes:
        path: Without the query.
        headers: Names as the client wrote them; `last_event_id` is one of them.
        last_event_id: None where the client named none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    last_event_id: str | None
    body: bytes


@dataclass(eq=False, slots=True)
class _Client:
    """An open stream; the lock keeps what is written to it in order."""

    route: str
    response: web.StreamResponse
    transport: asyncio.Transport
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, frames: Iterable[bytes]) -> None:
        """Write, if the client is still there."""
        async with self.lock:
            with suppress(ConnectionError):
                for frame in frames:
                    await self.response.write(frame)


@dataclass(frozen=True, slots=True)
class _Sent:
    """An event that was sent, kept for clients that come later."""

    id: str
    route: str | None
    frame: bytes


@dataclass(slots=True)
class _Refusal:
    """How requests are answered instead of with a stream, so many times; None for ever."""

    status: int
    headers: Mapping[str, str]
    times: int | None


class SSEServer:
    """Serves event streams on a port of the loopback. Get one from `workerkit.testing.sse_server`.

    Every path is a stream. Events are kept: a client gets those behind its `Last-Event-ID`, and
    all of them if it names none. Clients are asked to come back after 10 ms.

    Attributes:
        requests: All that came, refused ones too, in order.
        opened: Those that were answered with a stream.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[SSERequest] = []
        self.opened: list[SSERequest] = []
        self._port = port
        self._sent: list[_Sent] = []
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
        """The address, without a path."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    @property
    def clients(self) -> int:
        """How many streams are open now."""
        return len(self._clients)

    async def start(self) -> None:
        """Listen, again on the same port after `stop`."""
        server = web.Server(self._answer, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections, and drop those that are open."""
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
        """Send an event, and return when every open stream has taken it.

        Args:
            body: Text as it is, everything else as JSON.
            id: By default events are numbered, from 1.
            route: Only to the streams of this path; None for all.

        Returns:
            The id.
        """
        given = str(len(self._sent) + 1) if id is None else id
        lines = [f"id: {given}"] + ([] if name is None else [f"event: {name}"])
        lines += [f"data: {line}" for line in _ANY_LINE_END.split(encode(body)[0].decode())]
        sent = _Sent(given, route, ("\n".join(lines) + "\n\n").encode())
        self._sent.append(sent)
        await self._write(sent.frame, route)
        return given

    async def comment(self, text: str = "", *, route: str | None = None) -> None:
        """Send a comment, as servers do to keep a silent stream alive."""
        await self._write(f": {text}\n".encode(), route)

    async def raw(self, data: bytes, *, route: str | None = None) -> None:
        """Send bytes as they are to the streams that are open now: half an event, for instance."""
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
        """End every open stream as a server does that has no more to say for now."""
        for client in list(self._clients):
            client.over.set()
        self._clients.clear()

    def refuse(
        self, status: int, *, times: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the next requests with *status*; streams that are open stay open.

        Args:
            times: So many of them; None for all until `accept`.
            headers: Of the answer, such as `Retry-After`.
        """
        self._refusal = _Refusal(status, headers or {}, times)

    def accept(self) -> None:
        """Answer with streams again."""
        self._refusal = None

    async def client(self, number: int = 1, deadline: float = _DEADLINE) -> SSERequest:
        """Wait for a client, and return its request.

        Args:
            number: Of the stream, counted from 1 since the server was made.

        Raises:
            AssertionError: It did not come in time.
        """
        try:
            async with asyncio.timeout(deadline), self._changed:
                await self._changed.wait_for(lambda: len(self.opened) >= number)
        except TimeoutError:
            came = f"{len(self.opened)} of {number} streams, {len(self.requests)} requests"
            raise AssertionError(f"no client after {deadline:g} s: {came}") from None
        return self.opened[number - 1]

    async def _write(self, frame: bytes, route: str | None) -> None:
        clients = [each for each in self._clients if route in (None, each.route)]
        await asyncio.gather(*(each.write([frame]) for each in clients))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        last_event_id = request.headers.get("Last-Event-ID")
        came = SSERequest(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            last_event_id,
            await request.read(),
        )
        self.requests.append(came)
        if (refusal := self._next_refusal()) is not None:
            return web.Response(status=refusal.status, headers=refusal.headers)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        assert request.transport is not None
        client = _Client(request.path, response, request.transport)
        frames = [_RETRY, *self._behind(last_event_id, request.path)]
        self._clients.add(client)
        try:
            await client.write(frames)
            async with self._changed:
                self.opened.append(came)
                self._changed.notify_all()
            await client.over.wait()
        finally:
            self._clients.discard(client)
        return response

    def _behind(self, last_event_id: str | None, route: str) -> list[bytes]:
        """What a client has missed. Behind an id that was never sent, it is nothing."""
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
    """A scripted server of event streams on the loopback; `server.url` is its address.

    Args:
        port: 0 for any free one.
        tls: Serve HTTPS with the certificate in it.
    """
    async with SSEServer(port, tls) as server:
        yield server
