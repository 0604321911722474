"""Time limits for a client that sends a body slowly, or that does not read its response.

There are no timers: the server checks each connection about once a second. So the limits take no
time for each request, and time in which the event loop is blocked does not count.
"""

import asyncio
from types import TracebackType
from typing import Any

from aiohttp import web


class BodyTimeout:
    """A time limit for reading a body, inside of `async with`.

    Raises:
        TimeoutError: The body did not arrive in time.
    """

    __slots__ = ("_since", "_timeout")

    def __init__(self) -> None:
        self._timeout: asyncio.Timeout | None = None
        self._since: float | None = None

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timeout, self._timeout, self._since = self._timeout, None, None
        if timeout is not None:
            await timeout.__aexit__(kind, error, traceback)

    def restart(self) -> None:
        """Restart the time limit, because a part of the body has arrived."""
        self._since = None

    def check(self, now: float, limit: float) -> None:
        """End the reading if it has taken longer than *limit* seconds."""
        if self._timeout is None:
            return
        if self._since is None:
            self._since = now
        elif now - self._since > limit and not self._timeout.expired():
            self._timeout.reschedule(0.0)


class UnreadResponse:
    """A time limit for a client that reads nothing of its response."""

    __slots__ = ("_read", "_since")

    def __init__(self) -> None:
        self._read = 0
        self._since: float | None = None

    def check(
        self, now: float, limit: float, transport: Any, request: web.BaseRequest | None
    ) -> bool:
        """Return whether the client has read nothing since the last check.

        If that lasts longer than *limit* seconds, its connection is aborted.
        """
        if transport is None or request is None or not self._is_stuck(transport, request):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        elif now - self._since > limit:
            transport.abort()
        return True

    def _is_stuck(self, transport: Any, request: web.BaseRequest) -> bool:
        unsent = transport.get_write_buffer_size()
        read, self._read = self._read, request.writer.output_size - unsent
        return bool(unsent > 0 and read == self._read)
