"""FR19. The error of one publish affects no other publish and no copy."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit, missing
from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    MessageTooLarge,
    Publisher,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    Reject,
    Unroutable,
)

LARGEST = 1_000_000
"""Bytes of the largest body that the node of these tests takes."""


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A node that accepts only small messages, with a user of limited permissions."""
    assert missing() is None
    with PrivateRabbit(f"max_message_size = {LARGEST}") as node:
        node.add_user("some", "some", write="^(?!forbidden$).*$")
        yield node


@pytest.fixture
async def there(node: PrivateRabbit) -> AsyncIterator[Client]:
    """Another client of that node; its queues are deleted afterwards."""
    async with connected(node.url()) as client:
        yield client
        for queue in node.queues():
            await client.delete(queue)
        for exchange in ("forbidden", "shop"):
            await client.delete_exchange(exchange)


FAULTS: dict[str, tuple[dict[str, Any], type[PublishError], str]] = {
    "too large": ({"body": bytes(LARGEST + 1)}, MessageTooLarge, str(LARGEST)),
    "no such exchange": ({"exchange": "nowhere"}, Unroutable, "nowhere"),
    "no permission": ({"exchange": "forbidden"}, PublishRefused, "grant write on 'forbidden'"),
    "internal": ({"exchange": "amq.rabbitmq.trace"}, PublishRefused, "internal exchange"),
    "user id": ({"user_id": "mallory"}, PublishRefused, "mallory"),
    "large headers": ({"headers": {"a": "x" * 131_072}}, MessageTooLarge, "131064"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fr19_no_other_publish_is_in_doubt(
    node: PrivateRabbit, there: Client, fault: str
) -> None:
    """Before the error, at the same time and after it, the first time and later."""
    wrong, kind, text = FAULTS[fault]
    bad = {"body": b"x", "routing_key": "orders", **wrong}
    await there.declare("orders")
    await there.declare_exchange("forbidden", "orders")
    async with publishing(node.url(user="some", password="some")) as publisher:
        results: list[object] = []
        for _ in range(2):
            publishes = [publisher.publish(b"%d" % each, "orders") for each in range(30)]
            publishes[15:15] = [publisher.publish(**bad), publisher.publish(**bad)]
            results += await asyncio.gather(*publishes, return_exceptions=True)
    errors = [each for each in results if not isinstance(each, str)]

    assert [type(each) for each in errors] == [kind] * 4
    assert all(text in str(each) for each in errors)
    assert node.queues()["orders"].ready == 60


async def test_fr19_a_known_limit_is_checked_before_sending(
    node: PrivateRabbit, there: Client
) -> None:
    """The broker states it with the first refusal; smaller messages are sent as before."""
    await there.declare("orders")
    async with publishing(node.url()) as publisher:
        with pytest.raises(MessageTooLarge, match=f"configured max size {LARGEST}"):
            await publisher.publish(bytes(LARGEST + 1), "orders")
        with pytest.raises(
            MessageTooLarge, match=f"has {LARGEST + 2} bytes.* accepts at most {LARGEST}$"
        ):
            await publisher.publish(bytes(LARGEST + 2), "orders")
        sizes = await asyncio.gather(
            *(publisher.publish(bytes(LARGEST - each), "orders") for each in range(5))
        )

    assert len(sizes) == 5
    assert node.queues()["orders"].ready == 5


async def test_fr19_copies_of_a_consumer_do_not_fail(node: PrivateRabbit, there: Client) -> None:
    """During publishes that are refused, each message is handled once and copied once."""
    await there.declare("orders")
    calls: list[bytes] = []
    publishers: list[Publisher] = []

    class Faulty(AMQPConsumer):
        queues = ["orders"]

        def __init__(self, publisher: Publisher) -> None:
            publishers.append(publisher)

        async def handle(self, body: bytes) -> None:
            calls.append(body)
            raise Reject("no")

    recorder = Recorder()
    wrong = [{"body": b"x", "routing_key": "orders", **each} for each, _, _ in FAULTS.values()]
    async with running(node.url(), Faulty, recorder=recorder):
        [publisher] = publishers
        moving = asyncio.create_task(there.send("orders", *(b"%d" % each for each in range(100))))
        while len(recorder.settled) < 100:
            publishes = [publisher.publish(**each) for each in wrong]
            results = await asyncio.gather(*publishes, return_exceptions=True)
            assert all(isinstance(each, PublishError | str) for each in results)
        await moving

    assert sorted(calls) == sorted(b"%d" % each for each in range(100))
    assert set(recorder.actions) == {"dead_letter"}
    assert node.queues()["orders.dlq"].ready == 100


async def test_fr19_messages_that_the_broker_has_not_processed_are_sent_again(
    node: PrivateRabbit, there: Client
) -> None:
    """An exchange is deleted: the outcome is unknown only of messages sent before that."""
    await there.declare("orders")
    await there.declare_exchange("shop", "orders")
    async with publishing(node.url()) as publisher:
        await publisher.publish(b"first", "orders", exchange="shop")
        await publisher.publish(b"second", "orders")
        await there.delete_exchange("shop")
        publishes = [publisher.publish(b"%d" % each, "orders") for each in range(20)]
        publishes[10:10] = [publisher.publish(b"x", "orders", exchange="shop")]
        results = await asyncio.gather(*publishes, return_exceptions=True)
    before, after = results[:10], results[11:]

    assert isinstance(results[10], Unroutable)
    assert {type(each) for each in before} <= {str, PublishOutcomeUnknown}
    assert {type(each) for each in after} == {str}
    assert node.queues()["orders"].ready <= 22
    assert node.queues()["orders"].ready >= 2 + sum(isinstance(each, str) for each in results)


async def test_fr19_publishing_leaves_no_channel_open(node: PrivateRabbit, there: Client) -> None:
    """New sizes, users and exchanges have a channel for a moment only."""
    await there.declare("orders")
    await there.declare_exchange("shop", "orders")
    async with publishing(node.url()) as publisher:
        before = node.channels()
        for size in (1, 200_000, 400_000, 800_000):
            await publisher.publish(bytes(size), "orders")
        await publisher.publish(b"x", "orders", user_id="guest")
        await publisher.publish(b"x", "orders", exchange="shop")
        with pytest.raises(MessageTooLarge):
            await publisher.publish(bytes(LARGEST + 1), "orders")
        await publisher.publish(b"x", "orders")
        await eventually(lambda: node.channels() == before + 1)


@pytest.mark.parametrize("size", [16 * 1024 * 1024, 16 * 1024 * 1024 + 1])
async def test_fr19_the_default_limit_of_each_version(
    rabbit: PrivateRabbit, url: str, client: Client, size: int
) -> None:
    """RabbitMQ 4 accepts 16 MiB, 3.10 more; a larger message is `MessageTooLarge`."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        large = publisher.publish(bytes(size), "orders", timeout=60.0)
        results = await asyncio.gather(
            large,
            *(publisher.publish(b"x", "orders") for _ in range(10)),
            return_exceptions=True,
        )
    is_taken = rabbit.version < (4,) or size <= 16 * 1024 * 1024

    assert isinstance(results[0], str if is_taken else MessageTooLarge)
    assert [type(each) for each in results[1:]] == [str] * 10
