"""A proxy that delays each reply of an AMQP server, and counts the waiting requests.

async with SlowProxy("127.0.0.1", rabbit.port, delay=0.1) as proxy:
    ...connect to proxy.url(rabbit.url())...
    assert proxy.most_waiting <= 16
"""

import asyncio
import struct
from collections import Counter

from tests.loopback_server import LoopbackServer

# Requests by class and method, and the kinds of replies that answer one.
_CHANNEL = {(20, 10), (20, 40)}
_REQUESTS = _CHANNEL | {(40, 10), (50, 10), (50, 20), (60, 10), (60, 20), (60, 30), (85, 10)}
_ANSWERS = {(20, 11), (20, 40), (20, 41), (40, 11), (50, 11), (50, 21)} | {
    (60, 11),
    (60, 21),
    (60, 31),
    (85, 11),
}


class SlowProxy(LoopbackServer):
    """Forwards connections to one server; use it with `async with`.

    Args:
        delay: Seconds by which data of the server is delayed.

    Attributes:
        port: Where clients connect to, on 127.0.0.1.
        accepted: How many connections were accepted.
        requests: How many were sent of each kind, by class and method.
        most_waiting: How many requests of one connection waited for replies at the same time.
    """

    def __init__(self, host: str, port: int, *, delay: float) -> None:
        super().__init__()
        self.accepted = 0
        self.requests: Counter[tuple[int, int]] = Counter()
        self.most_waiting = 0
        self._upstream = host, port
        self._delay = delay

    def url(self, direct: str) -> str:
        """Return the address *direct* of the server, through this proxy."""
        host, port = self._upstream
        return direct.replace(f"{host}:{port}", f"127.0.0.1:{self.port}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward both ways until one of them ends."""
        self.accepted += 1
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        waiting: Counter[int] = Counter()
        try:
            server_writer.write(await reader.readexactly(8))  # The protocol header.
            pumps = [
                asyncio.ensure_future(self._requests(reader, server_writer, waiting)),
                asyncio.ensure_future(self._replies(server_reader, writer, waiting)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            server_writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: Counter[int]
    ) -> None:
        while True:
            frame, channel, method = await _frame(reader)
            if method in _REQUESTS:
                self.requests[method] += 1
                waiting[channel] += 1
                self.most_waiting = max(self.most_waiting, waiting.total())
            writer.write(frame)

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: Counter[int]
    ) -> None:
        loop = asyncio.get_running_loop()

        def deliver(frame: bytes, channel: int, method: tuple[int, int]) -> None:
            if method in _ANSWERS and waiting[channel]:
                waiting[channel] -= 1
            writer.write(frame)

        while True:
            loop.call_later(self._delay, deliver, *await _frame(reader))


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, int, tuple[int, int]]:
    """Return one frame, its channel, and class and method where it has them."""
    head = await reader.readexactly(7)
    kind, channel, size = struct.unpack(">BHI", head)
    rest = await reader.readexactly(size + 1)
    method = struct.unpack_from(">HH", rest) if kind == 1 else (0, 0)
    return head + rest, channel, (method[0], method[1])
