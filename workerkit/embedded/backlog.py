"""The messages of a queue that wait, in the order in which they will leave."""

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Placed(Protocol):
    """Something with a place in a queue."""

    position: int
    priority: int


T = TypeVar("T", bound=Placed)


class _Lane(Generic[T]):
    """The messages of one priority.

    What came back is kept apart from what is new: it goes to its old position whatever the order in
    which it comes back, in logarithmic time.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[T] = deque()
        self.returned: list[tuple[int, T]] = []

    def __bool__(self) -> bool:
        return bool(self.fresh or self.returned)

    def __iter__(self) -> Iterator[T]:
        returned = [item for _, item in sorted(self.returned, key=lambda pair: pair[0])]
        return heapq.merge(returned, self.fresh, key=lambda item: item.position)

    def head(self) -> T:
        if self._returned_first():
            return self.returned[0][1]
        return self.fresh[0]

    def pop(self) -> T:
        if self._returned_first():
            return heapq.heappop(self.returned)[1]
        return self.fresh.popleft()

    def _returned_first(self) -> bool:
        if not self.returned:
            return False
        return not self.fresh or self.returned[0][0] < self.fresh[0].position


class Backlog(Generic[T]):
    """Waiting items: the highest priority first, then by position."""

    __slots__ = ("_lanes", "_size")

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane[T]] = {0: _Lane()}  # The highest priority first.
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for lane in self._lanes.values():
            yield from lane

    def add(self, item: T) -> None:
        """Add an item behind all others of its priority."""
        self._lane(item.priority).fresh.append(item)
        self._size += 1

    def restore(self, item: T) -> None:
        """Put an item back to the position that it had."""
        heapq.heappush(self._lane(item.priority).returned, (item.position, item))
        self._size += 1

    def head(self) -> T:
        """The next item, which stays. There has to be one."""
        return next(lane for lane in self._lanes.values() if lane).head()

    def pop(self) -> T:
        """Take the next item. There has to be one."""
        for lane in self._lanes.values():
            if lane:
                self._size -= 1
                return lane.pop()
        raise IndexError("an empty backlog")

    def clear(self) -> None:
        """Forget all items."""
        self._lanes = {0: _Lane()}
        self._size = 0

    def _lane(self, priority: int) -> _Lane[T]:
        lane = self._lanes.get(priority)
        if lane is None:
            self._lanes[priority] = lane = _Lane()
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        return lane
