"""FR1 and FR17: quorum queues whose delivery limit the class does not know lose nothing."""

from typing import Any

import pytest

from tests.application import running
from tests.client import Client
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue

ORDERS = "orders"
DROPS = "quorum queue without dead_letter_exchange: RabbitMQ 4 drops what comes back often"


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to go back does not wait for long."""
    monkeypatch.setattr("workerkit.amqp.pacing._FIRST", 0.01)
    monkeypatch.setattr("workerkit.amqp.pacing._CAP", 0.05)
    monkeypatch.setattr("workerkit.amqp.requeue._LEAST", 0.01)


def limit_by_policy(rabbit: PrivateRabbit, vhost: str, limit: int) -> None:
    """Give every queue of a virtual host that is declared from now on a delivery limit."""
    rabbit.eval(
        f'rabbit_policy:set(<<"{vhost}">>, <<"limit">>, <<"^orders$">>,'
        f' [{{<<"delivery-limit">>, {limit}}}], 0, <<"queues">>, <<"tests">>)'
    )


async def declared(
    rabbit: PrivateRabbit, vhost: str, client: Client, how: str, limit: int
) -> str | Queue:
    """Declare the queue in one of the ways that hide its limit; what a class writes of it."""
    if how == "policy":
        limit_by_policy(rabbit, vhost, limit)
        return Queue(ORDERS, "quorum")
    if how == "policy and a plain name":
        limit_by_policy(rabbit, vhost, limit)
        await client.declare(ORDERS, x_queue_type="quorum")
        return ORDERS
    await client.declare(ORDERS, x_queue_type="quorum", x_delivery_limit=limit, x_max_length=9999)
    return ORDERS


def consumer(
    queue: str | Queue, handle: Any, declare: str = "missing", **options: Any
) -> type[AMQPConsumer]:
    attributes = {"queues": [queue], "declare": declare, "handle": handle, **options}
    return type("Orders", (AMQPConsumer,), attributes)


async def bodies(rabbit: PrivateRabbit, vhost: str, client: Client, queue: str) -> list[bytes]:
    """All that is ready in a queue, taken out of it."""
    found = rabbit.queues(vhost).get(queue)
    return [(await client.take(queue)).body for _ in range(found.ready if found else 0)]


def settled(rabbit: PrivateRabbit, vhost: str, dead: int) -> bool:
    """Whether nothing is left but dead letters."""
    queues = rabbit.queues(vhost)
    assert queues[ORDERS].ready + queues[ORDERS].unacked == 0, queues
    assert queues["orders.dlq"].ready == dead, queues
    return True


HOW = ["policy", "policy and a plain name", "declared elsewhere"]


@pytest.mark.parametrize("limit", range(6))
@pytest.mark.parametrize("how", HOW)
async def test_fr1_a_handler_that_always_raises_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, how: str, limit: int
) -> None:
    """Whatever the limit is and whoever set it, every message ends as a dead letter."""
    declare = "never" if how == "declared elsewhere" else "missing"
    queue = await declared(rabbit, vhost, client, how, limit)
    if declare == "never":
        await client.declare("orders.dlq")
    sent = [b"%d" % number for number in range(8)]

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        raise KeyError("never")

    async with running(url, consumer(queue, handle, declare)):
        await client.send(ORDERS, *sent)
        await eventually(lambda: settled(rabbit, vhost, len(sent)), 60.0)
    dead = await bodies(rabbit, vhost, client, "orders.dlq")

    assert sorted(dead) == sorted(sent)
