"""Celery, with a worker process of its own, on the embedded broker."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

from celery import Celery
from celery.result import AsyncResult
from kombu import Connection

from tests.clients.application import ROOT, imported, variables
from tests.clients.broker_process import BrokerProcess
from tests.command import Application, process
from tests.waiting import eventually

_MODULE = "tests.clients.celery_app"


class Shop:
    """The application as producers see it, and its variables."""

    def __init__(self, module: ModuleType, variables: Mapping[str, str]) -> None:
        self.app: Celery = module.app
        self.module = module
        self.variables = variables


@asynccontextmanager
async def shop(directory: Path, url: str, name: str, kind: str = "classic") -> AsyncIterator[Shop]:
    """Import the application anew, on a broker, and close its connections at the end."""
    given = variables(directory, url, name) | {"QUEUE_TYPE": kind}
    module = imported(_MODULE, given)
    shop = Shop(module, given)
    try:
        yield shop
    finally:
        shop.app.close()


@asynccontextmanager
async def worker(shop: Shop, *arguments: str) -> AsyncIterator[Application]:
    """Run a worker of Celery inside the block."""
    start = (sys.executable, "-m", "celery", "-A", _MODULE, "worker", "--pool", "solo")
    command = (*start, "--loglevel", "INFO", "--hostname", f"worker@{os.getpid()}", *arguments)
    async with process(*command, cwd=ROOT, **shop.variables) as running:
        await running.says("ready.")
        yield running


async def result(call: "AsyncResult[int]") -> int:
    """Wait for the result of a task, which comes through the reply queue."""
    await eventually(call.ready, what="the result")
    value: int = call.get()
    return value


async def test_a_worker_runs_tasks_and_their_retries(
    tmp_path: Path, url: str, name: str, journal: Callable[[], list[str]]
) -> None:
    """Results come back; retries, requeues, rejects and broadcasts do what they promise."""
    async with shop(tmp_path, url, name) as ours, worker(ours, "-E"):
        tasks = ours.module
        assert await result(tasks.add.delay(1, 2)) == 3
        assert await result(tasks.flaky.delay(7, 0.05)) == 7
        tasks.requeued.delay()
        await eventually(lambda: "requeued True" in journal())
        tasks.everywhere.apply_async(queue=f"{name}.all")
        await eventually(lambda: "everywhere" in journal())
        tasks.refuse.apply_async(priority=5)
        with Connection(url) as connection:
            tasks.DEAD(connection.default_channel).declare()
            tasks.refuse.delay()
            queue = connection.SimpleQueue(tasks.DEAD)
            dead = queue.get(timeout=30)

    assert journal()[:4] == ["flaky 7 0", "flaky 7 1", "requeued False", "requeued True"]
    assert dead.headers["task"] == f"{_MODULE}.refuse"
    assert dead.headers["x-death"][0]["reason"] == "rejected"


async def test_a_worker_is_controlled_and_watched(tmp_path: Path, url: str, name: str) -> None:
    """The pidbox answers, and events reach a receiver: fanout, auto-delete and reply queues."""
    async with shop(tmp_path, url, name) as ours:
        seen: list[str] = []
        handlers = {"*": lambda event: seen.append(event["type"])}
        with (
            ours.app.connection_for_read() as ready,
            ours.app.events.Receiver(ready, handlers=handlers).consumer_context() as (events, _, _),
        ):
            async with worker(ours, "-E"):
                answers = ours.app.control.ping(timeout=5.0, limit=1)
                queues = ours.app.control.inspect(timeout=5.0, limit=1).active_queues()
                ours.module.add.delay(1, 2)
                while "task-succeeded" not in seen:
                    events.drain_events(timeout=30.0)

    assert [*answers[0].values()] == [{"ok": "pong"}]
    (active,) = queues.values()
    assert f"{name}.work" in [each["name"] for each in active]
    assert {"worker-online", "task-received", "task-started"} <= {*seen}


async def test_quorum_queues_delay_in_the_broker(
    tmp_path: Path, url: str, name: str, journal: Callable[[], list[str]]
) -> None:
    """With quorum queues Celery declares 28 delay queues, and a retry waits in one of them."""
    async with shop(tmp_path, url, name, "quorum") as ours, worker(ours):
        assert await result(ours.module.flaky.delay(1, 1)) == 1

    assert journal() == ["flaky 1 0", "flaky 1 1"]


async def test_a_worker_reconnects_after_the_broker_closed_the_connection(
    tmp_path: Path, own_broker: BrokerProcess, name: str, journal: Callable[[], list[str]]
) -> None:
    """It declares everything again on a broker that has lost it."""
    async with shop(tmp_path, own_broker.url, name) as ours, worker(ours) as running:
        before = sum("Connected to" in line for line in running.err)
        own_broker.restart()
        await eventually(
            lambda: sum("Connected to" in line for line in running.err) > before, what=repr(running)
        )
        with Connection(own_broker.url) as connection:
            ours.module.everywhere.apply_async(queue=f"{name}.work", connection=connection)
        await eventually(lambda: journal() == ["everywhere"], what=repr(running))
