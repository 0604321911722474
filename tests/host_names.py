"""Host names that resolve to addresses that a test sets, with asyncio and with uvloop."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import uvloop

LOOPS: dict[str, type[asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.Loop,
}


def run(
    loop: str, main: Callable[[], Coroutine[Any, Any, None]], names: Mapping[str, Sequence[str]]
) -> None:
    """Run *main* to its end on a new loop.

    Args:
        loop: A key of `LOOPS`.
        names: The IPv4 addresses of each name, in the order in which they are found.
    """
    base: Any = LOOPS[loop]

    class Resolving(base):  # type: ignore[misc]
        async def getaddrinfo(self, host: str, port: int, **hints: Any) -> Any:
            found = [
                await super(Resolving, self).getaddrinfo(each, port, **hints)
                for each in names.get(host, [host])
            ]
            return [info for each in found for info in each]

    with asyncio.Runner(loop_factory=Resolving) as runner:
        runner.run(main())


class Deaf:
    """A loopback address that drops packets: its backlog is full and nothing accepts.

    Use it with `with`.
    """

    def __init__(self, address: str, port: int) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        self._listener.listen(0)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> "Deaf":
        while True:
            client = socket.socket()
            client.settimeout(0.5)
            self._clients.append(client)
            try:
                client.connect(self._listener.getsockname())
            except TimeoutError:
                return self

    def __exit__(self, *_: object) -> None:
        for each in [*self._clients, self._listener]:
            each.close()
