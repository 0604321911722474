"""Messages that were handled, but whose acknowledgement may not have reached the broker.

Their connection was lost while the handler ran, or before it was certain that the acknowledgement
had arrived. So the broker may deliver them again. The same is true of messages that were moved, to
the queue of a retry or of dead letters.
"""

from collections import OrderedDict
from time import monotonic
from typing import Any

from workerkit.amqp.message import AMQPMessage

_REMEMBERED = 1_000
_IN_DOUBT = 600.0

Place = tuple[str, str]
"""A named connection and a virtual host."""

_Key = tuple[Place, tuple[str, bytes]]


class Handled:
    """Remembers the last thousand of them in this process, so that none is handled twice.

    If it is in doubt whether the acknowledgement has arrived, the message may be gone, and another
    message that looks the same could be taken for it. So all properties are compared as well, and
    the message is remembered for ten minutes only.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[_Key, int] = OrderedDict()
        self._in_doubt: OrderedDict[tuple[_Key, bytes], tuple[int, float]] = OrderedDict()

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

    def add_in_doubt(self, place: Place, message: AMQPMessage[Any]) -> None:
        """Remember a message whose acknowledgement was sent, but may not have arrived.

        A message without an id is not remembered.
        """
        if not message.message_id:
            return
        key = (place, message.fingerprint), message.metadata_digest
        times, _ = self._in_doubt.pop(key, (0, 0.0))
        self._in_doubt[key] = times + 1, monotonic()
        while len(self._in_doubt) > _REMEMBERED:
            self._in_doubt.popitem(last=False)

    def recall(self, place: Place, message: AMQPMessage[Any]) -> bool:
        """Whether a redelivered message is one of them; it is forgotten with that."""
        if not self._times and not self._in_doubt:
            return False
        key = place, message.fingerprint
        times = self._times.pop(key, 0)
        if times > 1:
            self._times[key] = times - 1
        return times > 0 or (bool(self._in_doubt) and self._was_in_doubt(key, message))

    def _was_in_doubt(self, key: _Key, message: AMQPMessage[Any]) -> bool:
        whole = key, message.metadata_digest
        times, since = self._in_doubt.pop(whole, (0, 0.0))
        if times > 1:
            self._in_doubt[whole] = times - 1, since
        return times > 0 and monotonic() - since < _IN_DOUBT
