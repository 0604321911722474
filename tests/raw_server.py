"""A server that replies with the bytes that a test sets."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(eq=False, slots=True)
class RawServer:
    """The requests that a raw server has received.

    Attributes:
        heads: The head of each request.
        open: Writers of the connections that it keeps open.
    """

    port: int = 0
    scheme: str = "http"
    heads: list[bytes] = field(default_factory=list)
    open: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[list[str]]:
        """The lines of each head, the header names in lower case."""
        return [
            [_lowered(line) for line in head.decode("latin-1").split("\r\n") if line]
            for head in self.heads
        ]


@asynccontextmanager
async def raw_server(
    answer: Callable[[int, bytes], bytes | Iterable[bytes]],
    *,
    tls: ssl.SSLContext | None = None,
    hold_from: int | None = None,
) -> AsyncIterator[RawServer]:
    """Answer each request inside the block.

    Args:
        answer: Gives the bytes for a request, or pieces of them; takes its number, from 1, and its
            head.
        hold_from: Keep connections open after the answer, from this request on.
    """
    seen = RawServer(scheme="https" if tls else "http")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                seen.heads.append(await reader.readuntil(b"\r\n\r\n"))
                given = answer(len(seen.heads), seen.heads[-1])
                for piece in [given] if isinstance(given, bytes) else given:
                    writer.write(piece)
                    await writer.drain()
                if hold_from is not None and len(seen.heads) >= hold_from:
                    seen.open.append(writer)
                    await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen
        for writer in seen.open:
            writer.close()


def _lowered(line: str) -> str:
    name, colon, value = line.partition(": ")
    return f"{name.lower()}{colon}{value}" if colon else line
