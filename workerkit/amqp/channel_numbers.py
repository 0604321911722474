"""Channel numbers of one connection: which are free, and how many there may be.

RabbitMQ closes a connection over a channel above `channel_max`, and over one whose number is in
use. aiormq picks the number above the highest in use, and does not know of a limit: so numbers are
picked here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

HIGHEST = 65_535
_SHARE = 8
_PUBLISHER_CHANNELS = 2
# NOT_ALLOWED - number of channels opened for user 'x' has reached the maximum allowed user limit
# of (10), or of 10 from RabbitMQ 4.3 on. There is another one for a node. Neither is known before
# it is reached.
_REACHED = re.compile(r"(number of channels opened .*)limit of \(?(\d+)")


class ChannelLimit(NamedTuple):
    """A limit of channels for more than one connection.

    Attributes:
        most: How many of them one connection may take.
        text: The limit, with its number, for people.
    """

    most: int
    text: str


def parse_limit(refusal: str, before: ChannelLimit | None) -> ChannelLimit | None:
    """The limit over which the broker closed a connection; None if it did so over something else.

    Args:
        before: The limit that was known. It leaves too much if it is reached all the same: other
            connections take channels as well.
    """
    found = _REACHED.search(refusal)
    if found is None:
        return None
    most = int(found[2]) - _PUBLISHER_CHANNELS
    if before is not None:
        most = min(most, before.most - max(1, before.most // _SHARE))
    return ChannelLimit(max(1, most), f"the broker's limit of {found[2]} channels ({refusal})")


class NumberedChannel(Protocol):
    """A channel, as far as it matters here."""

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, and what has to be sent for that was sent."""


class ChannelNumbers:
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
        self._assigned: dict[int, NumberedChannel] = {}
        self.scratch = max(1, min(scratch, self.highest // _SHARE))
        self._consumers = 0

    @property
    def max_consumers(self) -> int:
        """How many consumers may have a channel at the same time."""
        return max(1, self.highest - self.scratch)

    def free(self) -> int | None:
        """The lowest number that is free; None if none is."""
        for number in range(1, self.highest + 1):
            if number in self._used:
                continue
            # One that the broker has closed is not in use, and may have yet to confirm that: the
            # confirmation must not be overtaken.
            assigned = self._assigned.get(number)
            if assigned is None or assigned.is_closed:
                return number
        return None

    def assign(self, number: int) -> None:
        """A channel with that number was opened, or may have been."""
        if (channel := self._used.get(number)) is not None:
            self._assigned[number] = channel

    def reserve_consumer(self) -> bool:
        """Count a channel of a consumer, if there is room for it."""
        if self._consumers >= self.max_consumers:
            return False
        self._consumers += 1
        return True

    def release_consumer(self) -> None:
        """A channel of a consumer is closed."""
        self._consumers -= 1
