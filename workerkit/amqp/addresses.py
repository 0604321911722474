"""Choose the next server of a connection, and connect to one of its addresses."""

import asyncio
import os
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiohappyeyeballs import AddrInfoType, start_connection

from workerkit.config.hosts import Host

_CONNECTION_ATTEMPT_DELAY = 0.25  # RFC 8305, section 8
_MAX_REMEMBERED = 64


@dataclass(slots=True)
class ConnectionAttempt:
    """One attempt to connect to one server.

    Attributes:
        server: The server, with its port.
        failed: Addresses that accepted a connection which failed later, each with a number that
            increases with time. They are tried after all others, the one that failed last at the
            end.
        tried: The addresses that were tried so far, in order.
        address: The address that accepted the connection; empty until then.
    """

    server: Host
    failed: Mapping[str, int] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    address: str = ""

    async def connect(self) -> socket.socket:
        """Open a TCP connection to the first address of the server that accepts one.

        The addresses are tried as RFC 8305 ("Happy Eyeballs") describes: the next one when the
        previous one has failed, or has not answered within a quarter of a second.

        Raises:
            OSError: The name cannot be resolved, or no address accepts a connection.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            self.server.name, self.server.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        # uvloop raises `RuntimeError` where asyncio raises `OSError`.
        try:
            connected = await start_connection(
                sorted(found, key=lambda each: self.failed.get(_address_of(each), -1)),
                happy_eyeballs_delay=_CONNECTION_ATTEMPT_DELAY,
                socket_factory=self._create_socket,
            )
        except RuntimeError as error:
            raise OSError(str(error)) from error
        except OSError as error:
            if error.errno is None:
                raise
            # The text of the operating system, such as "Connection refused".
            raise OSError(error.errno, os.strerror(error.errno)) from error
        try:
            self.address = _format_address(connected.getpeername())
        except OSError:  # The server has already closed it.
            connected.close()
            raise
        return connected

    @property
    def addresses(self) -> str:
        """Return the address in use, or those that were tried, for logs and errors.

        Empty if the server is configured by its address, or if its name was not resolved.
        """
        listed = self.address or ", ".join(self.tried)
        return "" if listed == str(self.server) else listed

    def _create_socket(self, info: AddrInfoType) -> socket.socket:
        self.tried.append(_address_of(info))
        family, kind, protocol, _, _ = info
        return socket.socket(family, kind, protocol)


class ServerRotation:
    """The order in which the servers of a connection are tried: one after the other.

    The first server is random, so many workers spread over a cluster. A server whose connection was
    lost is not the next one that is tried.
    """

    def __init__(self) -> None:
        self._next = random.randrange(2**16)
        self._failures = 0
        self._failed: dict[str, int] = {}

    def attempt(self, servers: Sequence[Host]) -> ConnectionAttempt:
        """Create the next attempt. *servers* may change from one call to the next."""
        return ConnectionAttempt(servers[self._next % len(servers)], self._failed)

    def failed(self, attempt: ConnectionAttempt, servers: Sequence[Host]) -> bool:
        """Note that an attempt failed, or that its connection was lost.

        Returns:
            Whether all of *servers* have failed since the last stable connection: then the caller
            should pause. Otherwise the next server can be tried immediately.
        """
        self._next += 1
        self._failures += 1
        if attempt.address:
            if len(self._failed) >= _MAX_REMEMBERED:
                self._failed.clear()
            self._failed[attempt.address] = self._next
        return self._failures % len(servers) == 0

    def stable(self) -> None:
        """Note that a connection was stable: discard earlier failures."""
        self._failures = 0
        self._failed.clear()


def _address_of(info: AddrInfoType) -> str:
    return _format_address(info[4])


def _format_address(address: Sequence[object]) -> str:
    """Return the address of a socket as `host:port`."""
    name, port, *_ = address
    return str(Host(str(name), int(str(port))))
