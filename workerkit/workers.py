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
        work: Handles what waits, and returns when nothing is left, or after one call while there is
            a surplus.

    Attributes:
        size: The number of workers, but for the surplus.
        surplus: Workers that are to end.
    """

    def __init__(self, name: str, size: int, work: Callable[[], Awaitable[None]]) -> None:
        self.size = size
        self.surplus = 0
        self._numbered = 0
        self._name = name
        self._work = work
        self._resting: deque[asyncio.Future[None]] = deque()
        self._working = 0
        self._waking = False
        self._quiet = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether any worker is busy."""
        return self._working > 0

    @property
    def working(self) -> int:
        """The number of busy workers."""
        return self._working

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """Return the workers, each with its name; the caller runs them as tasks."""
        return self._more(self.size)

    def resize(self, size: int) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """Change the number of workers. A surplus ends after the calls that run.

        Returns:
            Additional workers, each with its name; the caller runs them as tasks.
        """
        missing = size - self.size
        self.size = size
        stay = min(max(missing, 0), self.surplus)
        self.surplus += max(-missing, 0) - stay
        if self.surplus:
            self.wake()
        return self._more(max(missing, 0) - stay)

    def _more(self, count: int) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        for _ in range(count):
            self._numbered += 1
            yield f"{self._name} worker {self._numbered}", self._run()

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
        """Return once no worker is busy."""
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
                # The work has swallowed the cancellation; there will be no second one.
                return
            if self.surplus:
                self.surplus -= 1
                # What waits is for another one, and so is the rest of the surplus.
                self.wake()
                return
            await self._rest()

    async def _rest(self) -> None:
        """Return when woken; `wake` counts the worker as busy."""
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


class Room:
    """Limits the number of items that one reader receives, before they are handled.

    Args:
        size: The largest number of items.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._freed = asyncio.Event()

    async def take(self) -> None:
        """Wait until there is room for another item, and take it."""
        while self._taken >= self._size:
            self._freed.clear()
            await self._freed.wait()
        self._taken += 1

    def free(self) -> None:
        """Free the room of an item."""
        self._taken -= 1
        self._freed.set()

    def resize(self, size: int) -> None:
        """Change the largest number of items."""
        self._size = size
        self._freed.set()


T = TypeVar("T")


class Batching(Generic[T]):
    """Items that wait to be handled together.

    A batch is ready when it is full, or when its first item has waited for the interval. A batch
    that no worker takes yet grows until it is full.

    Args:
        size: Items of a full batch.
        interval: Seconds that the first item of a batch waits for others.
        ready: Called when a batch may be ready.
    """

    def __init__(self, size: int, interval: float, ready: Callable[[], None]) -> None:
        self._size = size
        self._interval = interval
        self._on_ready = ready
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[float, T]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._released = 0

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Return the items that wait, the oldest first."""
        return (item for _, item in self._items)

    def add(self, item: T) -> None:
        """Add an item."""
        self._items.append((self._loop.time(), item))
        if len(self._items) >= self._size:
            self._on_ready()
        elif self._timer is None:
            self._arm()

    def take(self) -> list[T]:
        """Return the next batch; empty while none is ready."""
        items = self._items
        early = self._flushing or self._released > 0
        if not items or not (early or len(items) >= self._size or self._due()):
            return []
        count = min(self._size, len(items))
        self._released = max(self._released - count, 0)
        batch = [items.popleft()[1] for _ in range(count)]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if items:
            self._arm()
        return batch

    def release(self) -> None:
        """Make what waits now ready, regardless of its age."""
        self._released = len(self._items)
        if self._items:
            self._on_ready()

    def flush(self) -> None:
        """Make what waits ready, and all that is added later."""
        self._flushing = True
        self._on_ready()

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Keep only the wanted items, with their age."""
        self._items = deque(each for each in self._items if wanted(each[1]))

    def clear(self) -> list[T]:
        """Remove and return everything that is in no batch yet."""
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
            self._on_ready()
        else:
            # The timer was that of an item which was removed.
            self._arm()
