"""Whose turn it is: consumers of one queue, by priority and one after the other."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Taker(Protocol):
    """Something that takes messages while it has room for them."""

    priority: int

    def ready(self) -> bool:
        """Whether it takes one more message now."""


T = TypeVar("T", bound=Taker)


class Turns(Generic[T]):
    """The line of those who wait for a message.

    Who is found not ready leaves the line. Whoever makes a taker ready again has to call `rejoin`:
    it then stands at the end of those with its priority, as in RabbitMQ.

    Args:
        single_active: Only the first one gets messages, until it goes.
    """

    __slots__ = ("_active", "_line", "_members", "_resting", "_single_active")

    def __init__(self, *, single_active: bool) -> None:
        self._single_active = single_active
        self._active: T | None = None
        self._members: list[T] = []
        self._line: list[T] = []
        self._resting: list[T] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    def add(self, taker: T) -> None:
        """Let a taker join at the end of those with its priority."""
        self._members.append(taker)
        self._join(taker)
        if self._active is None:
            self._active = taker

    def remove(self, taker: T) -> None:
        """Let a taker go."""
        for group in (self._members, self._line, self._resting):
            if taker in group:
                group.remove(taker)
        if self._active is taker:
            waiting = self._line + self._resting
            self._active = waiting[0] if waiting else None

    def clear(self) -> list[T]:
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

    def next(self) -> T | None:
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

    def _join(self, taker: T) -> None:
        line = self._line
        if not line:
            line.append(taker)
        else:
            line.insert(bisect_right(line, -taker.priority, key=lambda each: -each.priority), taker)
