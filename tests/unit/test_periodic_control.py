"""Periodic tasks are paused while they run, and started by hand."""

import asyncio
from datetime import UTC, datetime

import pytest

from tests.application import container_of, package_of
from tests.waiting import eventually
from workerkit import PeriodicTask, Runner
from workerkit.control import NotPossible
from workerkit.health import State
from workerkit.periodic.control import PeriodicControl
from workerkit.periodic.timer import ScheduleState

NOWHERE = "amqp://127.0.0.1:1"


def runner_of(task: type[PeriodicTask], **options: object) -> Runner:
    """Return a runner of one task."""
    container = container_of(NOWHERE, consumers={task.__name__: options} if options else {})
    return Runner(container, packages=[package_of(task)])


def control_of(runner: Runner) -> PeriodicControl:
    """Return the control of the only task."""
    control = runner.health[0].control
    assert isinstance(control, PeriodicControl)
    return control


async def test_no_run_starts_during_a_pause() -> None:
    """Runs that are due are skipped; after the pause the schedule continues."""
    runs: list[datetime] = []

    class Often(PeriodicTask):
        every = 0.02

        async def handle(self) -> None:
            runs.append(datetime.now(UTC))

    runner = runner_of(Often)
    async with runner.running():
        await eventually(lambda: len(runs) > 2)
        control = control_of(runner)
        await control.pause()
        await control.pause()
        paused, number = datetime.now(UTC), len(runs)
        assert (runner.health[0].state, runner.ready) == (State.PAUSED, True)
        assert control.schedule_state.next is None
        await eventually(lambda: (datetime.now(UTC) - paused).total_seconds() > 0.2)
        assert len(runs) == number

        await control.resume()
        await control.resume()
        await eventually(lambda: len(runs) > number)
        assert runner.health[0].state.value == "ready"


async def test_paused_at_the_start() -> None:
    """The process is ready, and a run can be started by hand."""
    runs: list[int] = []

    class Often(PeriodicTask):
        every = 0.02

        async def handle(self) -> None:
            runs.append(1)

    runner = runner_of(Often, paused=True)
    async with runner.running():
        await eventually(lambda: runner.ready)
        assert runner.health[0].state is State.PAUSED
        began = datetime.now(UTC)
        await eventually(lambda: (datetime.now(UTC) - began).total_seconds() > 0.1)
        assert runs == []

        await control_of(runner).run()
        await eventually(lambda: runs == [1])


async def test_a_run_by_hand() -> None:
    """It starts at once, and is refused while as many runs are in progress as may be."""
    gate, entered = asyncio.Event(), asyncio.Event()

    class Rare(PeriodicTask):
        cron = "0 0 1 1 *"

        async def handle(self) -> None:
            entered.set()
            await gate.wait()
            raise KeyError("broken")

    runner = runner_of(Rare)
    async with runner.running():
        await eventually(lambda: runner.ready)
        control = control_of(runner)
        await eventually(lambda: control.schedule_state.next is not None)
        before = control.schedule_state
        await control.run()
        await entered.wait()
        with pytest.raises(NotPossible, match=r"^a run of Rare is in progress$"):
            await control.run()
        gate.set()
        await eventually(lambda: control.schedule_state.last is not None)

        after = control.schedule_state
        assert before == ScheduleState("cron 0 0 1 1 *", next=after.next)
        assert after.next is not None
        assert (after.next.month, after.next.tzinfo) == (1, UTC)
        assert after.last is not None
        assert after.last.tzinfo is UTC
        assert (after.last_ok, (after.last_seconds or 0) > 0) == (False, True)
        await control.run()
