"""Listening sockets, and the connections that they accept.

The servers of asyncio and uvloop have no limit of connections. When the process has no file
descriptor left, uvloop also logs an error in each iteration of the event loop.
"""

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import Literal

from workerkit.config.sections import ListenSettings

_SECOND = 1.0


class ThrottledCounter:
    """A counter that calls *report* at most once a second, with the number since the last report.

    The first event is reported immediately.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[int], None]) -> None:
        self._loop = loop
        self._report = report
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self) -> None:
        """Count one more."""
        self._count += 1
        if self._timer is None:
            self._flush()

    def close(self) -> None:
        """Report the events that are not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._count:
            self._report(self._count)
            self._count = 0

    def _flush(self) -> None:
        self._timer = None
        if not self._count:
            return
        count, self._count = self._count, 0
        self._timer = self._loop.call_later(_SECOND, self._flush)
        self._report(count)


_MIN_CONNECTIONS = 16
_UNLIMITED = 1 << 20
_SHARES = {"http": 2, "ops": 8}


def max_connections(setting: int | None, port: Literal["http", "ops"]) -> int:
    """Return the setting; by default, a share of the file descriptors that the process may have.

    Views get half of them and the ops server an eighth. The rest is left for brokers, files and
    databases, so HTTP clients cannot prevent the process from connecting to these.
    """
    if setting is not None:
        return setting
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = _UNLIMITED if soft == resource.RLIM_INFINITY else soft
    return max(_MIN_CONNECTIONS, descriptors // _SHARES[port])


log = logging.getLogger(__name__)

_BACKLOG = 512
_MAX_BATCH = 64  # Then other callbacks of the event loop get a turn.
_PAUSE = 0.1
_NO_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


async def bind(settings: ListenSettings) -> list[socket.socket]:
    """Return sockets that are bound to the address, one for each IP address of a host name.

    Raises:
        OSError: The address is in use, or is not one of this machine, or a descriptor that was
            given is no socket.
    """
    if settings.fds:
        return [_socket(each) for each in settings.fds]
    # This server resolves the host and binds; it never accepts.
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol,
        settings.host,
        settings.port,
        reuse_port=settings.reuse_port or None,
        start_serving=False,
    )
    try:
        return [_socket(os.dup(each.fileno())) for each in server.sockets]
    finally:
        server.close()


def _socket(descriptor: int) -> socket.socket:
    found = socket.socket(fileno=descriptor)
    found.setblocking(False)
    return found


class ListeningSockets:
    """The listening sockets of one address, which accept connections.

    Args:
        may_accept: Called before each connection; while it returns False, connections wait.
        on_accepted: Called with the socket of each connection.
        on_exhausted: Called when the system has no descriptor or memory for another connection.

    Attributes:
        sockets: One, or one for each IP address of a host name.
    """

    def __init__(
        self,
        may_accept: Callable[[], bool],
        on_accepted: Callable[[socket.socket], None],
        on_exhausted: Callable[[], None],
    ) -> None:
        self.sockets: list[socket.socket] = []
        self._may_accept = may_accept
        self._on_accepted = on_accepted
        self._on_exhausted = on_exhausted
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._failed = ThrottledCounter(self._loop, self._report)
        self._last_error = ""

    async def listen(self, settings: ListenSettings) -> None:
        """Begin to accept connections.

        Raises:
            OSError: As for `bind`.
        """
        self.sockets = await bind(settings)
        try:
            for each in self.sockets:
                each.listen(_BACKLOG)
        except OSError:
            self.close()
            raise
        self._resume()

    def close(self) -> None:
        """Stop accepting; open connections stay open."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._failed.close()
        for each in self.sockets:
            self._loop.remove_reader(each)
            each.close()
        self.sockets = []

    def _resume(self) -> None:
        self._resuming = None
        for each in self.sockets:
            self._loop.add_reader(each, self._accept, each)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_MAX_BATCH):
            if not self._may_accept():
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Other errors, such as ECONNABORTED, concern that connection alone.
                if error.errno in _NO_RESOURCES:
                    self._pause(error)
                    return
                continue
            accepted.setblocking(False)
            self._on_accepted(accepted)

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment: the socket stays readable, so the event loop would spin."""
        self._last_error = os.strerror(error.errno or 0)
        self._failed.add()
        for each in self.sockets:
            self._loop.remove_reader(each)
        self._on_exhausted()
        if self._resuming is None:
            self._resuming = self._loop.call_later(_PAUSE, self._resume)

    def _report(self, count: int) -> None:
        port = self.sockets[0].getsockname()[1] if self.sockets else 0
        extra = {"port": port, "error": self._last_error, "count": count}
        log.error("cannot accept connections", extra=extra)
