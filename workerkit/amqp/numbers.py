"""Channel numbers of one connection: which are free, and how many there may be.

RabbitMQ closes a connection over a channel above `channel_max`, and over one whose number is in
use. aiormq picks the number above the highest in use, and does not know of a limit: so numbers are
picked here.
"""

from collections.abc import Mapping
from typing import Any, Protocol

HIGHEST = 65_535
_SHARE = 8


class Numbered(Protocol):
    """A channel, as far as it matters here."""

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, and what has to be sent for that was sent."""


class Numbers:
    """The numbers of one connection.

    Args:
        channel_max: The highest number that both sides agreed on; 0 where there is no limit.
        used: By number, channels that are open or whose closing the broker has yet to confirm: a
            late reply would be taken for that of the next channel. It changes by itself.
        scratch: Channels to keep room for beside those of consumers.
    """

    def __init__(self, channel_max: int, used: Mapping[int, Any], scratch: int) -> None:
        self.highest = channel_max or HIGHEST
        self._used = used
        self._given: dict[int, Numbered] = {}
        self.scratch = max(1, min(scratch, self.highest // _SHARE))
        self._consumers = 0

    @property
    def room(self) -> int:
        """How many consumers may have a channel at the same time."""
        return max(1, self.highest - self.scratch)

    def free(self) -> int | None:
        """The lowest number that is free; None if none is."""
        for number in range(1, self.highest + 1):
            if number in self._used:
                continue
            # One that the broker has closed is not in use, and may have yet to confirm that: the
            # confirmation must not be overtaken.
            given = self._given.get(number)
            if given is None or given.is_closed:
                return number
        return None

    def give(self, number: int) -> None:
        """A channel with that number was opened, or may have been."""
        if (channel := self._used.get(number)) is not None:
            self._given[number] = channel

    def take_room(self) -> bool:
        """Count a channel of a consumer, if there is room for it."""
        if self._consumers >= self.room:
            return False
        self._consumers += 1
        return True

    def leave_room(self) -> None:
        """A channel of a consumer is closed."""
        self._consumers -= 1
