"""Tasks with a lease are paused in one process, and run in another one."""

import asyncio
from collections import Counter
from datetime import UTC
from typing import Any

import pytest

from tests.application import running
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import PeriodicTask, Run, Runner
from workerkit.amqp.lease_term import NotHeld
from workerkit.control import NotPossible
from workerkit.health import State


def task(runs: Counter[str], process: str, gate: asyncio.Event, every: float = 0.05) -> Any:
    """Return the task as one process has it, with a lease that all share."""

    class Cleanup(PeriodicTask):
        singleton = "shared"

        async def handle(self, run: Run) -> None:
            runs[process] += 1
            await gate.wait()

    Cleanup.every = every
    return Cleanup


def role(runner: Runner) -> str:
    """Return the role of its only task."""
    return runner.health[0].role()


async def test_a_paused_leader_leaves_the_task_to_others(url: str) -> None:
    """The lease is released after the run in progress, and competed for again when resumed."""
    runs: Counter[str] = Counter()
    gate, open_ = asyncio.Event(), asyncio.Event()
    open_.set()
    async with running(url, task(runs, "first", gate)) as first:
        await eventually(lambda: runs["first"] == 1)
        async with running(url, task(runs, "second", open_)) as second:
            await first.health[0].control.pause()
            assert (first.health[0].state, first.ready) == (State.PAUSED, True)
            assert (role(first), role(second)) == ("leader", "standby")
            gate.set()
            await eventually(lambda: runs["second"] > 2)
            assert (role(first), role(second), runs["first"]) == ("standby", "leader", 1)
            assert first.health[0].state is State.PAUSED

            await second.health[0].control.pause()
            await eventually(lambda: role(second) == "standby")
            number = runs["second"]
            await first.health[0].control.resume()
            await eventually(lambda: runs["first"] > 2)
            assert (role(first), str(first.health[0].state)) == ("leader", "ready")
            assert runs["second"] == number


async def test_paused_and_resumed_quickly(url: str) -> None:
    """However far it was, it competes for the lease in the end."""
    runs: Counter[str] = Counter()
    gate = asyncio.Event()
    gate.set()
    async with running(url, task(runs, "one", gate)) as runner:
        control = runner.health[0].control
        for turns in range(40):
            await control.pause()
            for _ in range(turns):
                await asyncio.sleep(0)
            await control.resume()
            for _ in range(turns):
                await asyncio.sleep(0.001)
        before = runs["one"]
        await eventually(lambda: runs["one"] > before)
        assert (role(runner), str(runner.health[0].state)) == ("leader", "ready")


async def test_a_run_by_hand_needs_the_lease(url: str) -> None:
    """Without it, or while it is paused, the reason is told at once."""
    runs: Counter[str] = Counter()
    gate = asyncio.Event()
    gate.set()
    async with running(url, task(runs, "first", gate, 3600.0)) as first:
        await eventually(lambda: role(first) == "leader" and runs["first"] == 1)
        async with running(url, task(runs, "second", gate, 3600.0)) as second:
            standby: Any = second.health[0].control
            async with asyncio.timeout(1.0):
                with pytest.raises(NotHeld, match="another process runs Cleanup"):
                    await standby.run()
            assert standby.schedule_state.next is None

            leader: Any = first.health[0].control
            await leader.run()
            await eventually(lambda: runs["first"] == 2)
            await eventually(lambda: leader.schedule_state.last_ok)
            await eventually(lambda: leader.schedule_state.next is not None)
            assert leader.schedule_state.next.tzinfo is UTC
            await leader.pause()
            with pytest.raises(NotPossible, match="a paused task has no lease"):
                await leader.run()
            assert leader.schedule_state.next is None


async def test_paused_at_the_start_it_takes_no_lease(rabbit: PrivateRabbit, url: str) -> None:
    """Another process runs the task; it is ready all the same, and stops."""
    runs: Counter[str] = Counter()
    gate = asyncio.Event()
    gate.set()
    options = {"cleanup": {"paused": True}}
    async with running(url, task(runs, "first", gate), consumers=options) as first:
        assert first.health[0].state is State.PAUSED
        async with running(url, task(runs, "second", gate)):
            await eventually(lambda: runs["second"] > 1)
        assert runs["first"] == 0
        await first.health[0].control.resume()
        await eventually(lambda: runs["first"] > 1)
