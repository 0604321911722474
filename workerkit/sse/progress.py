"""How far a stream is settled, without a gap. Pure."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from workerkit.sse.event import SSEEvent


class Progress:
    """The places of one stream in their order, until they are settled.

    A place is an event, or any number of things in a row that nobody handles. Places are told
    apart by their number and not by their id: ids may be missing, or come again. Only the ids are
    kept, so events whose neighbour is slow do not pile up in memory.

    Args:
        cursor: Where the stream begins.

    Attributes:
        cursor: Id that was in force at the end of all that is settled without a gap. The stream
            can be resumed behind it, and nothing that is not settled is lost.
    """

    __slots__ = ("_first", "_ids", "_passed", "_settled", "cursor")

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self._first = 0  # Number of the first place that is open.
        self._ids: deque[str] = deque()
        self._settled: set[int] = set()
        self._passed = -1  # Number of the last place that nobody handles.

    def __len__(self) -> int:
        """How many places come after the cursor."""
        return len(self._ids)

    def received(self, events: Sequence[SSEEvent[Any]]) -> None:
        """Events have come, to be settled later; each gets its number."""
        number = self._first + len(self._ids)
        for event in events:
            event.sequence = number
            number += 1
        self._ids.extend([event.id for event in events])

    def passed(self, id: str) -> None:
        """Something has come that nobody handles: it is settled as soon as all before it is."""
        ids = self._ids
        last = self._first + len(ids) - 1
        if not ids:
            self.cursor = id
        elif self._passed == last:
            ids[-1] = id
        else:
            ids.append(id)
            self._passed = last + 1
            self._settled.add(last + 1)

    def settled(self, sequence: int) -> None:
        """The event of this number is settled."""
        if sequence != self._first:
            self._settled.add(sequence)
            return
        self.cursor = self._ids.popleft()
        self._first += 1
        while self._settled and self._first in self._settled:
            self._settled.remove(self._first)
            self.cursor = self._ids.popleft()
            self._first += 1
