"""A TCP proxy that changes the frames of an AMQP server.

async with Tampering(rabbit.port) as proxy:
    ...connect to proxy.url(url)...
    proxy.inject(b"noise")              # behind the frame that was sent last
    proxy.change = lambda frame: b""    # called for every frame from now on
    proxy.deaf = True                   # what clients send does not arrive
"""

import asyncio
import struct
from collections.abc import Callable

from tests.loopback_server import LoopbackServer

Change = Callable[[bytes], bytes]
METHOD, HEADER, BODY = 1, 2, 3
DELIVER = b"\x00\x3c\x00\x3c"


def head(kind: int, channel: int, size: int) -> bytes:
    """Return the first seven bytes of a frame."""
    return struct.pack(">BHI", kind, channel, size)


def delivery_tag(frame: bytes) -> int | None:
    """Return the tag of a basic.deliver; None of any other frame."""
    if frame[0] != METHOD or frame[7:11] != DELIVER:
        return None
    return int.from_bytes(frame[12 + frame[11] : 20 + frame[11]])


def with_tag(frame: bytes, tag: int) -> bytes:
    """Return the same basic.deliver with another tag."""
    at = 12 + frame[11]
    return frame[:at] + tag.to_bytes(8) + frame[at + 8 :]


class Tampering(LoopbackServer):
    """Forwards connections to a server on this machine.

    Attributes:
        change: Gets each frame of the server, and says what is sent in its place.
        deaf: What clients send is read and thrown away.
        rate: Bytes a second that the server's frames are sent with; None for all at once.
        accepted: How many connections there were.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._upstream = port
        self.change: Change = lambda frame: frame
        self.deaf = False
        self.rate: float | None = None
        self.accepted = 0
        self._clients: set[asyncio.StreamWriter] = set()

    def url(self, direct: str) -> str:
        """Return the address *direct* of the server, through this proxy."""
        return direct.replace(f":{self._upstream}/", f":{self.port}/")

    def inject(self, data: bytes) -> None:
        """Send *data* to every client, after the last complete frame."""
        for client in self._clients:
            client.write(data)

    def drop(self) -> None:
        """Close all connections, and discard waiting data."""
        for client in list(self._clients):
            client.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Forward both ways until the client ends, or is dropped."""
        self.accepted += 1
        self._clients.add(client)
        upstream, server = await asyncio.open_connection("127.0.0.1", self._upstream)
        sending = asyncio.create_task(self._frames(upstream, client))
        try:
            while data := await reader.read(65_536):
                if not self.deaf:
                    server.write(data)
        finally:
            self._clients.discard(client)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            server.transport.abort()

    async def _frames(self, upstream: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            while True:
                start = await upstream.readexactly(7)
                rest = await upstream.readexactly(int.from_bytes(start[3:7]) + 1)
                await self._send(client, self.change(start + rest))
        except asyncio.IncompleteReadError:
            client.close()

    async def _send(self, client: asyncio.StreamWriter, data: bytes) -> None:
        if self.rate is None:
            client.write(data)
            return
        step = max(int(self.rate / 20), 1)
        for start in range(0, len(data), step):
            client.write(data[start : start + step])
            await asyncio.sleep(0.05)
