"""taskiq with taskiq-aio-pika, with a worker process of its own, on the embedded broker."""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

from tests.clients.application import ROOT, imported, variables
from tests.clients.broker_process import BrokerProcess
from tests.command import Application, process
from tests.waiting import eventually

_MODULE = "tests.clients.taskiq_app"


@asynccontextmanager
async def tasks(shop: Mapping[str, str]) -> AsyncIterator[ModuleType]:
    """Import the application anew, as a producer; close its connections at the end."""
    module = imported(_MODULE, shop)
    await module.broker.startup()
    try:
        yield module
    finally:
        await module.broker.shutdown()


@asynccontextmanager
async def worker(shop: Mapping[str, str]) -> AsyncIterator[Application]:
    """Run a worker of taskiq inside the block."""
    start = (sys.executable, "-m", "taskiq", "worker", f"{_MODULE}:broker")
    command = (*start, "--workers", "1", "--max-threadpool-threads", "1")
    async with process(*command, cwd=ROOT, **shop) as running:
        await running.says("Listening started.")
        yield running


async def test_a_worker_runs_tasks_and_their_retries(
    tmp_path: Path, url: str, name: str, journal: Callable[[], list[str]]
) -> None:
    """A delayed task and a retry wait in the delay queue, until their expiration."""
    shop = variables(tmp_path, url, name)
    async with tasks(shop) as module, worker(shop) as running:
        await module.add.kicker().with_labels(priority=5).kiq(1, 2)
        await module.add.kicker().with_labels(delay=0.05).kiq(3, 4)
        await module.flaky.kiq("once")
        expected = {"add 3", "add 7", "flaky once 0", "flaky once 1"}
        await eventually(lambda: {*journal()} == expected, what=repr(running))


async def test_a_worker_reconnects_after_the_broker_closed_the_connection(
    tmp_path: Path, own_broker: BrokerProcess, name: str, journal: Callable[[], list[str]]
) -> None:
    """aio-pika restores what it has declared."""
    shop = variables(tmp_path, own_broker.url, name)
    async with worker(shop) as running:
        own_broker.restart()
        async with tasks(shop) as module:
            await module.add.kiq(1, 2)
        await eventually(lambda: journal() == ["add 3"], what=repr(running))
