"""Choose the channel numbers of one connection, and limit the number of its channels.

RabbitMQ closes the connection when a channel is opened with a number above `channel_max`, or with
one that is in use. aiormq takes the number after the highest in use and ignores the limit, so
workerkit chooses the numbers itself.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

HIGHEST = 65_535
_SHARE = 8
_PUBLISHER_CHANNELS = 2
# NOT_ALLOWED - number of channels opened for user 'x' has reached the maximum allowed user limit
# of (10), or of 10 from RabbitMQ 4.3 on. A node may have a limit as well. A client gets to know
# these limits only when they are reached.
_REACHED = re.compile(r"(number of channels opened .*)limit of \(?(\d+)")


class ChannelLimit(NamedTuple):
    """A limit of channels, which may be for several connections together.

    Attributes:
        most: How many channels one connection may open.
        text: The limit with its number, for logs.
    """

    most: int
    text: str


def parse_limit(refusal: str, before: ChannelLimit | None) -> ChannelLimit | None:
    """Parse the limit from the text of a connection.close; None if it has another reason.

    Args:
        before: The limit that was known. If it was reached nevertheless, other connections use
            channels as well, and the result is lower.
    """
    found = _REACHED.search(refusal)
    if found is None:
        return None
    most = int(found[2]) - _PUBLISHER_CHANNELS
    if before is not None:
        most = min(most, before.most - max(1, before.most // _SHARE))
    return ChannelLimit(max(1, most), f"the broker's limit of {found[2]} channels ({refusal})")


class NumberedChannel(Protocol):
    """A channel of aiormq."""

    @property
    def is_closed(self) -> bool:
        """Return whether it is closed, and channel.close or channel.close-ok was sent."""


class ChannelNumbers:
    """The channel numbers of one connection.

    Args:
        channel_max: The highest number that both sides agreed on; 0 if there is no limit.
        used: By number, the channels that are open, or whose close the broker has not confirmed: a
            late reply must not be read as one for the next channel. A live view.
        scratch: Channels to reserve in addition to those of consumers.
    """

    def __init__(self, channel_max: int, used: Mapping[int, Any], scratch: int) -> None:
        self.highest = channel_max or HIGHEST
        self._used = used
        self._assigned: dict[int, NumberedChannel] = {}
        self.scratch = max(1, min(scratch, self.highest // _SHARE))
        self._consumers = 0

    @property
    def max_consumers(self) -> int:
        """Return how many consumers may have a channel at the same time."""
        return max(1, self.highest - self.scratch)

    def free(self) -> int | None:
        """Return the lowest free number; None if all are in use."""
        for number in range(1, self.highest + 1):
            if number in self._used:
                continue
            # A channel that the broker has closed is not in use, but aiormq may not have sent
            # channel.close-ok yet. It must be sent before the channel.open with this number.
            assigned = self._assigned.get(number)
            if assigned is None or assigned.is_closed:
                return number
        return None

    def assign(self, number: int) -> None:
        """Note that a channel with this number was opened, or may have been."""
        if (channel := self._used.get(number)) is not None:
            self._assigned[number] = channel

    def reserve_consumer(self) -> bool:
        """Reserve a channel for a consumer; False if the limit is reached."""
        if self._consumers >= self.max_consumers:
            return False
        self._consumers += 1
        return True

    def release_consumer(self) -> None:
        """Release the channel of a consumer."""
        self._consumers -= 1
