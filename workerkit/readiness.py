"""Whether a process should be given work, and what stands against it. No I/O, no clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workerkit.health import Health


@dataclass(slots=True)
class Readiness:
    """What is known of a whole process; the process keeps it up to date.

    Attributes:
        health: How each consumer is doing.
        started: Everything was begun that has to be.
        draining: It takes nothing new any more.
        crashed: It is about to end because something of ours failed.
        blocked: Says to which connections nothing can be published, because the broker blocks
            publishers.
    """

    health: list[Health] = field(default_factory=list)
    started: bool = False
    draining: bool = False
    crashed: bool = False
    blocked: Callable[[], Sequence[str]] = field(default=lambda: (), repr=False)

    @property
    def ready(self) -> bool:
        """Whether nothing stands against it."""
        return not self.obstacles()

    @property
    def was_ready(self) -> bool:
        """Whether every consumer was ready at least once."""
        return self.started and all(each.was_ready for each in self.health)

    def obstacles(self) -> list[str]:
        """Why it should be given no work now, one sentence each; none if it should."""
        found = []
        if self.crashed:
            found.append("a task failed")
        if self.draining:
            found.append("stopping")
        elif not self.started:
            found.append("starting")
        found += [
            f"{each.consumer}: {each.reason or each.state}"
            for each in self.health
            if not each.is_ready
        ]
        found += [f"connection {name}: the broker blocks publishers" for name in self.blocked()]
        return found
