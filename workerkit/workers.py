"""A fixed pool of coroutines that rest while there is nothing to do."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from workerkit.supervisor import is_ending


class Workers:
    """Runs one coroutine function over and over in *size* tasks.

    Args:
        name: Of the consumer, for the names of the tasks.
        size: Calls of *work* at the same time.
        work: Does what there is to do, and returns when there is no more.
    """

    def __init__(self, name: str, size: int, work: Callable[[], Awaitable[None]]) -> None:
        self.size = size
        self._name = name
        self._work = work
        self._resting: deque[asyncio.Future[None]] = deque()
        self._working = 0
        self._waking = False
        self._quiet = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether any of them works."""
        return self._working > 0

    @property
    def working(self) -> int:
        """How many of them work."""
        return self._working

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """The workers, each with its name; the caller runs them as tasks."""
        for number in range(1, self.size + 1):
            yield f"{self._name} worker {number}", self._run()

    def wake(self) -> None:
        """Let one more of them work, if one rests.

        Waking all at once would cost a turn of the loop each, for nothing where one worker gets
        through everything before the others come to run: so a worker that begins wakes the next.
        """
        while self._resting and not self._waking:
            rest = self._resting.popleft()
            if not rest.done():
                rest.set_result(None)
                self._waking = True
                self._working += 1

    async def quiet(self) -> None:
        """Return once none of them works."""
        while self.busy:
            self._quiet.clear()
            await self._quiet.wait()

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._working += 1
        while True:
            try:
                await self._work()
            finally:
                self._stopped_working()
            if is_ending(task):
                # What it did has swallowed the cancellation; there will be no second one.
                return
            await self._rest()

    async def _rest(self) -> None:
        """Return when woken; whoever wakes a worker counts it as working."""
        rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting.append(rest)
        try:
            await rest
        except asyncio.CancelledError:
            if not rest.cancelled():
                self._stopped_working()
            raise
        finally:
            self._waking = False

    def _stopped_working(self) -> None:
        self._working -= 1
        if not self._working:
            self._quiet.set()
