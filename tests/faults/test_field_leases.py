"""FP2. A periodic task with `singleton = True` runs in one of several processes."""

import asyncio
import logging
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.application import running
from tests.client import Client
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import PeriodicTask, Run, Runner
from workerkit.health import Health

LEASE = "workerkit.singleton.tests"


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workerkit")


def task(runs: list[Run], every: float = 0.05, **attributes: Any) -> type[PeriodicTask]:
    """Return a task that records its runs."""

    class Cleanup(PeriodicTask):
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            runs.append(run)

    Cleanup.every = every
    for name, value in attributes.items():
        setattr(Cleanup, name, value)
    return Cleanup


def health(runner: Runner) -> Health:
    """Return the health of the only task."""
    [found] = runner.health
    return found


def _more(runs: list[Run], than: int) -> bool:
    return len(runs) > than


def numbers(*runs: list[Run]) -> list[int]:
    """Return the numbers of these runs, one list after the other."""
    return [run.number for each in runs for run in each]


async def test_fp2_one_of_two_processes_runs_the_task(url: str) -> None:
    """The first has the lease; the second waits, and is ready; numbers and times increase."""
    first: list[Run] = []
    second: list[Run] = []
    async with running(url, task(first)) as leader:
        await eventually(lambda: len(first) >= 3)
        async with running(url, task(second)) as standby:
            seen = len(first)
            await eventually(lambda: len(first) >= seen + 5)
            roles = health(leader).role(), health(standby).role()
            states = health(leader).state, health(standby).state

    assert numbers(first) == sorted({*numbers(first)})
    assert all(a.scheduled < b.scheduled for a, b in pairwise(first))
    assert second == []
    assert roles == ("leader", "standby")
    assert states == ("ready", "ready")


async def test_fp2_without_singleton_every_process_runs_the_task(url: str) -> None:
    """That is the default, and no lease is declared."""
    calls: list[str] = []

    def both(name: str) -> type[PeriodicTask]:
        class Cleanup(PeriodicTask):
            every = 0.05

            async def handle(self) -> None:
                calls.append(name)

        return Cleanup

    async with running(url, both("first")), running(url, both("second")) as runner:
        await eventually(lambda: {*calls} == {"first", "second"})
        role = health(runner).role()

    assert role == ""


async def test_fp2_a_stop_releases_the_lease_immediately(url: str, record_property: Any) -> None:
    """The run ends first. Another process then continues the schedule, with higher numbers."""
    loop = asyncio.get_running_loop()
    ended: list[float] = []
    began: list[float] = []
    first: list[Run] = []
    second: list[Run] = []

    class Cleanup(PeriodicTask):
        every = 0.2
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            first.append(run)
            await asyncio.sleep(0.1)
            ended.append(loop.time())

    class Other(PeriodicTask):
        every = 0.2
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            second.append(run)
            began.append(loop.time())

    leader = running(url, Cleanup)
    await leader.__aenter__()
    async with running(url, Other):
        await eventually(lambda: len(first) > len(ended) > 0)
        await leader.__aexit__(None, None, None)
        await eventually(lambda: second)

    assert len(first) == len(ended)
    assert began[0] >= ended[-1]
    record_property("seconds", began[0] - ended[-1])
    assert began[0] - ended[-1] < 5.0  # 0.1 on an idle machine.
    assert numbers(first, second) == sorted({*numbers(first, second)})
    offset = second[0].scheduled.timestamp() - first[0].scheduled.timestamp()
    assert offset / 0.2 == pytest.approx(round(offset / 0.2), abs=0.01)


async def test_fp2_a_lost_connection_cancels_the_run(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Immediately, with a WARNING; another process continues."""
    begun = asyncio.Event()
    cancelled = asyncio.Event()
    second: list[Run] = []
    first: list[Run] = []

    class Cleanup(PeriodicTask):
        every = 3600.0
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            first.append(run)
            begun.set()
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()

    async with Proxy("127.0.0.1", rabbit.port) as proxy, running(proxy.url(url), Cleanup) as runner:
        await asyncio.wait_for(begun.wait(), 30.0)
        async with running(url, task(second)):
            proxy.refuse()
            proxy.drop()
            await asyncio.wait_for(cancelled.wait(), 30.0)
            await eventually(lambda: second)
            assert health(runner).state == "waiting"
            assert "lost" in health(runner).reason or "connect" in health(runner).reason

    assert numbers(first, second) == sorted({*numbers(first, second)})
    assert len(fields(caplog, "lease lost")) == 1
    assert len(fields(caplog, "lease lost: cancelling the runs in progress")) == 1


async def test_fp2_silence_ends_the_run_before_another_process_begins(
    rabbit: PrivateRabbit, url: str
) -> None:
    """A process without bytes from the broker stops before the broker releases the lease."""
    loop = asyncio.get_running_loop()
    cancelled: list[float] = []
    began: list[float] = []

    class Cleanup(PeriodicTask):
        every = 3600.0
        singleton = "tests"

        async def handle(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.append(loop.time())

    class Other(PeriodicTask):
        every = 0.05
        singleton = "tests"

        async def handle(self) -> None:
            began.append(loop.time())

    short = {"heartbeat": 2}
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        slow = {"default": {"url": proxy.url(url), **short}}
        async with running(url, Cleanup, amqp=slow) as runner:
            await eventually(lambda: health(runner).in_flight() == 1)
            async with running(url, Other, amqp={"default": {"url": url, **short}}):
                proxy.freeze()
                frozen = loop.time()
                await eventually(lambda: began)
                await eventually(lambda: cancelled)
            proxy.drop()
            proxy.thaw()

    assert frozen < cancelled[0] < began[0]


async def test_fp2_foreign_messages_do_no_harm(url: str, client: Client) -> None:
    """Invalid messages in the queue are removed, and a higher number raises the next numbers."""
    runs: list[Run] = []
    async with running(url, task(runs)):
        await eventually(lambda: runs)
        rubbish = [b"", b"\xff", b"[]", b"{}", b'{"number": -1, "scheduled": 0}', b"[" * 5000]
        rubbish += [b'{"number": true, "scheduled": 0}', b'{"number": 1e400, "scheduled": 1}']
        rubbish += [b'{"number": "9", "scheduled": NaN}', b'{"number": 9, "scheduled": NaN}']
        await client.send(LEASE, *rubbish)
        higher = runs[-1].number + 1_000_000
        await client.send(LEASE, b'{"number": %d, "id": "x", "scheduled": 1.0}' % higher)
        await eventually(lambda: runs[-1].number > higher)
        seen = len(runs)
        await eventually(lambda: len(runs) > seen + 3)

    assert numbers(runs) == sorted({*numbers(runs)})


async def test_fp2_numbers_increase_after_the_queue_was_deleted(url: str, client: Client) -> None:
    """It is declared again, and the next number is higher than all before."""
    runs: list[Run] = []
    async with running(url, task(runs)):
        await eventually(lambda: len(runs) >= 3)
        await client.delete(LEASE)
        seen = len(runs)
        await eventually(lambda: len(runs) > seen + 3)

    assert numbers(runs) == sorted({*numbers(runs)})


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fp2_a_queue_that_may_not_be_declared_is_named(
    url: str, client: Client, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """With `declare = never` the task waits for it, and starts once it exists."""
    runs: list[Run] = []
    amqp = {"default": {"url": url, "declare": "never"}}
    async with running(url, task(runs), ready=False, amqp=amqp) as runner:
        await eventually(lambda: health(runner).state == "waiting")
        reason = health(runner).reason
        await client.declare(
            LEASE, x_single_active_consumer=True, x_queue_type=kind, x_max_length=9
        )
        await eventually(lambda: runs)

    assert reason == f"queue {LEASE!r} is missing: declare it"
    assert errors(caplog) == []


async def test_fp2_a_missing_permission_is_named(rabbit: PrivateRabbit, vhost: str) -> None:
    """The health of the task names the permission to grant."""
    # Users belong to the whole broker, which other tests use as well.
    reads, declares = f"reads-{vhost}", f"declares-{vhost}"
    rabbit.add_user(reads, "secret", vhost, configure="^$", write="^$", read=".*")
    runs: list[Run] = []
    async with running(rabbit.url(vhost, reads, "secret"), task(runs), ready=False) as runner:
        await eventually(lambda: "grant" in health(runner).reason)
        first = health(runner).reason
        rabbit.add_user(declares, "secret", vhost, configure=".*", write="workerkit.*", read=".*")
    async with running(rabbit.url(vhost, declares, "secret"), task(runs), ready=False) as runner:
        await eventually(lambda: "grant" in health(runner).reason)
        second = health(runner).reason

    assert f"grant configure on {LEASE!r}" in first
    assert "grant write on 'amq.default'" in second
    assert runs == []


@pytest.mark.parametrize("declare", ["missing", "never"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fp2_a_queue_without_a_single_active_consumer_is_refused(
    url: str, client: Client, kind: str, declare: str
) -> None:
    """All processes would have the lease at the same time."""
    runs: list[Run] = []
    await client.declare(LEASE, x_queue_type=kind)
    amqp = {"default": {"url": url, "declare": declare, "queue_type": kind}}
    async with running(url, task(runs), ready=False, amqp=amqp) as runner:
        await eventually(lambda: "x-single-active-consumer" in health(runner).reason)

    assert runs == []


async def test_fp2_a_blocked_broker_stops_the_runs(
    broker: PrivateRabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a memory alarm no run begins, and health gives the reason; then runs continue."""
    monkeypatch.setattr("workerkit.amqp.lease.RPC_DEADLINE", 2.0)
    runs: list[Run] = []
    async with running(broker.url(), task(runs)) as runner:
        await eventually(lambda: runs)
        await asyncio.to_thread(broker.memory_alarm, True)
        await eventually(lambda: "blocks publishers" in health(runner).reason, 60.0)
        seen = len(runs)
        await asyncio.to_thread(broker.memory_alarm, False)
        await eventually(lambda: len(runs) > seen + 3)
        await eventually(lambda: health(runner).state == "ready")

    assert numbers(runs) == sorted({*numbers(runs)})


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fp2_the_queue_has_the_type_of_the_settings(
    url: str, rabbit: PrivateRabbit, vhost: str, kind: str
) -> None:
    """`QUEUE_TYPE` applies as to other queues; a limit never drops a token."""
    runs: list[Run] = []
    amqp = {"default": {"url": url, "queue_type": kind}}
    for _ in range(3):
        seen = len(runs)
        async with running(url, task(runs), amqp=amqp):
            await eventually(partial(_more, runs, seen + 1))
    await eventually(lambda: rabbit.queues(vhost)[LEASE].ready == 1)

    assert numbers(runs) == sorted({*numbers(runs)})


async def test_fp2_a_long_run_is_not_repeated(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Times during a run are skipped; the lease is renewed."""
    runs: list[Run] = []
    together = [0]
    most = [0]

    class Cleanup(PeriodicTask):
        every = 0.05
        singleton = "tests"

        async def handle(self, run: Run) -> None:
            together[0] += 1
            most[0] = max(most[0], together[0])
            await asyncio.sleep(0.2)
            together[0] -= 1
            runs.append(run)

    async with running(url, Cleanup):
        await eventually(lambda: len(runs) >= 3)

    assert most == [1]
    assert fields(caplog, "previous run still in progress: skipping this one")
