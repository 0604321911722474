"""Run the template on an in-process broker, with a simulated customer: `make demo`.

Ctrl-C stops it. It leaves nothing behind.
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
# The worker's grace period, and time to close its connections.
STOPPING = 12.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run until SIGINT or SIGTERM; return the exit code."""
    try:
        asyncio.run(demo())
    except WorkerEnded as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


class WorkerEnded(Exception):
    """The worker ended early, or with an error."""


async def demo() -> None:
    """Start everything, wait for a signal, stop everything in reverse.

    Raises:
        WorkerEnded: The worker did not run until it was stopped.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print("This runs a broker, a worker that books orders, and a customer who places orders.")
    print("A line with `handled` is an order that was booked, or a customer who was notified.")
    print("Ctrl-C stops it.", flush=True)
    async with any_broker() as broker:
        print(f"The broker is at {broker.url}. To place an order yourself:")
        order = '{"id": 0, "item": "tea"}'
        print(f"  {publish_command(broker.url, 'orders', order)}", flush=True)
        await trade(broker.url, stopping)


@asynccontextmanager
async def any_broker() -> AsyncIterator[EmbeddedBroker]:
    """An in-process broker inside the block, at the usual port if that is free."""
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(EmbeddedBroker(DEFAULT_PORT))
        except ConfigurationError:
            broker = await stack.enter_async_context(EmbeddedBroker())
        yield broker


async def trade(url: str, stopping: asyncio.Event) -> None:
    """Run worker and customer until a signal arrives."""
    port = free_port()
    print(f"The HTTP views of the worker are at http://127.0.0.1:{port}/docs", flush=True)
    async with worker(url, port) as process, customer(url):
        ended = asyncio.create_task(process.wait())
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not stopping.is_set():
            raise WorkerEnded(f"the worker exited with code {process.returncode}")
    if process.returncode:
        raise WorkerEnded(f"the worker exited with code {process.returncode}")


@asynccontextmanager
async def worker(url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `workerkit run shop` in the template inside the block; stop it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workerkit", "run", "shop"),
        cwd=ROOT / "app_template",
        env={
            **os.environ,
            "SHOP_AMQP__DEFAULT__URL": url,
            # Not 8080, which may be in use.
            "SHOP_HTTP__PORT": str(port),
            "SHOP_SSE__SHOP__URL": f"http://127.0.0.1:{port}",
            "SHOP_OPS__PORT": "0",
            "SHOP_LOG__FORMAT": "text",
            "SHOP_LOG__LEVEL": "DEBUG",
            "SHOP_SHUTDOWN_GRACE": "5",
        },
        # Ctrl-C at a terminal signals the whole group: the worker would take it for the first
        # signal, and ours for the second, which ends it immediately.
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
    """Make the kernel send SIGTERM to this process when its parent ends."""
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
    """Place one order after the other; the queue exists when the worker has declared it."""
    number = 1
    while True:
        order = {"id": number, "item": random.choice(ITEMS), "quantity": random.randint(1, 9)}
        with suppress(PublishError):
            await publisher.publish(order, "orders")
            number += 1
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
