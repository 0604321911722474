"""A server of one event stream with random failures of every kind."""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import Self

from tests.ports import free_port

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ENDINGS = (b"\n", b"\r", b"\r\n")


class ChaoticStream:
    """Sends the numbers 1, 2, 3 ... as ids and data, to each client after its `Last-Event-ID`.

    Each connection is answered by an error, or sends some events in chunks cut anywhere and then
    ends: cleanly, by a reset, in the middle of an event, in the middle of a chunk, or never.

    Args:
        last: The highest number; a client that has it gets comments.
        calm: Do nothing but that.

    Attributes:
        ids: The `Last-Event-ID` of each request.
        fates: The number of failures of each kind.
    """

    def __init__(self, last: int, *, dice: random.Random, calm: bool = False) -> None:
        self.last = last
        self.calm = calm
        self.port = free_port()
        self.ids: list[int] = []
        self.fates: dict[str, int] = {}
        self._dice = dice
        self._server: asyncio.Server | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening, and reset every connection."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                _reset(writer)
            await self._server.wait_closed()
            await asyncio.gather(*self._answers)

    async def restart(self) -> None:
        """Be away for a moment."""
        await self.stop()
        await asyncio.sleep(0.05)
        await self.start()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                await self._serve(_last_event_id(head), reader, writer)
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _serve(
        self, behind: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.ids.append(behind)
        fates = ["error", "end", "reset", "half event", "half chunk", "stall"]
        fate = "calm" if self.calm else self._dice.choice(fates)
        self.fates[fate] = self.fates.get(fate, 0) + 1
        if fate == "error":
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        writer.write(_HEAD)
        count = self.last if fate == "calm" else self._dice.randint(0, 200)
        numbers = range(behind + 1, min(behind + count, self.last) + 1)
        await self._send(writer, b"retry: 10\n\n" + b"".join(map(self._event, numbers)))
        if fate == "half event":
            await self._send(writer, b"id: 1\nevent: half\ndata: an event that was nev")
        elif fate == "half chunk":
            writer.write(b"ffff\r\nid: 1\nevent: number\ndata: 1\n")
        elif fate == "end":
            writer.write(b"0\r\n\r\n")
            return
        elif fate in ("stall", "calm"):
            await reader.read()
        await writer.drain()
        _reset(writer)

    def _event(self, number: int) -> bytes:
        end = self._dice.choice(_ENDINGS)
        lines = [b"id: %d" % number, b"event: number", b"data: %d" % number, b"", b""]
        if self._dice.random() < 0.2:
            lines = [
                b": comment",
                b"id: %d" % number,
                b"event:number",
                b"data:%d" % number,
                b"",
                b"",
            ]
        if self._dice.random() < 0.1:
            lines = [b"event: other", b"data: not wanted", b"", *lines]
        return end.join(lines)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Write in random chunks, with random pauses."""
        while data:
            size = self._dice.choice((1, 10, 100, 1_000))
            part, data = data[:size], data[size:]
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            if self._dice.random() < 0.02:
                await writer.drain()
                await asyncio.sleep(0)


def _last_event_id(head: bytes) -> int:
    for line in head.decode().splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "last-event-id":
            return int(value)
    return 0


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
