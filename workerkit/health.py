"""How a consumer is doing, and whether the process may still hope. No I/O, no clock."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a consumer stands."""

    STARTING = "starting"
    WAITING = "waiting"
    READY = "ready"
    STOPPING = "stopping"


HOPELESS = 3
"""Refusals after which a consumer that never was ready counts as misconfigured."""


@dataclass(slots=True)
class Health:
    """What is known of one consumer; its wire keeps it up to date.

    Attributes:
        consumer: Its name.
        reason: Why it is not ready; empty when it is.
        was_ready: It was ready at least once in this process.
        refusals: How often in a row the other side refused it by decision, not by accident.
        outside: Whether it needs something outside of this process.
        changed: Called after every change.
    """

    consumer: str
    state: State = State.STARTING
    reason: str = ""
    was_ready: bool = False
    refusals: int = 0
    outside: bool = True
    changed: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def ready(self) -> None:
        """Everything it reads from is delivering."""
        self.state, self.reason = State.READY, ""
        self.was_ready, self.refusals = True, 0
        self.changed()

    def waiting(self, reason: str) -> None:
        """It is not ready, and tries again by itself."""
        self.state, self.reason = State.WAITING, reason
        self.changed()

    def refused(self, reason: str) -> None:
        """As `waiting`, but somebody must change something before it can succeed."""
        self.refusals += 1
        self.waiting(reason)

    def stopping(self) -> None:
        """It takes nothing new any more."""
        self.state, self.reason = State.STOPPING, "stopping"
        self.changed()


def hopeless(all_health: Iterable[Health]) -> list[str]:
    """The reasons to give up the start, none while there is hope.

    There is hope as long as one consumer was ready, or waits for something that may come by
    itself (a broker that is down, a queue that is missing).
    """
    each = [one for one in all_health if one.outside]
    if not each or any(one.was_ready or one.refusals < HOPELESS for one in each):
        return []
    return list(dict.fromkeys(one.reason for one in each))
