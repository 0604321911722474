"""Faults that tests inject: replies that are lost or delayed."""

import re
from dataclasses import dataclass

from pamqp import base, commands

_KINDS: dict[int, type[base.Frame]] = commands.INDEX_MAPPING
# As in the specification: pamqp's `Basic.ConsumeOk` is `basic.consume-ok`.
_METHODS = {re.sub("(?<=[a-z])(?=[A-Z])", "-", kind.name).lower() for kind in _KINDS.values()}


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault of one reply.

    Attributes:
        name: The name of the method, such as `basic.consume-ok`.
        delay: Seconds; None if the reply is never sent.
    """

    name: str
    delay: float | None


class InjectedFaults:
    """The faults that wait for their replies, on any connection."""

    def __init__(self) -> None:
        self._waiting: list[InjectedFault] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, fault: InjectedFault) -> None:
        """Apply a fault to the next reply with its name.

        Raises:
            ValueError: AMQP has no such method.
        """
        if fault.name not in _METHODS:
            raise ValueError(f"{fault.name!r} is not a method of AMQP, such as 'basic.consume-ok'")
        self._waiting.append(fault)

    def take(self, name: str) -> InjectedFault | None:
        """Remove and return the fault that waits for a reply *name*, if there is one."""
        for fault in self._waiting:
            if fault.name == name:
                self._waiting.remove(fault)
                return fault
        return None
