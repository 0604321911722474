"""Replies that a test wants to get lost or to come late."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one reply.

    Attributes:
        name: Of the method: `basic.consume-ok`.
        delay: Seconds by which it comes late; None: it never comes.
    """

    name: str
    delay: float | None


class Faults:
    """Faults that wait for their replies, on any connection."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, fault: Fault) -> None:
        """Wait for the next reply of that name."""
        self._waiting.append(fault)

    def take(self, name: str) -> Fault | None:
        """The fault that waits for a reply of that name; it happens once."""
        for fault in self._waiting:
            if fault.name == name:
                self._waiting.remove(fault)
                return fault
        return None
