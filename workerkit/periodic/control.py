"""Pause a periodic task, and run it now."""

from typing import ClassVar

from workerkit.control import Ability, Control
from workerkit.health import Part
from workerkit.periodic.timer import ScheduleState, Timer


class PeriodicControl(Control):
    """The controls of one task. While it is paused, runs that are due are skipped."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({"pause", "run"})

    def __init__(self, timer: Timer, part: Part) -> None:
        self._timer = timer
        self._part = part

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
        """Start no run that is due. A lease stays where it is."""
        self._timer.paused = True
        self._part.paused()

    async def resume(self) -> None:
        """Start runs again when they are due."""
        if self._timer.paused:
            self._timer.paused = False
            self._part.ready()

    async def run(self) -> None:
        """Start a run now, also while it is paused.

        Raises:
            NotHeld: Another process has the lease.
        """
        await self._timer.start_now()
