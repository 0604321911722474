"""A TCP proxy that injects failures.

async with Proxy("127.0.0.1", rabbit.port) as proxy:
    ...connect to 127.0.0.1:proxy.port...
    proxy.freeze()      # packets vanish, connections stay open
    proxy.drop()        # a TCP reset for every connection
    proxy.swallow(QOS_OK)   # the server's next reply of this kind does not arrive
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.ports import free_port

CHANNEL_OPEN_OK = (20, 11)
DECLARE_OK = (50, 11)
QOS_OK = (60, 11)
CONSUME_OK = (60, 21)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_METHOD_FRAME = 1


class Proxy:
    """Forwards connections to one server; use it with `async with`.

    A client whose server cannot be reached gets a reset.

    Args:
        host: Host of the server.
        port: Port of the server. It need not listen yet.
        amqp: Read the frames of the server, for `swallow`.

    Attributes:
        port: Where clients connect to, on 127.0.0.1; it stays the same through `refuse`.
        accepted: How many connections were accepted so far.
        swallowed: Class and method of each frame that did not arrive, see `swallow`.
    """

    def __init__(self, host: str, port: int, *, amqp: bool = False) -> None:
        self.port = 0
        self.amqp = amqp
        self.accepted = 0
        self.frozen = False
        self.swallowed: list[tuple[int, int]] = []
        self._left: dict[tuple[int, int], int] = {}
        self._upstream = host, port
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self.drop()
        while self._links:
            await asyncio.gather(*(link.wait_closed() for link in self._links))

    @property
    def connections(self) -> int:
        """How many connections of clients are open now."""
        return len(self._links)

    def url(self, direct: str) -> str:
        """Return the address *direct* of the server, through this proxy."""
        host, port = self._upstream
        assert f"{host}:{port}" in direct
        return direct.replace(f"{host}:{port}", f"127.0.0.1:{self.port}")

    def swallow(self, method: tuple[int, int], number: int = 1) -> None:
        """Drop one AMQP method frame of the server; forward everything else.

        Args:
            method: Its class and method.
            number: Which one of this kind from now on, over all connections.
        """
        self._left[method] = number

    def wanted(self, method: tuple[int, int]) -> bool:
        """Return whether to forward a frame of the server; called once for each."""
        if method not in self._left:
            return True
        self._left[method] -= 1
        if self._left[method]:
            return True
        del self._left[method]
        self.swallowed.append(method)
        return False

    def drop(self) -> None:
        """Reset (RST) every connection, on both sides."""
        for link in self._links:
            link.reset()

    def freeze(self) -> None:
        """Stop forwarding in both directions; connections stay open, new ones too."""
        self._freeze(True)

    def thaw(self) -> None:
        """Resume forwarding, first the data received while frozen."""
        self._freeze(False)

    def refuse(self) -> None:
        """Refuse new connections; open ones stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is not None:
            return
        loop = asyncio.get_running_loop()
        tries = 1 if self.port else 3
        for left in reversed(range(tries)):
            port = self.port or free_port()
            try:
                self._listener = await loop.create_server(self._open, "127.0.0.1", port)
                self.port = port
                return
            except OSError:
                if not left:
                    raise

    def _freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        for link in self._links:
            link.regulate()

    def _open(self) -> asyncio.Protocol:
        return _Link(self, self._upstream, self._links).client


class _Link:
    """One client's connection and the connection to the server that belongs to it."""

    def __init__(self, proxy: Proxy, upstream: tuple[str, int], links: "set[_Link]") -> None:
        self.proxy = proxy
        self.client = _End(self)
        self.server = _End(self)
        self._upstream = upstream
        self._links = links
        self._closed = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None

    def opened(self, end: "_End") -> None:
        if end is self.client:
            self.proxy.accepted += 1
            self._links.add(self)
            self._connecting = asyncio.create_task(self._connect())
        self.regulate()

    def regulate(self) -> None:
        """Read from an end only while nothing is frozen and the other end can write."""
        for end, other in ((self.client, self.server), (self.server, self.client)):
            end.read(other.writable and not self.proxy.frozen)

    def reset(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        for end in (self.client, self.server):
            end.reset()

    def lost(self) -> None:
        """Close the other end too, after writing its data."""
        if self._connecting is not None:
            self._connecting.cancel()
        ends = [end for end in (self.client, self.server) if end.transport is not None]
        for end in ends:
            end.close()
        if not ends:
            self._links.discard(self)
            self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()
        if self._connecting is not None:
            await asyncio.wait([self._connecting])

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self._upstream)
        except OSError:
            self.client.reset()


class _Frames:
    """Splits the data of an AMQP server into frames, so that single frames can be dropped."""

    def __init__(self, wanted: Callable[[tuple[int, int]], bool]) -> None:
        self._wanted = wanted
        self._rest = b""

    def passed(self, data: bytes) -> bytes:
        """Return the part of *data* to forward; an incomplete frame waits."""
        buffer = self._rest + data
        position = 0
        kept = []
        while len(buffer) - position >= 8:
            kind, _, size = struct.unpack_from(">BHI", buffer, position)
            end = position + 7 + size + 1
            if end > len(buffer):
                break
            frame = buffer[position:end]
            if kind != _METHOD_FRAME or self._wanted(struct.unpack_from(">HH", frame, 7)):
                kept.append(frame)
            position = end
        self._rest = buffer[position:]
        return b"".join(kept)


class _End(asyncio.Protocol):
    """One of the two sockets of a link."""

    def __init__(self, link: _Link) -> None:
        self.transport: asyncio.Transport | None = None
        self.writable = False
        self._ended = False
        self._early = b""
        self._link = link
        self._frames = _Frames(link.proxy.wanted)

    @property
    def _other(self) -> "_End":
        return self._link.server if self is self._link.client else self._link.client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.writable = True
        self.write(self._early)
        self._link.opened(self)
        # Python 3.11.2 begins to read behind this method, whether it was paused here or not.
        asyncio.get_running_loop().call_soon(self._link.regulate)

    def data_received(self, data: bytes) -> None:
        if self is self._link.server and self._link.proxy.amqp:
            data = self._frames.passed(data)
        self._other.write(data)

    def write(self, data: bytes) -> None:
        """Send it, now or once there is a connection."""
        if self.transport is None:
            self._early += data
        else:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self._other.transport is not None:
            self._other.transport.write_eof()
        # Half closed: the other direction stays open. False would close both ends.
        return not self._other._ended

    def pause_writing(self) -> None:
        self.writable = False
        self._link.regulate()

    def resume_writing(self) -> None:
        self.writable = True
        self._link.regulate()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.writable = False
        if error is not None:
            self._other.reset()
        self._link.lost()

    def read(self, on: bool) -> None:
        """Read from the socket, or leave data in the kernel's buffers."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.resume_reading()
        if not on:
            self.transport.pause_reading()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Send a RST instead of a FIN."""
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
