"""How far a stream is settled, without a gap. Pure."""

from collections import deque
from typing import Any, Protocol

from workerkit.sse.event import SSEEvent


class _Place(Protocol):
    """Something of the stream: an event, or what stands for those that nobody handles."""

    id: str


class _Passed:
    """Any number of events in a row that nobody handles; the id is that of the last one."""

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


class Progress:
    """The events of one stream in their order, until they are settled.

    Events are told apart by their place in the stream and not by their id: ids may be missing, or
    come again.

    Args:
        cursor: Where the stream begins.

    Attributes:
        cursor: Id that was in force at the end of all that is settled without a gap. The stream
            can be resumed behind it, and nothing that is not settled is lost.
    """

    __slots__ = ("_open", "_settled", "cursor")

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self._open: deque[_Place] = deque()
        self._settled: set[_Place] = set()

    def __len__(self) -> int:
        """How many places come after the cursor."""
        return len(self._open)

    def received(self, event: SSEEvent[Any]) -> None:
        """An event has come, to be settled later."""
        self._open.append(event)

    def passed(self, id: str) -> None:
        """Something has come that nobody handles: it is settled as soon as all before it is."""
        if not self._open:
            self.cursor = id
            return
        last = self._open[-1]
        if isinstance(last, _Passed):
            last.id = id
            return
        passed = _Passed(id)
        self._open.append(passed)
        self._settled.add(passed)

    def settled(self, event: SSEEvent[Any]) -> None:
        """An event that was received is settled."""
        places = self._open
        if places[0] is not event:
            self._settled.add(event)
            return
        self.cursor = places.popleft().id
        while self._settled and places[0] in self._settled:
            place = places.popleft()
            self._settled.remove(place)
            self.cursor = place.id
