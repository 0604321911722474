"""Consumers of RabbitMQ are paused and changed while they run, and no message is lost."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.application import running
from tests.client import connected
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue, Runner
from workerkit.control import Control
from workerkit.health import State


def control(runner: Runner) -> Control:
    """Return the control of the only consumer."""
    return runner.health[0].control


def empty(rabbit: PrivateRabbit, vhost: str) -> bool:
    """Return whether the queue has no message, neither ready nor unacknowledged."""
    queue = rabbit.queues(vhost)["orders"]
    return queue.ready == queue.unacked == 0


def consumer(calls: list[str], gate: asyncio.Event | None = None, **options: Any) -> Any:
    """Return a consumer of the queue `orders` that notes the bodies, after a gate is open."""

    class Orders(AMQPConsumer):
        queues = [Queue("orders", options.pop("type", "classic"))]

        async def handle(self, body: str) -> None:
            if gate is not None:
                await gate.wait()
            calls.append(body)

    for name, value in options.items():
        setattr(Orders, name, value)
    return Orders


async def publish(url: str, first: int, count: int) -> None:
    """Publish numbers to the queue."""
    async with connected(url) as client:
        for number in range(first, first + count):
            await client.send("orders", str(number).encode())


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_pause_and_resume(rabbit: PrivateRabbit, vhost: str, kind: str) -> None:
    """The consumer is cancelled at the broker, and the running calls finish and are settled."""
    calls: list[str] = []
    url, gate = rabbit.url(vhost), asyncio.Event()
    orders = consumer(calls, gate, type=kind, concurrency=2, prefetch=10)
    async with running(url, orders) as runner:
        await publish(url, 0, 20)
        await eventually(lambda: runner.health[0].in_flight() == 2)

        await control(runner).pause()
        await control(runner).pause()
        assert control(runner).paused
        assert (runner.health[0].state, runner.ready) == (State.PAUSED, True)
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 18)
        gate.set()
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        await eventually(lambda: rabbit.queues(vhost)["orders"].consumers == 0)
        assert sorted(map(int, calls)) == [0, 1]

        await control(runner).resume()
        await control(runner).resume()
        await eventually(lambda: len(calls) == 20)
        assert runner.health[0].state is State.READY
        assert sorted(map(int, calls)) == list(range(20))
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)


async def test_it_stays_paused_after_a_reconnect(
    rabbit: PrivateRabbit, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is opened again, and nothing is consumed until it is resumed."""
    calls: list[str] = []
    url = rabbit.url(vhost)
    async with running(url, consumer(calls)) as runner:
        await control(runner).pause()
        caplog.clear()
        caplog.set_level("INFO")
        rabbit.close_all_connections("maintenance")
        await eventually(lambda: "connected" in caplog.messages)
        await publish(url, 0, 5)
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 5)
        assert rabbit.queues(vhost)["orders"].consumers == 0
        assert (runner.health[0].state, runner.ready, calls) == (State.PAUSED, True, [])

        await control(runner).resume()
        await eventually(lambda: len(calls) == 5)


async def test_paused_while_the_connection_is_lost(rabbit: PrivateRabbit, vhost: str) -> None:
    """It is paused then, too; the calls that ran are redelivered after it was resumed."""
    calls: list[str] = []
    url, gate = rabbit.url(vhost), asyncio.Event()
    async with running(url, consumer(calls, gate, concurrency=2)) as runner:
        await publish(url, 0, 4)
        await eventually(lambda: runner.health[0].in_flight() == 2)
        rabbit.close_all_connections("maintenance")
        await control(runner).pause()
        gate.set()
        await eventually(lambda: runner.health[0].in_flight() == 0)
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 4)
        await control(runner).resume()
        await eventually(lambda: empty(rabbit, vhost))
        assert set(map(int, calls)) == set(range(4))


async def test_paused_at_the_start(rabbit: PrivateRabbit, vhost: str) -> None:
    """The queue is declared, the process is ready, and nothing is consumed."""
    calls: list[str] = []
    url = rabbit.url(vhost)
    paused = {"orders": {"paused": True}}
    async with running(url, consumer(calls), consumers=paused) as runner:
        await eventually(lambda: "orders" in rabbit.queues(vhost))
        await publish(url, 0, 3)
        assert (control(runner).paused, runner.health[0].state) == (True, State.PAUSED)
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 3)
        assert rabbit.queues(vhost)["orders"].consumers == 0

        await control(runner).resume()
        await eventually(lambda: len(calls) == 3)


async def test_concurrency_and_prefetch(rabbit: PrivateRabbit, vhost: str) -> None:
    """More calls run at the same time, and then fewer; the prefetch count follows."""
    calls: list[str] = []
    url, gate = rabbit.url(vhost), asyncio.Event()
    async with running(url, consumer(calls, gate, concurrency=2)) as runner:
        await publish(url, 0, 40)
        await eventually(lambda: runner.health[0].in_flight() == 2)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 4)

        await control(runner).change_concurrency(8)
        assert (control(runner).concurrency, control(runner).prefetch) == (8, 16)
        await eventually(lambda: runner.health[0].in_flight() == 8)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked >= 16)

        await control(runner).change_concurrency(1)
        gate.set()
        await eventually(lambda: len(calls) == 40)
        assert sorted(map(int, calls)) == list(range(40))
        gate.clear()
        await publish(url, 40, 10)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 2)
        assert runner.health[0].in_flight() == 1

        await control(runner).change_prefetch(6)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked >= 6)
        gate.set()
        await eventually(lambda: len(calls) == 50)
        await eventually(lambda: empty(rabbit, vhost))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_every_message_is_handled_once(rabbit: PrivateRabbit, vhost: str, kind: str) -> None:
    """Two thousand messages, while the consumer is paused, resumed and resized at random."""
    calls: list[str] = []
    url, chance = rabbit.url(vhost), random.Random(17)
    async with running(url, consumer(calls, type=kind, concurrency=4)) as runner:
        publishing = asyncio.create_task(publish(url, 0, 2_000))
        while not publishing.done() or rabbit.queues(vhost)["orders"].ready:
            await control(runner).pause()
            await asyncio.sleep(chance.random() / 50)
            await control(runner).resume()
            await asyncio.sleep(chance.random() / 10)
            await control(runner).change_concurrency(chance.randint(1, 12))
            await control(runner).change_prefetch(chance.randint(1, 60))
        await publishing
        await eventually(lambda: empty(rabbit, vhost))

    counted = Counter(map(int, calls))
    assert counted.keys() == set(range(2_000))
    assert max(counted.values()) == 1


async def test_a_partial_batch(rabbit: PrivateRabbit, vhost: str) -> None:
    """Its messages go back, or are handled; none is lost."""
    handled: list[str] = []
    url = rabbit.url(vhost)

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 50
        batch_interval = 60.0

        async def handle(self, bodies: list[str]) -> None:
            handled.extend(bodies)

    async with running(url, Orders) as runner:
        await publish(url, 0, 10)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 10)
        await control(runner).pause()
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready + len(handled) == 10)
        await control(runner).resume()
        await publish(url, 10, 40 + len(handled))
        await eventually(lambda: len(handled) >= 50)
    assert len(set(handled)) == len(handled)


async def test_stopped_while_paused(rabbit: PrivateRabbit, vhost: str) -> None:
    """It stops as always, and the messages stay in the queue."""
    calls: list[str] = []
    url, gate = rabbit.url(vhost), asyncio.Event()
    async with running(url, consumer(calls, gate, concurrency=1)) as runner:
        await publish(url, 0, 6)
        await eventually(lambda: runner.health[0].in_flight() == 1)
        await control(runner).pause()
        gate.set()
    assert calls == ["0"]
    assert rabbit.queues(vhost)["orders"].ready == 5


async def test_a_handler_that_is_not_async(rabbit: PrivateRabbit, vhost: str) -> None:
    """It gets as many threads as the new concurrency."""
    url = rabbit.url(vhost)
    entered: list[str] = []
    loop, leave = asyncio.get_running_loop(), asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        def handle(self, body: str) -> None:
            entered.append(body)
            asyncio.run_coroutine_threadsafe(leave.wait(), loop).result()

    async with running(url, Orders) as runner:
        await publish(url, 0, 6)
        await eventually(lambda: len(entered) == 1)
        await control(runner).change_concurrency(5)
        await eventually(lambda: len(entered) == 5)
        leave.set()
        await eventually(lambda: empty(rabbit, vhost))
