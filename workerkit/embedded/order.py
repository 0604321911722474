"""The messages of a queue that wait, in the order in which they will leave."""

import heapq
from bisect import bisect_right
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


class Taker(Protocol):
    """Something that takes messages while it has room for them."""

    priority: int

    def ready(self) -> bool:
        """Whether it takes one more message now."""


TakerT = TypeVar("TakerT", bound=Taker)


class Turns(Generic[TakerT]):
    """The line of those who wait for a message.

    Who is found not ready leaves the line. Whoever makes a taker ready again has to call `rejoin`:
    it then stands at the end of those with its priority, as in RabbitMQ.

    Args:
        single_active: Only the first one gets messages, until it goes.
    """

    __slots__ = ("_active", "_line", "_members", "_resting", "_single_active")

    def __init__(self, *, single_active: bool) -> None:
        self._single_active = single_active
        self._active: TakerT | None = None
        self._members: list[TakerT] = []
        self._line: list[TakerT] = []
        self._resting: list[TakerT] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[TakerT]:
        return iter(self._members)

    def add(self, taker: TakerT) -> None:
        """Let a taker join at the end of those with its priority."""
        self._members.append(taker)
        self._join(taker)
        if self._active is None:
            self._active = taker

    def remove(self, taker: TakerT) -> None:
        """Let a taker go."""
        for group in (self._members, self._line, self._resting):
            if taker in group:
                group.remove(taker)
        if self._active is taker:
            waiting = self._line + self._resting
            self._active = waiting[0] if waiting else None

    def clear(self) -> list[TakerT]:
        """Let all go; who they were."""
        members, self._members = self._members, []
        self._line, self._resting, self._active = [], [], None
        return members

    def rejoin(self) -> None:
        """Let those join the line again who left it and are ready now."""
        if self._resting:
            ready = [taker for taker in self._resting if taker.ready()]
            self._resting = [taker for taker in self._resting if taker not in ready]
            for taker in ready:
                self._join(taker)

    def next(self) -> TakerT | None:
        """The first one who is ready; it goes to the end of those with its priority."""
        if self._single_active:
            return self._active if self._active is not None and self._active.ready() else None
        while self._line:
            taker = self._line.pop(0)
            if taker.ready():
                self._join(taker)
                return taker
            self._resting.append(taker)
        return None

    def _join(self, taker: TakerT) -> None:
        line = self._line
        if not line:
            line.append(taker)
        else:
            line.insert(bisect_right(line, -taker.priority, key=lambda each: -each.priority), taker)
