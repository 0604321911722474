"""A client that sends and receives frames, and does the handshake.

It is not aiormq, because scenarios observe the order of frames, and send frames that no client
library sends.
"""

import asyncio
import struct
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Connection
from pamqp.encode import field_table
from pamqp.frame import FrameTypes, marshal, unmarshal
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

F = TypeVar("F", bound=Frame)

# Long, because only hanging calls reach it: RabbitMQ waits for 3 s before it closes some sockets.
DEADLINE = 20.0
METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b"\xce"

# RabbitMQ treats a client without these capabilities differently.
CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


class Refused(Exception):
    """The broker closed a channel or the whole connection.

    Attributes:
        scope: "channel", "connection", or "socket" when it was closed without an error.
    """

    def __init__(self, scope: str, code: int = 0, text: str = "") -> None:
        super().__init__(scope, code, text)
        self.scope = scope
        self.code = code
        self.text = text

    @property
    def seen(self) -> str:
        """What a scenario reports: scope, code and text."""
        return f"{self.scope} {self.code}: {self.text}" if self.code else self.scope


GONE = Refused("socket")


@dataclass(frozen=True, slots=True)
class Login:
    """The login of a client.

    Attributes:
        heartbeat: Requested interval in seconds; 0 for none.
        channel_max: Requested maximum number of channels.
        frame_max: Requested maximum frame size in bytes.
    """

    vhost: str = "/"
    user: str = "guest"
    password: str = "guest"
    mechanism: str = "PLAIN"
    capabilities: dict[str, Any] = field(default_factory=lambda: dict(CAPABILITIES))
    heartbeat: int = 0
    channel_max: int = 2047
    frame_max: int = 131072

    @property
    def start_ok(self) -> Connection.StartOk:
        """The reply to `connection.start`."""
        response = f"\0{self.user}\0{self.password}"
        if self.mechanism == "AMQPLAIN":
            table = field_table({"LOGIN": self.user, "PASSWORD": self.password})
            response = table[4:].decode()
        return Connection.StartOk({"capabilities": self.capabilities}, self.mechanism, response)


class RawClient:
    """A socket that sends and receives frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.largest = 0  # of the frames that came in, in bytes
        self.raw = b""  # payload of the frame that came last, or the protocol header

    def write(self, data: bytes) -> None:
        """Send bytes, as they are."""
        self._writer.write(data)

    def send(self, channel: int, *frames: FrameTypes) -> None:
        """Send frames on a channel."""
        self.write(b"".join(marshal(frame, channel) for frame in frames))

    async def read(self) -> tuple[int, FrameTypes]:
        """Wait for the next frame.

        Raises:
            Refused: The socket was closed.
        """
        try:
            head = await self._reader.readexactly(7)
            if head.startswith(b"AMQP"):
                rest = await self._reader.readexactly(1)
                self.raw = head + rest
                return 0, unmarshal(head + rest)[2]
            kind, channel, size = struct.unpack(">BHI", head)
            rest = await self._reader.readexactly(size + 1)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise GONE from None
        self.largest = max(self.largest, size + 8)
        self.raw = rest[:-1]
        if kind == BODY and not size:  # pamqp refuses it
            return channel, ContentBody(b"")
        return channel, unmarshal(head + rest)[2]

    async def method(self, deadline: float = DEADLINE) -> Frame:
        """Wait for the next method; heartbeats are passed over."""
        async with asyncio.timeout(deadline):
            while True:
                frame = (await self.read())[1]
                if isinstance(frame, Heartbeat):
                    continue
                assert isinstance(frame, Frame), f"a method was due, not {frame!r}"
                return frame

    async def expect(self, kind: type[F], deadline: float = DEADLINE) -> F:
        """Wait for a method of one kind.

        Raises:
            Refused: The broker closed the connection instead.
        """
        method = await self.method(deadline)
        if isinstance(method, Connection.Close):
            self.send(0, Connection.CloseOk())
            raise Refused("connection", method.reply_code or 0, method.reply_text)
        assert isinstance(method, kind), f"{method.name} came, which was not due"
        return method

    async def start(self) -> Connection.Start:
        """Say hello, and return what the broker offers."""
        self.write(ProtocolHeader().marshal())
        return await self.expect(Connection.Start)

    async def log_in(self, login: Login) -> Connection.Tune:
        """Do the whole handshake, and return what the broker proposed in it.

        Raises:
            Refused: The broker wants no such client.
        """
        await self.start()
        self.send(0, login.start_ok)
        tune = await self.expect(Connection.Tune)
        self.send(0, Connection.TuneOk(login.channel_max, login.frame_max, login.heartbeat))
        self.send(0, Connection.Open(login.vhost))
        await self.expect(Connection.OpenOk)
        return tune

    async def end(self) -> Refused:
        """Wait until the broker closes the connection, and return how it did."""
        try:
            while True:
                await self.expect(Frame)
        except Refused as refused:
            return refused

    def abort(self) -> None:
        """Reset the socket: what was not sent yet never is."""
        self._writer.transport.abort()


def content(body: bytes, properties: Any, frame_max: int = 131072) -> list[FrameTypes]:
    """Return the header and body frames of a message."""
    room = frame_max - 8
    parts = [body[start : start + room] for start in range(0, len(body), room)]
    return [ContentHeader(0, len(body), properties), *map(ContentBody, parts)]


def frame(kind: int, channel: int, payload: bytes, end: bytes = FRAME_END) -> bytes:
    """Return a frame of any type and with any end."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


async def connect(host: str, port: int) -> RawClient:
    """Open a socket without a handshake."""
    return RawClient(*await asyncio.open_connection(host, port))
