"""Order by key across processes: docs/ordering.md, while processes are killed at random."""

import asyncio
import json
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.client import Client, connected
from tests.command import Application, running, write_package
from tests.rabbit import PrivateRabbit, missing
from tests.waiting import eventually

KEYS = [f"customer-{number}" for number in range(12)]
EACH = 40
PROCESSES = 3
KILLS = 6
PAGE = Path(__file__).parents[2] / "docs" / "ordering.md"
REPOSITORY = """
    import asyncio
    import os
    import random


    class OrderRepository:
        async def add(self, event):
            await asyncio.sleep(random.uniform(0.0, 0.02))
            if random.random() < 0.03:
                raise OSError("not now")
            # One write, so that nothing of it is lost when the process is killed.
            file = os.open("handled", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.write(file, f"{event.customer} {event.number}\\n".encode())
            os.close(file)
"""
CONTAINER = """
    from dependency_injector import providers

    from app.repository import OrderRepository
    from workerkit import WorkerContainer


    class Container(WorkerContainer):
        orders = providers.Singleton(OrderRepository)
"""


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A node with the exchange that distributes by key."""
    assert missing() is None
    with PrivateRabbit(plugins=["rabbitmq_consistent_hash_exchange"]) as node:
        yield node


@pytest.mark.timeout(300)
async def test_order_by_key_survives_kills_of_any_process(
    node: PrivateRabbit, tmp_path: Path
) -> None:
    """No message is lost, and none is handled for the first time before an earlier one was.

    Messages of one key are numbered. A message may be handled again, because a process that is
    killed could not acknowledge it; but the first handling of a number never comes before the first
    handling of a lower number of the same key.
    """
    consumers = "from app.repository import OrderRepository\n" + documented()
    write_package(tmp_path, consumers=consumers, repository=REPOSITORY, container=CONTAINER)
    sent = {key: [f"{key} {number}" for number in range(EACH)] for key in KEYS}
    source = random.Random(11)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(node.url()))
        processes = [await started(stack, node, tmp_path) for _ in range(PROCESSES)]
        await eventually(lambda: len(node.consumers()) >= 4 * PROCESSES, 60.0)
        async with asyncio.TaskGroup() as group:
            for key, bodies in sent.items():
                group.create_task(publish(client, key, bodies))
            for _ in range(KILLS):
                await asyncio.sleep(source.uniform(0.1, 1.0))
                victim = processes.pop(source.randrange(len(processes)))
                victim.send(source.choice([signal.SIGKILL, signal.SIGTERM]))
                await victim.ended()
                processes.append(await started(stack, node, tmp_path))
                await processes[-1].says("consuming")
        handled = tmp_path / "handled"

        def settled() -> bool:
            queues = node.queues()
            return all(each.ready + each.unacked == 0 for each in queues.values())

        await eventually(settled, 60.0)
    calls = handled.read_text().splitlines()
    first = list(dict.fromkeys(calls))
    by_key = {key: [call for call in first if call.split()[0] == key] for key in KEYS}

    assert Counter(first) == Counter(body for bodies in sent.values() for body in bodies)
    assert by_key == sent


def documented() -> str:
    """Return the consumers of the page, unchanged."""
    found = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


async def started(stack: AsyncExitStack, node: PrivateRabbit, directory: Path) -> Application:
    """Start one more process; it is ended with *stack*."""
    variables: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": node.url(),
        "WORKERKIT_LOG__LEVEL": "INFO",
    }
    return await stack.enter_async_context(running("app", cwd=directory, **variables))


async def publish(client: Client, key: str, bodies: list[str]) -> None:
    """Publish the messages of one key in order: each one once the one before is confirmed."""
    for body in bodies:
        event = json.dumps({"customer": key, "number": int(body.split()[1])})
        await client.publish("orders", key, event.encode(), Basic.Properties(delivery_mode=2))
        await asyncio.sleep(random.uniform(0.0, 0.2))
