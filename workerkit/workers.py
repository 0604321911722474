"""A fixed pool of coroutines that handle deliveries, one by one or in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from workerkit.tasks import is_meant_to_end


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
            if is_meant_to_end(task):
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


T = TypeVar("T")


class Batching(Generic[T]):
    """What waits to be handled together.

    A batch is ripe when it is full, or when its first item has waited for the interval. A ripe
    batch that no worker takes yet goes on growing until it is full.

    Args:
        size: Items of a full batch.
        interval: Seconds that the first item of a batch waits for others.
        ripe: Called when there may be a ripe batch.
    """

    def __init__(self, size: int, interval: float, ripe: Callable[[], None]) -> None:
        self._size = size
        self._interval = interval
        self._ripe = ripe
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[float, T]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._ripened = 0

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """The items that wait, the oldest first."""
        return (item for _, item in self._items)

    def add(self, item: T) -> None:
        """An item has come."""
        self._items.append((self._loop.time(), item))
        if len(self._items) >= self._size:
            self._ripe()
        elif self._timer is None:
            self._arm()

    def take(self) -> list[T]:
        """The next batch; empty while none is ripe."""
        items = self._items
        early = self._flushing or self._ripened > 0
        if not items or not (early or len(items) >= self._size or self._due()):
            return []
        count = min(self._size, len(items))
        self._ripened = max(self._ripened - count, 0)
        batch = [items.popleft()[1] for _ in range(count)]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if items:
            self._arm()
        return batch

    def ripen(self) -> None:
        """What waits now is ripe, whatever its age."""
        self._ripened = len(self._items)
        if self._items:
            self._ripe()

    def flush(self) -> None:
        """What waits is ripe: nothing more will come."""
        self._flushing = True
        self._ripe()

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Forget the other items; those that stay keep their age."""
        self._items = deque(each for each in self._items if wanted(each[1]))

    def clear(self) -> list[T]:
        """Take everything out that no batch was made of."""
        items = [item for _, item in self._items]
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return items

    def _due(self) -> bool:
        # Timers may fire a little early: the clock of the loop has its own resolution.
        return self._loop.time() >= self._items[0][0] + self._interval - 0.001

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._items[0][0] + self._interval, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if not self._items:
            return
        if self._due():
            self._ripe()
        else:
            # The timer was that of an item that is gone.
            self._arm()
