"""What a comparison of needs with a broker has found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from workerkit.amqp.comparison import Difference
from workerkit.amqp.needs import Needs

MISSING, DIFFERS, UNKNOWN = 3, 4, 5
"""Exit codes: `apply` creates what is missing; it does not change what differs; something is not
known. The codes 1 and 2 are those of errors."""


class ItemState(StrEnum):
    """What is known about something that is needed."""

    MISSING = "missing"
    PRESENT = "present"
    DIFFERS = "differs"
    UNKNOWN = "unknown"
    AT_RUN_TIME = "at run time"
    CREATED = "created"


@dataclass(frozen=True, slots=True)
class Item:
    """A queue, exchange or binding that is needed, and what the broker has.

    Attributes:
        name: Of the queue or exchange; of a binding that of its queue.
        declared: Its type and arguments; of a binding its exchange, routing key and arguments.
        purpose: What a queue is for: `retries of OrderPlaced`.
        reason: What is wrong with it, or why it is unknown.
        differences: The arguments that differ.
        notes: Policies that change its arguments.
        is_for_copies: Whether it is a queue for retries or dead letters.
    """

    kind: Literal["exchange", "queue", "binding"]
    name: str
    declared: dict[str, Any]
    purpose: str = ""
    state: ItemState = ItemState.PRESENT
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    is_for_copies: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The comparison of one virtual host.

    Attributes:
        address: The broker, without password.
        version: Of RabbitMQ; empty if it states none.
        management: The address of the management API; empty if it was not used.
        without: Why it was not used.
    """

    needs: Needs
    address: str
    version: tuple[int, ...]
    management: str
    without: str
    items: list[Item] = field(default_factory=list)


def exit_code(plans: Iterable[Plan]) -> int:
    """Return 0 if the brokers have all that is needed, or the code of the worst finding."""
    states = {item.state for plan in plans for item in plan.items}
    if ItemState.DIFFERS in states:
        return DIFFERS
    if ItemState.MISSING in states:
        return MISSING
    return UNKNOWN if ItemState.UNKNOWN in states else 0
