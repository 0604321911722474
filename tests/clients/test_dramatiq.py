"""dramatiq, with a worker process of its own, on the embedded broker."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType

import pika

from tests.clients.application import ROOT, imported, variables
from tests.clients.broker_process import BrokerProcess
from tests.command import Application, process
from tests.waiting import eventually

_MODULE = "tests.clients.dramatiq_app"


@contextmanager
def actors(shop: Mapping[str, str]) -> Iterator[ModuleType]:
    """Import the application anew, as a producer; close its connections at the end."""
    module = imported(_MODULE, shop)
    try:
        yield module
    finally:
        module.broker.close()


@asynccontextmanager
async def worker(shop: Mapping[str, str]) -> AsyncIterator[Application]:
    """Run a worker of dramatiq inside the block."""
    command = (sys.executable, "-m", "dramatiq", _MODULE, "--processes", "1", "--threads", "1")
    async with process(*command, cwd=ROOT, **shop) as running:
        await running.says("Worker process is ready for action.")
        yield running


async def test_a_worker_runs_actors_and_their_retries(
    tmp_path: Path, url: str, name: str, journal: Callable[[], list[str]]
) -> None:
    """A retry waits in the queue `.DQ`; what failed too often is in `.XQ`, which has a TTL."""
    shop = variables(tmp_path, url, name)
    with actors(shop) as module:
        async with worker(shop) as running:
            module.add.send(1, 2)
            module.add.send_with_options(args=(3, 4), delay=20, broker_priority=5)
            module.fail.send("always")
            with pika.BlockingConnection(pika.URLParameters(url)) as connection:
                channel = connection.channel()
                dead: list[bytes] = []

                def found() -> bool:
                    _, _, body = channel.basic_get(f"{name}.XQ", auto_ack=True)
                    dead.extend([body] if body else [])
                    return bool(dead)

                await eventually(found, what=repr(running))
                await eventually(lambda: {"add 3", "add 7"} <= {*journal()}, what=repr(running))

    assert b'"always"' in dead[0]
    assert journal().count("fail always") == 3


async def test_a_producer_declares_a_queue_again_that_is_gone(
    tmp_path: Path, url: str, name: str
) -> None:
    """The broker returns the message, as it is mandatory; dramatiq declares, and tries again."""
    with (
        actors(variables(tmp_path, url, name)) as module,
        pika.BlockingConnection(pika.URLParameters(url)) as connection,
    ):
        channel = connection.channel()
        module.add.send(1, 2)
        channel.queue_delete(name)
        module.add.send(3, 4)

        assert channel.queue_declare(name, passive=True).method.message_count == 1


async def test_a_worker_reconnects_after_the_broker_closed_the_connection(
    tmp_path: Path, own_broker: BrokerProcess, name: str, journal: Callable[[], list[str]]
) -> None:
    """Its consumer is started again, and declares its queues."""
    shop = variables(tmp_path, own_broker.url, name)
    async with worker(shop) as running:
        with actors(shop) as module:
            module.add.send(1, 2)
            await eventually(lambda: journal() == ["add 3"], what=repr(running))
        own_broker.restart()
        with actors(shop) as module:
            module.add.send(3, 4)
        await eventually(lambda: journal() == ["add 3", "add 7"], what=repr(running))
