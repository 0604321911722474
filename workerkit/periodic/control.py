"""Pause a periodic task, and run it now."""

from workerkit.control import Ability, Control, NotPossible
from workerkit.periodic.timer import ScheduleState, Timer


class PeriodicControl(Control):
    """The controls of one task. While it is paused, runs that are due are skipped."""

    abilities: frozenset[Ability] = frozenset({"pause", "run"})

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._timer.paused

    @property
    def concurrency(self) -> int:
        """The number of runs at the same time."""
        return self._timer.concurrency

    @property
    def schedule_state(self) -> ScheduleState:
        """The last run, and the next one."""
        return self._timer.state

    async def pause(self) -> None:
        """Start no run that is due. A lease is released after the runs in progress."""
        self._timer.pause()

    async def resume(self) -> None:
        """Start runs again when they are due."""
        if self._timer.paused:
            self._timer.resume()

    async def run(self) -> None:
        """Start a run now, also while it is paused; with a lease only while it has that.

        Raises:
            NotHeld: Another process has the lease.
            NotPossible: A run is in progress, or a task with a lease is paused.
        """
        if self.paused and self._timer.has_lease:
            raise NotPossible("a paused task has no lease: resume it, or run it where it is active")
        await self._timer.start_now()
