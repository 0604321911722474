"""Order by key across processes: docs/ordering.md, while processes are killed at random."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

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
CONSUMERS = """
    import asyncio
    import os
    import random

    from workerkit import AMQPConsumer, AMQPMessage, Binding, Exchange, Queue

    BY_CUSTOMER = Exchange("orders", "x-consistent-hash")


    def partition(number):
        return Queue(
            f"orders.{number}",
            "quorum",
            single_active_consumer=True,
            bindings=[Binding(BY_CUSTOMER, "1")],
        )


    class InOrder(AMQPConsumer, abstract=True):
        concurrency = 1
        prefetch = 1

        async def handle(self, body: str, message: AMQPMessage) -> None:
            await asyncio.sleep(random.uniform(0.0, 0.02))
            if not message.redelivered and random.random() < 0.02:
                raise OSError("not now")
            # One write, so that nothing of it is lost when the process is killed.
            file = os.open("handled", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.write(file, f"{body}\\n".encode())
            os.close(file)


    class Orders0(InOrder):
        queues = [partition(0)]


    class Orders1(InOrder):
        queues = [partition(1)]


    class Orders2(InOrder):
        queues = [partition(2)]


    class Orders3(InOrder):
        queues = [partition(3)]
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
    write_package(tmp_path, consumers=CONSUMERS)
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


async def started(stack: AsyncExitStack, node: PrivateRabbit, directory: Path) -> Application:
    """Start one more process; it is ended with *stack*."""
    variables = {"WORKERKIT_AMQP__DEFAULT__URL": node.url(), "WORKERKIT_LOG__LEVEL": "INFO"}
    return await stack.enter_async_context(running("app", cwd=directory, **variables))


async def publish(client: Client, key: str, bodies: list[str]) -> None:
    """Publish the messages of one key in order: each one once the one before is confirmed."""
    for body in bodies:
        await client.publish("orders", key, body.encode(), Basic.Properties(delivery_mode=2))
        await asyncio.sleep(random.uniform(0.0, 0.2))
