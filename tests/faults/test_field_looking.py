"""FR4: listing dead letters destroys none, however often it is done."""

from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import container_of
from tests.client import Client
from tests.rabbit import PrivateRabbit, QueueState
from tests.waiting import eventually
from workerkit.amqp.message import AMQPMessage
from workerkit.cli.dead_letters.read import collect, count, first
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import DeadLetterQueue
from workerkit.errors import RunError

LETTERS = "orders.dlq"
EVERYTHING = Selection(None, None, None, None)
SOME = Selection(None, None, None, ["m-1"])


def there(url: str) -> DeadLetterQueue:
    """The dead letters of `orders`."""
    return DeadLetterQueue(container_of(url).settings(), "default", None, "orders")


def name_of(message: AMQPMessage[Any]) -> str | None:
    """Return the parts of a message that listing must keep."""
    return message.message_id


async def send(client: Client, *names: str) -> None:
    """Put dead letters into the queue."""
    for name in names:
        headers: dict[str, Any] = {"x-workerkit-queue": "orders", "a": 1, "CC": ["elsewhere"]}
        sent = Basic.Properties(message_id=name, headers=headers, expiration="3600000")
        await client.send(LETTERS, name.encode(), properties=sent)


async def back(rabbit: PrivateRabbit, vhost: str, ready: int) -> None:
    """Wait: a quorum queue requeues messages a moment after the channel was closed."""
    await eventually(lambda: rabbit.queues(vhost)[LETTERS] == QueueState(ready, 0, 0))


@pytest.mark.parametrize("limit", [None, -1, 0, 1, 2, 20])
async def test_fr4_listing_never_destroys(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, limit: int | None
) -> None:
    """All reads together count less than the delivery limit, for any limit."""
    if limit == -1 and rabbit.version < (4,):
        limit = None  # There it is a limit below zero: no message could be requeued.
    arguments = {} if limit is None else {"x_delivery_limit": limit}
    await client.declare(LETTERS, x_queue_type="quorum", **arguments)
    await client.declare("elsewhere")
    names = [f"m-{number}" for number in range(4)]
    await send(client, *names)
    elsewhere = rabbit.queues(vhost)["elsewhere"]
    queue = there(url)

    for number in range(9):
        await back(rabbit, vhost, 4)
        found = await collect(queue, EVERYTHING, 50, name_of)
        assert sorted(name or "" for name in found.letters) == names, number
        await back(rabbit, vhost, 4)
        assert await count(queue, SOME) == (4, 1)
        await back(rabbit, vhost, 4)
        message = await first(queue, SOME)
        assert message is not None
        assert message.headers["a"] == 1

    await back(rabbit, vhost, 4)
    assert rabbit.queues(vhost)["elsewhere"] == elsewhere


async def test_fr4_the_default_limit_of_twenty(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """More reads than the default limit of RabbitMQ 4."""
    await client.declare(LETTERS, x_queue_type="quorum")
    await send(client, "m-1")
    queue = there(url)

    for _ in range(25):
        await back(rabbit, vhost, 1)
        assert (await collect(queue, EVERYTHING, 50, name_of)).letters == ["m-1"]

    await back(rabbit, vhost, 1)


async def test_fr4_listing_is_refused_if_no_copy_can_be_published(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """Before the first message is read, with a solution: each look counts."""
    await client.declare(LETTERS, x_queue_type="quorum", x_delivery_limit=2)
    await send(client, "m-1")
    user = f"looker-{vhost}"
    rabbit.add_user(user, "secret", vhost, write="^$")
    queue = there(rabbit.url(vhost, user, "secret"))

    for _ in range(4):
        await back(rabbit, vhost, 1)
        if rabbit.version >= (4, 3):
            assert (await collect(queue, EVERYTHING, 50, name_of)).letters == ["m-1"]
        else:
            with pytest.raises(RunError, match=r"drops a message.*grant write"):
                await collect(queue, EVERYTHING, 50, name_of)

    await back(rabbit, vhost, 1)
