"""The order of waiting messages in a queue, and of its consumers."""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Positioned(Protocol):
    """An item with a position in a queue."""

    position: int
    priority: int


T = TypeVar("T", bound=Positioned)

_TURNS = 3


class _Lane(Generic[T]):
    """The messages of one priority.

    Requeued messages are stored apart from new ones. Each returns to its old position, in any order
    of requeueing, in logarithmic time.
    """

    __slots__ = ("new", "returned")

    def __init__(self) -> None:
        self.new: deque[T] = deque()
        self.returned: list[tuple[int, T]] = []

    def __bool__(self) -> bool:
        return bool(self.new or self.returned)

    def __iter__(self) -> Iterator[T]:
        returned = [item for _, item in sorted(self.returned, key=lambda pair: pair[0])]
        return heapq.merge(returned, self.new, key=lambda item: item.position)

    def head(self) -> T:
        if self._returned_first():
            return self.returned[0][1]
        return self.new[0]

    def pop(self) -> T:
        if self._returned_first():
            return heapq.heappop(self.returned)[1]
        return self.new.popleft()

    def _returned_first(self) -> bool:
        if not self.returned:
            return False
        return not self.new or self.returned[0][0] < self.new[0].position


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
        """Add an item after all others of its priority."""
        self._lane(item.priority).new.append(item)
        self._size += 1

    def restore(self, item: T) -> None:
        """Put an item back at its old position."""
        heapq.heappush(self._lane(item.priority).returned, (item.position, item))
        self._size += 1

    def head(self) -> T:
        """Return the next item and keep it. There must be one."""
        return self._next().head()

    def pop(self) -> T:
        """Remove and return the next item. There must be one."""
        item = self._next().pop()
        self._size -= 1
        return item

    def clear(self) -> None:
        """Remove all items."""
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


class RequeuedLast(Backlog[T]):
    """The order of RabbitMQ 3.10 without a delivery limit: requeued messages come last."""

    __slots__ = ()

    def restore(self, item: T) -> None:
        self.add(item)


class RequeuedFirst(Backlog[T]):
    """The order of other quorum queues: requeued messages come first, in order of requeueing."""

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


class RequeuedFirstInTurns(RequeuedFirst[T]):
    """The order of RabbitMQ 4.0: like `RequeuedFirst`, with priorities in turns.

    Every third new message is one of normal priority, if it is older than the others.
    """

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def __iter__(self) -> Iterator[T]:
        ahead: RequeuedFirstInTurns[T] = RequeuedFirstInTurns()
        ahead._turn, ahead._size = self._turn, self._size
        ahead._returned.extend(self._returned)
        for lane in self._lanes.values():
            for item in lane:
                ahead._lane(item.priority).new.append(item)
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


class Subscriber(Protocol):
    """A consumer as `RoundRobin` uses it."""

    priority: int

    def ready(self) -> bool:
        """Return whether it can take one more message now."""


SubscriberT = TypeVar("SubscriberT", bound=Subscriber)


class RoundRobin(Generic[SubscriberT]):
    """Subscribers in turns, those with the highest priority first.

    A subscriber that is not ready loses its turn. When it is ready again, `refresh` puts it last
    among those with its priority, as in RabbitMQ.

    Args:
        single_active: Only the first one gets messages, until it is removed.
    """

    __slots__ = ("_active", "_members", "_not_ready", "_ready", "_single_active")

    def __init__(self, *, single_active: bool) -> None:
        self._single_active = single_active
        self._active: SubscriberT | None = None
        self._members: list[SubscriberT] = []
        self._ready: list[SubscriberT] = []
        self._not_ready: list[SubscriberT] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[SubscriberT]:
        return iter(self._members)

    def add(self, subscriber: SubscriberT) -> None:
        """Add a subscriber after those with its priority."""
        self._members.append(subscriber)
        self._add_ready(subscriber)
        if self._active is None:
            self._active = subscriber

    def remove(self, subscriber: SubscriberT) -> None:
        """Remove a subscriber."""
        for group in (self._members, self._ready, self._not_ready):
            if subscriber in group:
                group.remove(subscriber)
        if self._active is subscriber:
            waiting = self._ready + self._not_ready
            self._active = waiting[0] if waiting else None

    def clear(self) -> list[SubscriberT]:
        """Remove and return all subscribers."""
        members, self._members = self._members, []
        self._ready, self._not_ready, self._active = [], [], None
        return members

    def refresh(self) -> None:
        """Add subscribers that were not ready and are now."""
        if self._not_ready:
            ready = [each for each in self._not_ready if each.ready()]
            self._not_ready = [each for each in self._not_ready if each not in ready]
            for subscriber in ready:
                self._add_ready(subscriber)

    def next(self) -> SubscriberT | None:
        """Return the first subscriber that is ready; it becomes the last with its priority."""
        if self._single_active:
            return self._active if self._active is not None and self._active.ready() else None
        while self._ready:
            subscriber = self._ready.pop(0)
            if subscriber.ready():
                self._add_ready(subscriber)
                return subscriber
            self._not_ready.append(subscriber)
        return None

    def _add_ready(self, subscriber: SubscriberT) -> None:
        ready = self._ready
        if not ready:
            ready.append(subscriber)
        else:
            index = bisect_right(ready, -subscriber.priority, key=lambda each: -each.priority)
            ready.insert(index, subscriber)
