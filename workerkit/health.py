"""The health of consumers, and the readiness of the process that results. No I/O, no clock."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from workerkit.control import Control


class State(StrEnum):
    """The state of a consumer."""

    STARTING = "starting"
    WAITING = "waiting"
    READY = "ready"
    PAUSED = "paused"
    ENDED = "ended"
    STOPPING = "stopping"


MOST_REFUSALS = 3
"""Refusals after which a part that was never ready counts as misconfigured."""


@dataclass(slots=True)
class Part:
    """One source of a consumer; its transport keeps it up to date.

    Attributes:
        reason: Why it is not ready, or has ended; empty when it is ready.
        was_ready: It was ready at least once in this process.
        refusals: The number of deliberate refusals by the other side in a row.
        changed: Called after every change.
        source: The queue or route, if the transport has events whose age matters.
        last_event: `time.monotonic()` when the last one arrived; None before, and if the transport
            does not record it.
    """

    changed: Callable[[], None] = field(default=lambda: None, repr=False)
    state: State = State.STARTING
    reason: str = ""
    was_ready: bool = False
    refusals: int = 0
    source: str = ""
    last_event: float | None = None

    def ready(self) -> None:
        """Set it ready: it delivers."""
        self.was_ready, self.refusals = True, 0
        self._set(State.READY, "")

    def waiting(self, reason: str) -> None:
        """Set it waiting: it is not ready, and connects again by itself."""
        self.refusals = 0
        self._set(State.WAITING, reason)

    def refused(self, reason: str) -> None:
        """Set it waiting for a change by an operator: it was refused."""
        self.refusals += 1
        self._set(State.WAITING, reason)

    def paused(self) -> None:
        """Set it paused by an operator: it receives nothing, and there is no fault.

        It stays paused until `resumed`, whatever becomes of its connection.
        """
        self.was_ready, self.refusals = True, 0
        if self.state not in (State.ENDED, State.STOPPING):
            self._set(State.PAUSED, "paused")

    def resumed(self) -> None:
        """Set it waiting after a pause."""
        if self.state is State.PAUSED:
            self.state = State.WAITING
            self._set(State.WAITING, "resumed, and does not receive yet")

    def ended(self, reason: str) -> None:
        """Set it ended: everything was delivered, and there is no fault."""
        self.was_ready, self.refusals = True, 0
        self._set(State.ENDED, reason)

    def stopping(self) -> None:
        """Set it stopping: it receives nothing new."""
        self._set(State.STOPPING, "stopping")

    def told(self) -> dict[str, Any]:
        """Return what the health page shows of it beside the state of its consumer."""
        return {}

    def _set(self, state: State, reason: str) -> None:
        if self.state is State.PAUSED and state in (State.READY, State.WAITING):
            return
        self.state, self.reason = state, reason
        self.changed()


@dataclass(slots=True)
class Health:
    """The health of one consumer, from that of its parts.

    Attributes:
        consumer: Its name.
        parts: What it reads from.
        outside: Whether it needs something outside of this process.
        in_flight: Returns the number of calls of its `handle` that run.
        role: Returns `leader` or `standby` where only one of several processes runs it; else "".
        control: What an operator may change.
    """

    consumer: str
    parts: list[Part]
    outside: bool = True
    in_flight: Callable[[], int] = field(default=lambda: 0, repr=False)
    role: Callable[[], str] = field(default=lambda: "", repr=False)
    control: Control = field(default_factory=Control, repr=False)

    @property
    def state(self) -> State:
        """Ready only if every part is ready or has ended; ended only if every part has."""
        states = {part.state for part in self.parts}
        for state in (State.STOPPING, State.WAITING, State.STARTING, State.PAUSED):
            if state in states:
                return state
        return State.ENDED if states == {State.ENDED} else State.READY

    @property
    def is_ready(self) -> bool:
        """Whether it delivers what there is, or an operator has paused it.

        A consumer whose streams have ended is ready too.
        """
        return self.state in (State.READY, State.ENDED, State.PAUSED)

    @property
    def reason(self) -> str:
        """Why it is not ready, or which parts have ended; empty when all are ready."""
        return "; ".join(dict.fromkeys(part.reason for part in self.parts if part.reason))

    @property
    def was_ready(self) -> bool:
        """Whether each part was ready at least once."""
        return all(part.was_ready for part in self.parts)


def abort_reasons(all_health: Iterable[Health]) -> list[str]:
    """Return the reasons to abort the start; none while it can still succeed.

    It can as long as any part was ready, or waits for what may recover by itself (a broker that is
    down, a queue that is missing).
    """
    parts = [part for each in all_health if each.outside for part in each.parts]
    if not parts or any(part.was_ready or part.refusals < MOST_REFUSALS for part in parts):
        return []
    return list(dict.fromkeys(part.reason for part in parts))


@dataclass(slots=True)
class Readiness:
    """The readiness of a process, which keeps it up to date.

    Attributes:
        health: The health of each consumer.
        started: Every transport was started.
        draining: It receives nothing new.
        drained_by: Who drains it: it receives nothing new, and does not end; empty if nobody does.
        crashed: It is about to end because a task of ours failed.
        blocked: Returns the connections on which nothing can be published, because the broker
            blocks publishers.
    """

    health: list[Health] = field(default_factory=list)
    started: bool = False
    draining: bool = False
    drained_by: str = ""
    crashed: bool = False
    blocked: Callable[[], Sequence[str]] = field(default=lambda: (), repr=False)

    @property
    def ready(self) -> bool:
        """Whether there is no obstacle."""
        return not self.obstacles()

    @property
    def was_ready(self) -> bool:
        """Whether every consumer was ready at least once."""
        return self.started and all(each.was_ready for each in self.health)

    def obstacles(self) -> list[str]:
        """Return why it should receive no work now, one sentence each."""
        found = []
        if self.crashed:
            found.append("a task failed")
        if self.draining:
            found.append("stopping")
        elif not self.started:
            found.append("starting")
        if self.drained_by:
            found.append(f"draining: {self.drained_by}")
        found += [
            f"{each.consumer}: {each.reason or each.state}"
            for each in self.health
            if not each.is_ready
        ]
        found += [f"connection {name}: the broker blocks publishers" for name in self.blocked()]
        return found
