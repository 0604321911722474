"""Messages that were handled, and whose acknowledgement could not be sent any more.

Their connection was lost while the handler ran, so the broker delivers them again.
"""

from collections import OrderedDict
from typing import Any

from workerkit.amqp.message import AMQPMessage

_REMEMBERED = 1_000

Place = tuple[str, str]
"""A named connection and a virtual host."""


class Handled:
    """Remembers the last thousand of them in this process, so that none is handled twice."""

    def __init__(self) -> None:
        self._times: OrderedDict[tuple[Place, tuple[str, bytes]], int] = OrderedDict()

    def remember(self, place: Place, message: AMQPMessage[Any]) -> None:
        """A message was handled, and cannot be acknowledged.

        One without an id cannot be told from others: it runs again, rather than another one never.
        """
        if not message.message_id:
            return
        key = place, message.fingerprint
        # Two messages may look the same, and then both come again.
        self._times[key] = self._times.pop(key, 0) + 1
        while len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)

    def recall(self, place: Place, message: AMQPMessage[Any]) -> bool:
        """Whether a redelivered message is one of them; it is forgotten with that."""
        if not self._times:
            return False
        key = place, message.fingerprint
        times = self._times.pop(key, 0)
        if times > 1:
            self._times[key] = times - 1
        return times > 0
