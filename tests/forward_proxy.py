"""A small HTTP proxy: it forwards requests for http, and opens tunnels for CONNECT."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class ForwardProxy:
    """The requests that a proxy has received.

    Attributes:
        user: With `password`, that it asks for; none where it is empty.
        refusal: Status with which it answers instead; 0 for none.
        targets: The requested URLs, or `host:port` of tunnels.
        heads: The head of each request.
    """

    user: str = ""
    password: str = ""
    refusal: int = 0
    port: int = 0
    targets: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address, with the credentials."""
        credentials = f"{self.user}:{self.password}@" if self.user else ""
        return f"http://{credentials}127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        """Its address, without them."""
        return f"http://127.0.0.1:{self.port}"

    def status(self, head: str) -> int:
        """Return the status for a request: 200 if it is forwarded."""
        if self.refusal:
            return self.refusal
        pair = b64encode(f"{self.user}:{self.password}".encode()).decode()
        line = f"proxy-authorization: basic {pair}".lower()
        return 200 if not self.user or line in head.lower() else 407


@asynccontextmanager
async def forward_proxy(
    user: str = "", password: str = "", refusal: int = 0
) -> AsyncIterator[ForwardProxy]:
    """Run a proxy inside the block."""
    proxy = ForwardProxy(user, password, refusal)
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split(" ", 2)
            proxy.targets.append(target)
            proxy.heads.append(head)
            if (status := proxy.status(head)) != 200:
                writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
            else:
                await forward(method, target, head, reader, writer)
        writer.close()

    async def forward(
        method: str,
        target: str,
        head: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        address, _, path = target.removeprefix("http://").partition("/")
        host, _, port = address.partition(":")
        upstream, onward = await asyncio.open_connection(host, int(port))
        writers.append(onward)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            onward.write(_onward(head.replace(target, f"/{path}", 1)).encode("latin-1"))
        await asyncio.gather(_copy(reader, onward), _copy(upstream, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
        for writer in writers:
            writer.close()


def _onward(head: str) -> str:
    """Return the head for the server: what is for the proxy stays out of it."""
    lines = [line for line in head.split("\r\n") if not line.lower().startswith("proxy-")]
    return "\r\n".join(lines)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()
