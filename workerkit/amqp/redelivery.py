"""Messages whose handlers take longer than the broker waits for an acknowledgement.

After its `consumer_timeout` (30 minutes by default) RabbitMQ requeues the message and delivers it
again. It closes the channel before that; from 4.3 on it cancels the consumer, and has the timeout
on quorum queues only. RabbitMQ does not count this, so workerkit does.
"""

import logging
from collections import OrderedDict
from typing import Any

from workerkit.amqp.message import AMQPMessage
from workerkit.delivery import Action, Outcome
from workerkit.errors import HandlerTimeout

log = logging.getLogger(__name__)

TRIES = 3
_REMEMBERED = 1_000
_SLACK, _SLACK_SHARE, _SUSPECT_SHARE = 1.0, 0.1, 0.5


class Overdue:
    """Counts, in this process, how often each message was taken away from its handler.

    Args:
        consumer: Its name.
        seconds: The broker's `consumer_timeout`, as the settings have it.
    """

    def __init__(self, consumer: str, seconds: float) -> None:
        self._consumer = consumer
        self._seconds = seconds
        self._counts: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def is_due(self, seconds: float, *, suspect: bool = False) -> bool:
        """Whether the consumer timeout may have expired, when a handler has run for some seconds.

        The broker counts from the time when it sent the message, which then waited for a worker. So
        its time is ahead of ours, and from 4.3 on the timeout is exact.

        Args:
            suspect: The broker has closed the channel or cancelled the consumer, and this is its
                oldest unacknowledged message.
        """
        slack = (
            _SUSPECT_SHARE * self._seconds if suspect else min(_SLACK, _SLACK_SHARE * self._seconds)
        )
        return seconds >= self._seconds - slack

    def note(self, message: AMQPMessage[Any], seconds: float, *, suspect: bool = False) -> None:
        """A channel was lost, and the handler of one of its messages ran for so many seconds."""
        if not self.is_due(seconds, suspect=suspect):
            return
        key = message.fingerprint
        self._counts[key] = self._counts.pop(key, 0) + 1
        while len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        log.error(
            "handler takes longer than the broker's consumer_timeout: its message comes again",
            extra={
                "consumer": self._consumer,
                "delivery": str(message),
                "seconds": round(seconds, 1),
                "consumer_timeout": self._seconds,
                "times": self._counts[key],
            },
        )

    def given_up(self, message: AMQPMessage[Any]) -> Outcome | None:
        """What becomes of a message that was taken away too often; None for all others.

        Args:
            message: One that is redelivered.
        """
        if not self._counts or self._counts.get(message.fingerprint, 0) < TRIES:
            return None
        text = f"took longer than the broker's {self._seconds:g} s, {TRIES} times"
        return Outcome(Action.DEAD_LETTER, HandlerTimeout(f"{self._consumer}: handle {text}"))
