"""The listening socket, which can refuse clients and keep its port."""

import asyncio
import socket
from collections.abc import Callable

from workerkit.errors import ConfigurationError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BACKLOG = 1024


class BrokerListener:
    """A listening socket on a loopback address.

    Args:
        port: 0 picks a free one.
        protocol: Creates the protocol of each connection.

    Attributes:
        port: The bound port.

    Raises:
        ConfigurationError: The host is not a loopback address.
    """

    def __init__(self, host: str, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        if host not in _LOOPBACK:
            raise ConfigurationError(
                f"the embedded broker listens on loopback only ({', '.join(_LOOPBACK)}),"
                f" not on {host!r}: it is for demos and tests"
            )
        self.host = host
        self.port = port
        self._protocol = protocol
        self._socket: socket.socket | None = None  # Until the server owns it.
        self._server: asyncio.Server | None = None
        self._task: asyncio.Task[None] | None = None

    def accept(self) -> None:
        """Accept clients.

        Raises:
            ConfigurationError: The port is in use.
        """
        if self._task is not None:
            return
        bound = self._socket = self._socket or self._bind()
        # From now on the kernel accepts connections, before the loop handles them.
        bound.listen(_BACKLOG)
        self._task = asyncio.get_running_loop().create_task(self._serve(bound))

    def refuse(self) -> None:
        """Refuse clients, but keep the port bound: connecting fails immediately."""
        self.close()
        self._socket = self._bind()

    def close(self) -> None:
        """Close the socket and release the port."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _serve(self, bound: socket.socket) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=bound, backlog=_BACKLOG, start_serving=False
        )
        self._socket = None
        await self._server.start_serving()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio sets TCP_NODELAY only if the protocol is stated. Without it, a reply that follows
        # a confirm arrives 40 ms later.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            # Earlier connections in TIME_WAIT must not block the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.host, self.port))
        except OSError as error:
            bound.close()
            raise ConfigurationError(
                f"the embedded broker cannot listen on {self.host}:{self.port}:"
                f" {error.strerror}; choose another port, or 0 for any"
            ) from error
        self.port = bound.getsockname()[1]
        return bound
