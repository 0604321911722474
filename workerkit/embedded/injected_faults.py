"""Replies that a test wants to get lost or to come late."""

import re
from dataclasses import dataclass

from pamqp import base, commands

_KINDS: dict[int, type[base.Frame]] = commands.INDEX_MAPPING
# As in the specification: pamqp's `Basic.ConsumeOk` is `basic.consume-ok`.
_METHODS = {re.sub("(?<=[a-z])(?=[A-Z])", "-", kind.name).lower() for kind in _KINDS.values()}


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
        """Wait for the next reply of that name.

        Raises:
            ValueError: AMQP has no such method.
        """
        if fault.name not in _METHODS:
            raise ValueError(f"{fault.name!r} is no method of AMQP, such as 'basic.consume-ok'")
        self._waiting.append(fault)

    def take(self, name: str) -> Fault | None:
        """The fault that waits for a reply of that name; it happens once."""
        for fault in self._waiting:
            if fault.name == name:
                self._waiting.remove(fault)
                return fault
        return None
