"""FP2. A periodic task with `singleton = True` runs in one process of all."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import DeclarationError, PeriodicTask, Run, Runner

LEASE = "workerkit.singleton.tests"


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workerkit")


def task(runs: list[Run], every: float = 0.05, **attributes: Any) -> type[PeriodicTask]:
    """A task that notes its runs."""

    class Cleanup(PeriodicTask):
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            runs.append(run)

    Cleanup.every = every
    for name, value in attributes.items():
        setattr(Cleanup, name, value)
    return Cleanup


def role(runner: Runner) -> str:
    """Of the only task."""
    [health] = runner.health
    return health.role()


async def test_fp2_one_of_two_processes_runs_the_task(url: str) -> None:
    """The first has the lease; the second waits, ready; numbers and times grow."""
    first: list[Run] = []
    second: list[Run] = []
    async with running(url, task(first)) as leader:
        await eventually(lambda: len(first) >= 3)
        async with running(url, task(second)) as standby:
            seen = len(first)
            await eventually(lambda: len(first) >= seen + 5)
            roles = role(leader), role(standby)

    numbers = [run.number for run in first]
    assert numbers == sorted(set(numbers))
    assert first == sorted(first, key=lambda run: run.scheduled)
    assert second == []
    assert roles == ("leader", "standby")


async def test_fp2_a_clean_stop_hands_the_task_over_at_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next process goes on with higher numbers, on the same grid, and well within a second."""
    loop = asyncio.get_running_loop()
    first: list[Run] = []
    second: list[Run] = []
    async with running(url, task(second)) as standby:
        await eventually(lambda: second)
        async with running(url, task(first, every=0.2)) as other:
            assert role(other) == "standby"
            pass
    async with running(url, task(first, every=0.2)):
        await eventually(lambda: first)
        async with running(url, task(second, every=0.2)) as standby:
            before = len(second)
            await eventually(lambda: role(standby) == "standby")
            assert len(second) == before
