"""What an operator may change in a consumer while it runs."""

from typing import Literal

from workerkit.errors import WorkerkitError

Ability = Literal["pause", "concurrency", "prefetch", "run"]


class NotPossible(WorkerkitError):
    """A change that a consumer cannot make, or not now; its text says why."""


class Control:
    """The controls of one consumer; a transport overrides what its kind of consumer can do.

    Each change lasts until the process ends. A call that is cancelled may have changed
    something or not; either way the consumer works, and takes further changes.

    Attributes:
        abilities: What can be changed: the methods that do not raise `NotImplementedError`.
    """

    abilities: frozenset[Ability] = frozenset()

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return False

    @property
    def concurrency(self) -> int | None:
        """The number of calls of `handle` at the same time; None for no limit."""
        return None

    @property
    def prefetch(self) -> int | None:
        """The prefetch count; None where there is none."""
        return None

    async def pause(self) -> None:
        """Receive nothing new. Return when the source sends no more; handlers may still run.

        It stays paused when the connection is lost and opened again.
        """
        raise NotImplementedError

    async def resume(self) -> None:
        """Receive again. Returns at once; the health of the consumer shows when it is ready."""
        raise NotImplementedError

    async def change_concurrency(self, number: int) -> None:
        """Change the number of calls at the same time. Calls that run are not cancelled."""
        raise NotImplementedError

    async def change_prefetch(self, count: int) -> None:
        """Change the prefetch count. Messages that were received stay."""
        raise NotImplementedError

    async def run(self) -> None:
        """Start a run of a periodic task now. Returns when it has started.

        Raises:
            WorkerkitError: It cannot start, with the reason.
        """
        raise NotImplementedError
