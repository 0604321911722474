"""The numbers of messages in queues, counted at most every few seconds while somebody looks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic

from workerkit.console.reports import QueueReport
from workerkit.describe import describe_error
from workerkit.safe_text import one_line

log = logging.getLogger(__name__)

Place = tuple[str, str, str]
Depths = Mapping[Place, tuple[int | None, int | None]]
"""Messages that wait and dead letters, by connection, virtual host and name of a queue."""

CountDepths = Callable[[Sequence[QueueReport]], Awaitable[Depths]]

MOST_QUEUES = 2_000
_EVERY = 5.0
_DEADLINE = 1.0
_LATE = 15.0


class QueueDepths:
    """The last known depths of queues.

    Args:
        count: Counts the messages; None if nobody can.

    Attributes:
        problem: Why they are not known, or old; empty if they are known.
    """

    def __init__(self, count: CountDepths | None) -> None:
        self._count = count
        self._counting: asyncio.Future[Depths] | None = None
        self._last: Depths = {}
        self._began_at = -_EVERY
        self.problem = ""

    async def of(self, queues: Iterable[QueueReport]) -> Depths:
        """Return the depths of queues; the previous ones if counting takes longer than a second.

        No more than 2,000 queues are counted. Streams are not: their messages stay.
        """
        counted = {
            (each.connection, each.vhost, each.name): each for each in queues if not each.is_stream
        }
        if self._count is None or not counted:
            return {}
        since = monotonic() - self._began_at
        if self._counting is None and since >= _EVERY:
            wanted = list(counted.values())[:MOST_QUEUES]
            self._counting = asyncio.ensure_future(self._count(wanted))
            self._began_at = monotonic()
            await asyncio.wait([self._counting], timeout=_DEADLINE)
        if self._counting is not None:
            self._note(self._counting, monotonic() - self._began_at)
        return self._last

    async def close(self) -> None:
        """Stop counting."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.wait([self._counting])

    def _note(self, counting: "asyncio.Future[Depths]", seconds: float) -> None:
        if not counting.done():
            self.problem = f"queues: not counted within {seconds:.0f} s"
            if seconds > _LATE:
                counting.cancel()
                self._counting, self._last = None, {}
            return
        self._counting = None
        if counting.cancelled():
            self.problem = "queues cannot be counted: it was cancelled"
        elif (error := counting.exception()) is not None:
            problem = f"queues cannot be counted: {one_line(describe_error(error))}"
            if problem != self.problem:
                log.warning("queues cannot be counted", exc_info=error)
            self._last, self.problem = {}, problem
        else:
            self._last, self.problem = counting.result(), ""
