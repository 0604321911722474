"""FR17 and FR1: which counts of deliveries are trusted, and what counts after a loss."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Queue

ORDERS = "orders"
FORGED: list[Any] = [30, 1, 0, -5, 2**31, "30", True, 3.0, bytearray(b"30"), [30], {"a": 30}, None]


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses before a message is requeued."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("workerkit.amqp.requeue._LONGEST_PAUSE", 0.05)


@pytest.mark.parametrize("header", ["x-delivery-count", "x-acquired-count"])
@pytest.mark.parametrize("limited", [None, 3])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fr17_a_sender_cannot_count_for_the_broker(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    kind: Any,
    limited: int | None,
    header: str,
) -> None:
    """With any headers, a message is handled, also after a redelivery."""
    calls: Counter[bytes] = Counter()
    limit: dict[str, Any] = {}
    if kind == "quorum" and limited:
        limit["delivery_limit"] = limited

    class Orders(AMQPConsumer):
        queues = [Queue(ORDERS, kind, **limit)]

        async def handle(self, body: bytes) -> None:
            calls[body] += 1
            if calls[body] == 1:
                raise KeyError("once")

    sent = [b"%d" % number for number in range(len(FORGED))]
    recorder = Recorder()
    await client.declare(ORDERS, **{f"x_{k}": v for k, v in {"queue_type": kind, **limit}.items()})
    for body, value in zip(sent, FORGED, strict=True):
        await client.send(ORDERS, body, properties=Basic.Properties(headers={header: value}))
    # Redelivered to a process that has not seen it before: only its headers count.
    await client.give_back(ORDERS)
    async with running(url, Orders, recorder=recorder):
        await eventually(lambda: rabbit.queues(vhost)[ORDERS] == QueueState(0, 0, 1))
        dead = rabbit.queues(vhost)[f"{ORDERS}.dlq"].ready

    assert dead == 0
    assert calls == Counter(dict.fromkeys(sent, 2))
    assert "dead_letter" not in recorder.actions


@pytest.mark.parametrize("limit", [1, 3])
async def test_fr1_connections_that_are_lost_again_and_again_lose_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, limit: int
) -> None:
    """Each loss counts, but a counted message is replaced with a copy before it is handled."""
    rabbit.eval(
        f'rabbit_policy:set(<<"{vhost}">>, <<"limit">>, <<"^orders$">>,'
        f' [{{<<"delivery-limit">>, {limit}}}], 0, <<"queues">>, <<"tests">>)'
    )
    await client.declare(ORDERS, x_queue_type="quorum")
    sent = [b"%d" % number for number in range(6)]
    handled: Counter[bytes] = Counter()
    gates = [asyncio.Event()]
    begun: Counter[int] = Counter()
    losing = True

    class Orders(AMQPConsumer):
        queues = [ORDERS]
        concurrency = 3

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            begun[len(gates)] += 1
            await gates[-1].wait()
            if losing:
                raise KeyError("its connection is lost")
            handled[message.body] += 1

    async with Proxy("127.0.0.1", rabbit.port) as proxy, running(proxy.url(url), Orders):
        await client.send(ORDERS, *sent)
        for _ in range(limit + 1):
            await eventually(lambda: begun[len(gates)] == 3)
            await eventually(lambda: rabbit.queues(vhost)[ORDERS] == QueueState(0, 6, 1))
            proxy.drop()
            await eventually(lambda: rabbit.queues(vhost)[ORDERS].consumers == 0)
            gates.append(asyncio.Event())
            gates[-2].set()
        losing = False
        gates[-1].set()
        await eventually(lambda: rabbit.queues(vhost)[ORDERS] == QueueState(0, 0, 1))
        dead = rabbit.queues(vhost)[f"{ORDERS}.dlq"].ready

    assert dead == 0
    assert set(handled) == set(sent)
