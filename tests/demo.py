"""What `make demo` runs: the template on an in-process broker, with orders coming in.

Ctrl-C ends it. Nothing of it is left behind.
"""

import asyncio
import ctypes
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

ROOT = Path(__file__).parents[1]
# `python tests/demo.py` puts the directory of this file on the path, not the one above.
sys.path.insert(0, str(ROOT))

from tests.ports import free_port  # noqa: E402
from workerkit import (  # noqa: E402
    AMQPSettings,
    ConfigurationError,
    Publisher,
    PublishError,
    WorkerSettings,
)
from workerkit.cli.broker import DEFAULT_PORT, publish_command  # noqa: E402
from workerkit.embedded import EmbeddedBroker  # noqa: E402

ITEMS = ("tea", "coffee", "sugar", "a cup", "a spoon")
PAUSE = 0.3
# The worker's own grace, and some more to close what it has opened.
STOPPING = 12.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run until SIGINT or SIGTERM; the exit code."""
    try:
        asyncio.run(demo())
    except WorkerEnded as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


class WorkerEnded(Exception):
    """The worker ended though nobody had asked it to, or not as it should."""


async def demo() -> None:
    """Start everything, wait for a signal, stop everything in reverse.

    Raises:
        WorkerEnded: The worker did not run until it was stopped.
    """
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    print("This runs a broker, a worker that books orders, and a customer who places them.")
    print("A line with the word `handled` is an order that was booked, or a customer who was told.")
    print("Ctrl-C ends it.", flush=True)
    async with any_broker() as broker:
        print(f"A broker runs at {broker.url}, and you can place an order as well:")
        order = '{"id": 0, "item": "tea"}'
        print(f"  {publish_command(broker.url, 'orders', order)}", flush=True)
        await trade(broker.url, asked_to_stop)


@asynccontextmanager
async def any_broker() -> AsyncIterator[EmbeddedBroker]:
    """An in-process broker inside the block, at the usual port if that is free."""
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(EmbeddedBroker(DEFAULT_PORT))
        except ConfigurationError:
            broker = await stack.enter_async_context(EmbeddedBroker())
        yield broker


async def trade(url: str, asked_to_stop: asyncio.Event) -> None:
    """Run worker and customer until asked to stop."""
    port = free_port()
    print(f"The HTTP views of the worker are at http://127.0.0.1:{port}/docs", flush=True)
    async with worker(url, port) as process, customer(url):
        ended = asyncio.create_task(process.wait())
        stopped = asyncio.create_task(asked_to_stop.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not asked_to_stop.is_set():
            raise WorkerEnded(f"the worker ended by itself, with {process.returncode}")
    if process.returncode:
        raise WorkerEnded(f"the worker ended with {process.returncode}")


@asynccontextmanager
async def worker(url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `workerkit run shop` in the template inside the block; stop it behind."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workerkit", "run", "shop"),
        cwd=ROOT / "app_template",
        env={
            **os.environ,
            "SHOP_AMQP__DEFAULT__URL": url,
            # Not 8080, which may be somebody else's.
            "SHOP_HTTP__PORT": str(port),
            "SHOP_SSE__SHOP__URL": f"http://127.0.0.1:{port}",
            "SHOP_OPS__PORT": "0",
            "SHOP_LOG__FORMAT": "text",
            "SHOP_LOG__LEVEL": "DEBUG",
            "SHOP_SHUTDOWN_GRACE": "5",
        },
        # Ctrl-C at a terminal is for the whole group: the worker would take it for its first
        # signal and ours for the second, which ends it at once.
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOPPING):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@asynccontextmanager
async def customer(url: str) -> AsyncIterator[None]:
    """Place a few orders a second inside the block."""
    publisher = Publisher()
    publisher.open(WorkerSettings(amqp={"default": AMQPSettings(url=SecretStr(url))}))
    placing = asyncio.create_task(place_orders(publisher))
    try:
        yield
    finally:
        placing.cancel()
        await asyncio.wait([placing])
        await publisher.close()


async def place_orders(publisher: Publisher) -> None:
    """Place one order after the other; the queue is there once the worker has declared it."""
    number = 1
    while True:
        order = {"id": number, "item": random.choice(ITEMS), "quantity": random.randint(1, 9)}
        with suppress(PublishError):
            await publisher.publish(order, "orders")
            number += 1
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
