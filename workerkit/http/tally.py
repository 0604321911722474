"""Count what may happen very often, and report it once a second at most."""

import asyncio
from collections.abc import Callable

_SECOND = 1.0


class Tally:
    """Counts, and calls *report* with the number since the last report.

    The first one is reported immediately, the others together a second later.
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
            self._tell()

    def close(self) -> None:
        """Report what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._count:
            self._report(self._count)
            self._count = 0

    def _tell(self) -> None:
        self._timer = None
        if not self._count:
            return
        count, self._count = self._count, 0
        self._timer = self._loop.call_later(_SECOND, self._tell)
        self._report(count)
