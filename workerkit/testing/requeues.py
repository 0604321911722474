"""Detect in a test a delivery that is requeued without end."""

from dataclasses import dataclass
from typing import Any

from workerkit.amqp.message import AMQPMessage
from workerkit.app.assembly import Assembly
from workerkit.delivery import Action, Delivery
from workerkit.describe import describe_error
from workerkit.observe import Settled


@dataclass(slots=True)
class _Count:
    """The number of requeues of one delivery, and the last error."""

    delivery: Delivery
    consumer: str
    times: int = 0
    error: Exception | None = None


class Requeues:
    """Counts the requeues of each delivery.

    A retry counts only without a policy, because then nothing limits the number.

    Attributes:
        last: The last record with an error; None before.
    """

    def __init__(self, assembly: Assembly) -> None:
        options = [each.options for each in assembly.declared]
        self._unlimited = {each.name for each in options if getattr(each, "retry", self) is None}
        self._counts: dict[object, _Count] = {}
        self.last: Settled | None = None

    def note(self, record: Settled) -> None:
        """Count a settled delivery."""
        if record.outcome.error is not None:
            self.last = record
        if record.lost:
            return
        key = record.consumer, _identity(record.delivery)
        counted = record.action is Action.REQUEUE or (
            record.action is Action.RETRY and record.consumer in self._unlimited
        )
        if counted:
            count = self._counts.setdefault(key, _Count(record.delivery, record.consumer))
            count.times += 1
            count.error = record.outcome.error
        elif record.action is not Action.RETRY:
            self._counts.pop(key, None)

    def check(self, limit: int | None) -> None:
        """Raise if a delivery was requeued more often than *limit*; None allows any number.

        Raises:
            AssertionError: Its cause is what the handler raised.
        """
        if limit is None:
            return
        for count in self._counts.values():
            if count.times > limit:
                raise AssertionError(_text(count, limit)) from count.error


def _identity(delivery: Delivery) -> object:
    """Return what stays the same when a delivery is redelivered."""
    # Other deliveries stay the same object, which is kept while it is counted.
    return delivery.fingerprint if isinstance(delivery, AMQPMessage) else id(delivery)


def _text(count: _Count, limit: int) -> str:
    delivery: Any = count.delivery
    if isinstance(delivery, AMQPMessage):
        what = f"message {delivery.message_id!r} of queue {delivery.queue!r}"
    else:
        what = repr(delivery)
    why = (
        f"the handler raised {describe_error(count.error)}"
        if count.error
        else "the handler requested it"
    )
    return (
        f"{count.consumer}: {what} was requeued more than {limit} times, and nothing ends "
        f"that: {why}; set `retry` or `on_exception`, or allow more in the test: max_requeues=None"
    )
