"""Count deliveries in quorum queues, and report them, as each version of RabbitMQ does.

The counts of a copy belong to its queue. `Message.deliveries` is the count that a dead letter keeps
from earlier queues: nothing in 3.10, a part in 4.0; in 4.3 the sum, which counts toward the limit.
"""

from enum import Enum, auto
from typing import Protocol

from workerkit.embedded.message import Message
from workerkit.embedded.table import Table, number

_COUNT, _ACQUIRED = "x-delivery-count", "x-acquired-count"


class Settlement(Enum):
    """The end of a delivery."""

    ACK = auto()
    REJECT = auto()  # Dead-lettered or dropped.
    RETURN = auto()  # To its queue, by basic.reject.
    REQUEUE = auto()  # To its queue, by basic.nack or basic.recover.
    LOST = auto()  # To its queue, as its channel was closed.


class Counted(Protocol):
    """A copy of a message in a queue.

    Attributes:
        acquired: The number of requeues.
        returns: The requeues that count against the delivery limit.
        lost: The requeues because its channel was closed.
    """

    message: Message
    acquired: int
    returns: int
    lost: int


class Counting(Protocol):
    """The counting of one version."""

    def count(self, copy: Counted, settlement: Settlement) -> None:
        """Count a copy that is requeued."""

    def total(self, copy: Counted) -> int:
        """Return the count that is compared with the delivery limit."""

    def headers(self, copy: Counted, *, got: bool) -> Table:
        """Return the headers of a delivery from a quorum queue; *got* is for basic.get."""

    def redelivered(self, message: Message, *, quorum: bool) -> bool:
        """Return whether the first delivery from a queue has the flag `redelivered`."""

    def after_death(self, copy: Counted, reason: str, *, quorum: bool) -> int:
        """Return the count that a dead letter keeps."""


class Counting310:
    """Every requeue counts. basic.get reports a count of 0, basic.deliver does not."""

    def count(self, copy: Counted, settlement: Settlement) -> None:
        copy.acquired += 1
        copy.returns += 1

    def total(self, copy: Counted) -> int:
        return copy.returns

    def headers(self, copy: Counted, *, got: bool) -> Table:
        return {_COUNT: number(copy.returns)} if copy.returns or got else {}

    def redelivered(self, message: Message, *, quorum: bool) -> bool:
        return False

    def after_death(self, copy: Counted, reason: str, *, quorum: bool) -> int:
        return 0


class Counting40:
    """Every requeue counts; a dead letter keeps the counts of rejects and closed channels."""

    def count(self, copy: Counted, settlement: Settlement) -> None:
        copy.acquired += 1
        copy.returns += 1
        copy.lost += settlement is Settlement.LOST

    def total(self, copy: Counted) -> int:
        return copy.returns

    def headers(self, copy: Counted, *, got: bool) -> Table:
        count = copy.returns or copy.message.deliveries
        return {_COUNT: number(count)} if count else {}

    def redelivered(self, message: Message, *, quorum: bool) -> bool:
        return quorum and message.deliveries > 0

    def after_death(self, copy: Counted, reason: str, *, quorum: bool) -> int:
        more = 1 + copy.lost if quorum and reason == "rejected" else 0
        return copy.message.deliveries + more


class Counting43:
    """basic.nack and basic.recover do not count against the limit; dead letters keep all counts."""

    def count(self, copy: Counted, settlement: Settlement) -> None:
        copy.acquired += 1
        copy.returns += settlement is not Settlement.REQUEUE

    def total(self, copy: Counted) -> int:
        return copy.message.deliveries + copy.returns

    def headers(self, copy: Counted, *, got: bool) -> Table:
        total = self.total(copy)
        counts = {_COUNT: total, _ACQUIRED: copy.acquired or total}
        return {name: number(count) for name, count in counts.items() if count}

    def redelivered(self, message: Message, *, quorum: bool) -> bool:
        return message.deliveries > 0

    def after_death(self, copy: Counted, reason: str, *, quorum: bool) -> int:
        return self.total(copy) + (reason == "rejected")
