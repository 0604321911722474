"""How often a message was delivered: what each version of RabbitMQ counts, and what it reports.

A copy is counted within its queue. `Message.deliveries` is what a dead letter brings along from the
queues before: nothing in 3.10, some of it in 4.0; in 4.3 the sum, and that counts for the limit.
"""

from enum import Enum, auto
from typing import Protocol

from workerkit.embedded.message import Message
from workerkit.embedded.table import Table, number

_COUNT, _ACQUIRED = "x-delivery-count", "x-acquired-count"


class Settlement(Enum):
    """How a delivery ends."""

    ACK = auto()
    REJECT = auto()  # Dead-lettered or dropped.
    RETURN = auto()  # To its queue, by basic.reject.
    REQUEUE = auto()  # To its queue, by basic.nack or basic.recover.
    LOST = auto()  # To its queue, as its channel is gone.


class Counted(Protocol):
    """A copy of a message in a queue.

    Attributes:
        acquired: How often it came back.
        returns: The same, but only what counts for the delivery limit.
        lost: How often it came back because its channel was gone.
    """

    message: Message
    acquired: int
    returns: int
    lost: int


class Counting(Protocol):
    """What one version counts."""

    def count(self, copy: Counted, settlement: Settlement) -> None:
        """A copy comes back."""

    def total(self, copy: Counted) -> int:
        """What is compared with the delivery limit."""

    def headers(self, copy: Counted, *, got: bool) -> Table:
        """What a delivery from a quorum queue reports; *got* is for basic.get."""

    def redelivered(self, message: Message, *, quorum: bool) -> bool:
        """Whether the first delivery from a queue says that it is not the first."""

    def after_death(self, copy: Counted, reason: str, *, quorum: bool) -> int:
        """What a dead letter takes along."""


class Counting310:
    """Every return counts. basic.get reports a zero, basic.deliver does not."""

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
    """Every return counts; a dead letter brings along rejects and lost channels."""

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
    """basic.nack and basic.recover count apart, and not for the limit; dead letters keep it all."""

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
