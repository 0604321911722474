"""Consumers that are paused and changed while handlers run, connections are lost, or calls end."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.application import running
from tests.client import Client
from tests.proxy import CONSUME_OK, Proxy
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue, Runner
from workerkit.control import Control, NotPossible
from workerkit.health import State

MESSAGES = 2_000


def control(runner: Runner) -> Control:
    """Return the control of the only consumer."""
    return runner.health[0].control


def is_empty(rabbit: PrivateRabbit, vhost: str, queue: str = "orders") -> bool:
    """Return whether the queue has no message, neither ready nor unacknowledged."""
    state = rabbit.queues(vhost)[queue]
    return state.ready == state.unacked == 0


async def publish(client: Client, numbers: range, queue: str = "orders") -> None:
    """Publish numbers."""
    for number in numbers:
        await client.send(queue, str(number).encode())


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_slow_handlers_and_impatient_operators(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, kind: Any
) -> None:
    """Changes that begin during others, while handlers run, lose and repeat no message."""
    calls: Counter[str] = Counter()
    chance = random.Random(23)

    class Orders(AMQPConsumer):
        queues = [Queue("orders", kind)]
        concurrency = 8

        async def handle(self, body: str) -> None:
            await asyncio.sleep(chance.random() / 50)
            calls[body] += 1

    async with running(url, Orders) as runner:
        change = control(runner)
        publishing = asyncio.create_task(publish(client, range(MESSAGES)))
        while not publishing.done() or len(calls) < MESSAGES // 2:
            changes = [
                change.pause(),
                change.resume(),
                change.change_prefetch(chance.randint(1, 40)),
                change.change_concurrency(chance.randint(1, 16)),
                change.resume(),
            ]
            tasks = []
            for each in changes:
                tasks.append(asyncio.create_task(each))
                await asyncio.sleep(chance.random() / 100)
            await asyncio.wait(tasks)
            for task in tasks:
                task.result()
        await publishing
        await change.resume()
        await eventually(lambda: is_empty(rabbit, vhost), 60.0)

    assert calls.keys() == {str(number) for number in range(MESSAGES)}
    assert max(calls.values()) == 1


async def test_a_change_whose_caller_is_cancelled(url: str, client: Client) -> None:
    """It is made all the same, and the consumer continues."""
    calls: list[str] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            calls.append(body)

    async with running(url, Orders) as runner:
        for turns in range(30):
            change = asyncio.create_task(control(runner).change_prefetch(turns + 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            change.cancel()
            await asyncio.wait([change])
        await publish(client, range(20))

        await eventually(lambda: len(calls) == 20)
        assert len(set(calls)) == 20


async def test_paused_through_an_outage(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """It shows paused while the broker is not reachable and after that; then it resumes."""
    calls: list[str] = []
    states: set[tuple[State, bool]] = set()

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            calls.append(body)

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Orders) as runner,
    ):
        await control(runner).pause()
        proxy.refuse()
        proxy.drop()

        def note() -> bool:
            states.add((runner.health[0].state, runner.ready))
            return len(rabbit.queues(vhost)) > 0 and proxy.connections == 0

        for _ in range(50):
            await eventually(note)
            await asyncio.sleep(0.02)
        await control(runner).resume()
        assert str(runner.health[0].state) == "waiting"
        await control(runner).pause()
        await proxy.accept()
        await eventually(lambda: rabbit.connections(vhost) >= 2)
        await publish(client, range(3))
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 3)
        note()
        assert states == {(State.PAUSED, True)}
        assert (rabbit.consumers(vhost), calls) == ([], [])

        await control(runner).resume()
        await eventually(lambda: len(calls) == 3)
        assert runner.health[0].state is State.READY


async def test_paused_while_it_starts_to_consume(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The reply to basic.consume arrives late: the consumer is cancelled, and resumes."""
    calls: list[str] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            calls.append(body)

    async with Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy:
        proxy.swallow(CONSUME_OK)
        async with running(proxy.url(url), Orders, ready=False) as runner:
            await eventually(lambda: proxy.swallowed)
            await control(runner).pause()
            await eventually(lambda: not rabbit.consumers(vhost))
            await publish(client, range(3))
            assert (runner.health[0].state, calls) == (State.PAUSED, [])

            await control(runner).resume()
            await eventually(lambda: len(calls) == 3)


async def test_a_stream_continues_after_the_last_message(url: str, client: Client) -> None:
    """A message whose handler runs during the pause is not delivered once more."""
    calls: Counter[str] = Counter()
    gate, entered = asyncio.Event(), asyncio.Event()

    class Log(AMQPConsumer):
        queues = [Queue("log", type="stream", stream_offset="first")]
        concurrency = 2
        prefetch = 5

        async def handle(self, body: str) -> None:
            entered.set()
            await gate.wait()
            calls[body] += 1

    async with running(url, Log) as runner:
        await publish(client, range(10), "log")
        await entered.wait()
        await control(runner).pause()
        await control(runner).resume()
        await eventually(lambda: runner.health[0].state is State.READY)
        await control(runner).change_prefetch(7)
        gate.set()
        await eventually(lambda: len(calls) == 10)
        await publish(client, range(10, 20), "log")
        await eventually(lambda: len(calls) == 20)

    assert set(calls.values()) == {1}


async def test_a_queue_that_would_be_deleted(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The broker would delete the queue with its last consumer, so there are no such changes."""

    class Orders(AMQPConsumer):
        queues = [Queue("orders", "classic", auto_delete=True)]

        async def handle(self, body: str) -> None: ...

    async with running(url, Orders) as runner:
        assert control(runner).abilities == {"concurrency"}
        with pytest.raises(NotPossible, match="'orders' is auto_delete"):
            await control(runner).pause()
        with pytest.raises(NotPossible, match="'orders' is auto_delete"):
            await control(runner).change_prefetch(3)
        await control(runner).change_concurrency(20)
        await publish(client, range(3))
        await eventually(lambda: is_empty(rabbit, vhost))
        assert len(rabbit.consumers(vhost)) == 1


async def test_the_broker_closes_the_channel_of_a_paused_consumer(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """It stays paused. A call that ran is redelivered once it is resumed, on another channel."""
    calls: list[str] = []
    gate, entered = asyncio.Event(), asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        async def handle(self, body: str) -> None:
            entered.set()
            await gate.wait()
            calls.append(body)

    async with running(url, Orders) as runner:
        await publish(client, range(1))
        await entered.wait()
        await control(runner).pause()
        rabbit.eval(
            "[rabbit_channel:shutdown(P) || P <- rabbit_channel:list(),"
            f' rabbit_channel:info(P, [vhost]) == [{{vhost, <<"{vhost}">>}}],'
            " rabbit_channel:info(P, [messages_unacknowledged]) == [{messages_unacknowledged, 1}]],"
            " ok."
        )
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 1)
        gate.set()
        await eventually(lambda: runner.health[0].in_flight() == 0)
        assert (runner.health[0].state, rabbit.consumers(vhost)) == (State.PAUSED, [])

        await control(runner).resume()
        await eventually(lambda: is_empty(rabbit, vhost))
        assert set(calls) == {"0"}
