"""A server that plays a script to each client: a correct AMQP handshake, or a wrong one."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from pamqp import frame
from pamqp.base import Frame
from pamqp.commands import Connection

from tests.loopback_server import LoopbackServer

CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "exchange_exchange_bindings": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}
PROPERTIES = {"product": "Scripted", "version": "4.3.6", "capabilities": CAPABILITIES}


class Do(Enum):
    """Steps of a script other than bytes."""

    READ = "wait for the protocol header, or the next frame, of the client"
    CLOSE = "end the connection, and continue reading until the client closes it"
    RESET = "end the connection by a reset"
    HANG = "send nothing more, and read until the client ends the connection"


Script = Sequence[bytes | Do]


def method(command: Frame, channel: int = 0) -> bytes:
    """Return the frame of a method."""
    return frame.marshal(command, channel)


def start(properties: dict[str, Any] | None = None, mechanisms: str = "PLAIN AMQPLAIN") -> bytes:
    """Return a connection.start."""
    given: dict[str, Any] = dict(PROPERTIES) if properties is None else properties
    return method(Connection.Start(0, 9, given, mechanisms, "en_US"))


def nested(depth: int) -> bytes:
    """Return a connection.start whose properties are tables within tables."""
    table = struct.pack(">I", 0)
    for _ in range(depth):
        entry = b"\x01aF" + table
        table = struct.pack(">I", len(entry)) + entry
    longs = b"".join(struct.pack(">I", len(text)) + text for text in (b"PLAIN", b"en_US"))
    payload = b"\x00\x0a\x00\x0a\x00\x09" + table + longs
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


def tune(channel_max: int = 2047, frame_max: int = 131_072, heartbeat: int = 60) -> bytes:
    """Return a connection.tune."""
    return method(Connection.Tune(channel_max, frame_max, heartbeat))


def closing(code: int, text: str) -> bytes:
    """Return a connection.close."""
    return method(Connection.Close(code, text, 0, 0))


OPEN_OK = method(Connection.OpenOk())


def login(
    started: bytes | None = None, tuned: bytes | None = None, opened: bytes | None = None
) -> list[bytes | Do]:
    """Return the whole handshake, up to open-ok."""
    return [
        Do.READ,
        start() if started is None else started,
        Do.READ,
        tune() if tuned is None else tuned,
        Do.READ,
        Do.READ,
        OPEN_OK if opened is None else opened,
    ]


class Scripted(LoopbackServer):
    """Listens on the loopback and plays scripts; use it with `async with`.

    Args:
        script: Called for each connection, with its number from 0.

    Attributes:
        accepted: Connections so far.
        open: Connections that are open now.
    """

    def __init__(self, script: Callable[[int], Script]) -> None:
        super().__init__()
        self.accepted = self.open = 0
        self._script = script

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`."""
        return f"amqp://127.0.0.1:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Play the script of this connection."""
        script = self._script(self.accepted)
        self.accepted += 1
        self.open += 1
        try:
            await _play(script, reader, writer)
        finally:
            self.open -= 1


async def _play(script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for action in script:
        match action:
            case bytes():
                writer.write(action)
                await writer.drain()
            case Do.READ:
                await _unit(reader)
            case Do.RESET:
                return
            case Do.CLOSE:
                writer.write_eof()
                await reader.read(-1)
            case Do.HANG:
                await reader.read(-1)


async def _unit(reader: asyncio.StreamReader) -> None:
    head = await reader.readexactly(7)
    if head.startswith(b"AMQP"):
        await reader.readexactly(1)
    else:
        await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
