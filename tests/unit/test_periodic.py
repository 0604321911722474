"""Periodic tasks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from dependency_injector import providers

from tests.application import Recorder, container_of, package_of
from tests.waiting import eventually
from workerkit import (
    Consumer,
    DeclarationError,
    HandlerTimeout,
    PeriodicTask,
    Retry,
    RetryPolicy,
    Runner,
)

NOWHERE = "amqp://127.0.0.1:1"


@asynccontextmanager
async def running(
    task: type[Consumer], recorder: Recorder | None = None, **provided: object
) -> AsyncIterator[Runner]:
    container = container_of(NOWHERE, recorder)
    for name, value in provided.items():
        container.set_provider(name, providers.Object(value))
    async with Runner(container, packages=[package_of(task)]).running() as runner:
        yield runner


async def test_a_task_is_stopping_while_the_process_stops() -> None:
    """While a run is in progress at the stop, no other run starts, and the health reports it."""
    states: list[str] = []
    running_now, asked = asyncio.Event(), asyncio.Event()

    class Slow(PeriodicTask):
        every = 100.0

        async def handle(self) -> None:
            running_now.set()
            await asked.wait()
            await asyncio.sleep(0.05)
            [health] = runner.health
            states.append(str(health.state))

    async with running(Slow) as runner:
        await asyncio.wait_for(running_now.wait(), 5.0)
        asked.set()

    assert states == ["stopping"]


async def test_every_runs_at_the_start_and_then_at_the_interval() -> None:
    """The first run is at the start. The duration of a run does not delay the next one."""
    loop = asyncio.get_running_loop()
    times: list[float] = []

    class Often(PeriodicTask):
        every = 0.1

        async def handle(self) -> None:
            times.append(loop.time())
            await asyncio.sleep(0.06)

    began = loop.time()
    async with running(Often) as runner:
        # A busy machine leaves points out; shifted by the calls, no two would ever be so close.
        await eventually(
            lambda: len(times) >= 6 and min(b - a for a, b in pairwise(times)) < 0.15, 30.0
        )
        ready = runner.ready

    assert ready
    assert times[5] - began >= 0.49


async def test_a_failed_run_is_retried() -> None:
    """By the policy; the task then continues as scheduled."""
    calls: list[int] = []
    recorder = Recorder()

    class Failing(PeriodicTask):
        every = 3600.0
        retry = RetryPolicy(delays=(0, 0.05), jitter=0)

        async def handle(self) -> None:
            calls.append(len(calls))
            raise KeyError("no")

    async with running(Failing, recorder):
        await eventually(lambda: recorder.actions == ["retry", "retry", "reject"])

    assert len(calls) == 3
    assert [each.delivery.attempt for each in recorder.settled[-1:]] == [3]


async def test_f5_a_stop_does_not_wait_for_a_retry() -> None:
    """A run that waits for a retry is not retried."""
    loop = asyncio.get_running_loop()
    recorder = Recorder()

    class Failing(PeriodicTask):
        every = 3600.0

        async def handle(self) -> None:
            raise Retry(after=3600)

    async with running(Failing, recorder):
        await eventually(lambda: recorder.settled)
        began = loop.time()

    assert loop.time() - began < 4.0
    assert recorder.actions == ["retry"]


async def test_runs_do_not_overlap() -> None:
    """A run that is due while another one is in progress is skipped."""
    running_now = Counter[str]()
    most: list[int] = []

    class Slow(PeriodicTask):
        every = 0.01

        async def handle(self) -> None:
            running_now["x"] += 1
            most.append(running_now["x"])
            await asyncio.sleep(0.035)
            running_now["x"] -= 1

    async with running(Slow):
        await eventually(lambda: len(most) >= 3)

    assert set(most) == {1}


async def test_runs_overlap_with_a_higher_concurrency() -> None:
    """With a concurrency of 3 there are three runs at the same time, and never a fourth."""
    running_now = Counter[str]()
    most: list[int] = []

    class Slow(PeriodicTask):
        every = 0.01
        concurrency = 3

        async def handle(self) -> None:
            running_now["x"] += 1
            most.append(running_now["x"])
            await asyncio.sleep(0.1)
            running_now["x"] -= 1

    async with running(Slow):
        await eventually(lambda: len(most) >= 6 and max(most) >= 3)

    assert max(most) == 3


async def test_a_failure_does_not_end_the_task(caplog: pytest.LogCaptureFixture) -> None:
    """A run that raises or times out is recorded, and the next one starts."""
    recorder = Recorder()
    calls: list[int] = []

    class Broken(PeriodicTask):
        every = 0.03
        timeout = 0.02

        async def handle(self) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise KeyError("x")
            if len(calls) == 2:
                await asyncio.Event().wait()

    async with running(Broken, recorder):
        await eventually(lambda: len(recorder.settled) >= 3)

    errors = [type(each.outcome.error) for each in recorder.settled[:3]]
    assert errors == [KeyError, HandlerTimeout, type(None)]
    assert recorder.actions[:3] == ["reject", "reject", "ack"]


async def test_parameters_come_from_the_container() -> None:
    """Every parameter of handle is a provider."""
    seen: list[int] = []

    class Uses(PeriodicTask):
        every = 60.0

        async def handle(self, number: int, other: str = "default") -> None:
            seen.append(number)
            assert other == "default"

    async with running(Uses, number=7):
        await eventually(lambda: seen)

    assert seen == [7]


async def test_a_stop_waits_for_a_run_in_progress() -> None:
    """A run may finish, like the handler of a message."""
    done: list[bool] = []
    began = asyncio.Event()

    class Slow(PeriodicTask):
        every = 60.0

        async def handle(self) -> None:
            began.set()
            await asyncio.sleep(0.1)
            done.append(True)

    async with running(Slow):
        await began.wait()

    assert done == [True]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "set either every or cron; found neither"),
        ({"every": 1.0, "cron": "* * * * *"}, "set either every or cron; found both"),
        ({"every": 0}, "option 'every' is 0"),
        ({"cron": "sometimes"}, "write five fields: minute"),
        ({"cron": "* * * * *", "timezone": "Mars"}, "unknown time zone"),
    ],
)
async def test_an_invalid_schedule(options: dict[str, object], text: str) -> None:
    """The error is reported before anything starts."""

    async def handle(self: object) -> None: ...

    task = type("Odd", (PeriodicTask,), {**options, "handle": handle})

    with pytest.raises(DeclarationError, match=text):
        async with running(task):
            pass
