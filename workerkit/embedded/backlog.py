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

_TURNS = 3


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
        return self._next().head()

    def pop(self) -> T:
        """Take the next item. There has to be one."""
        item = self._next().pop()
        self._size -= 1
        return item

    def clear(self) -> None:
        """Forget all items."""
        self._lanes = {0: _Lane()}
        self._size = 0

    def _next(self) -> _Lane[T]:
        """Return the lane that the next message is taken from."""
        for lane in self._lanes.values():
            if lane:
                return lane
        raise IndexError("an empty backlog")

    def _lane(self, priority: int) -> _Lane[T]:
        lane = self._lanes.get(priority)
        if lane is None:
            self._lanes[priority] = lane = _Lane()
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        return lane


class ReturnsLast(Backlog[T]):
    """The order of RabbitMQ 3.10 without a delivery limit: requeued messages are last."""

    __slots__ = ()

    def restore(self, item: T) -> None:
        self.add(item)


class ReturnsFirst(Backlog[T]):
    """The order of other quorum queues: requeued messages are first, in the order of requeueing."""

    __slots__ = ("_returned",)

    def __init__(self) -> None:
        super().__init__()
        self._returned: deque[T] = deque()

    def __iter__(self) -> Iterator[T]:
        yield from self._returned
        yield from super().__iter__()

    def restore(self, item: T) -> None:
        self._returned.append(item)
        self._size += 1

    def head(self) -> T:
        return self._returned[0] if self._returned else super().head()

    def pop(self) -> T:
        if not self._returned:
            return super().pop()
        self._size -= 1
        return self._returned.popleft()

    def clear(self) -> None:
        super().clear()
        self._returned.clear()


class ReturnsFirstInTurns(ReturnsFirst[T]):
    """The order of RabbitMQ 4.0: every third other message may have normal priority, if older."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def __iter__(self) -> Iterator[T]:
        ahead: ReturnsFirstInTurns[T] = ReturnsFirstInTurns()
        ahead._turn, ahead._size = self._turn, self._size
        ahead._returned.extend(self._returned)
        for lane in self._lanes.values():
            for item in lane:
                ahead._lane(item.priority).fresh.append(item)
        while len(ahead):
            yield ahead.pop()

    def pop(self) -> T:
        returned = bool(self._returned)
        item = super().pop()
        if not returned:
            self._turn = (self._turn + 1) % _TURNS
        return item

    def _next(self) -> _Lane[T]:
        first, normal = super()._next(), self._lanes[0]
        waits = normal and self._turn == _TURNS - 1
        return normal if waits and normal.head().position < first.head().position else first
