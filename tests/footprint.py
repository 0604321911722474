"""The resources of a running application, to compare before and after a failure."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.rabbit import ConsumerState, PrivateRabbit


@dataclass(frozen=True, slots=True)
class Footprint:
    """See `at_most`.

    Attributes:
        tasks: Tasks of the event loop by the coroutine that they run.
        files: Open file descriptors of this process.
        connections: At the broker, to the virtual host.
        channels: ... and on these connections.
        consumers: ... with their prefetch.
    """

    tasks: Counter[str]
    files: int
    connections: int
    channels: int
    consumers: list[ConsumerState]

    def at_most(self, before: "Footprint") -> bool:
        """Return whether nothing was added since *before*, and every consumer is there as it was.

        A channel to publish on may be missing: it is opened again by the next publish.
        """
        assert self.consumers == before.consumers
        assert self.tasks <= before.tasks, self.tasks - before.tasks
        assert (self.files, self.connections) == (before.files, before.connections)
        assert self.channels <= before.channels
        return True

    @classmethod
    def of(cls, rabbit: PrivateRabbit, vhost: str) -> "Footprint":
        """Measure now."""
        coroutines = [task.get_coro() for task in asyncio.all_tasks()]
        return cls(
            Counter(getattr(each, "__qualname__", repr(each)) for each in coroutines),
            len(list(Path("/proc/self/fd").iterdir())),
            rabbit.connections(vhost),
            rabbit.channels(vhost),
            sorted(rabbit.consumers(vhost), key=lambda each: each.queue),
        )
