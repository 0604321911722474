"""Collect deliveries until they make a batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

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
