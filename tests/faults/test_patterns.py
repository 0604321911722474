"""What docs/patterns.md says about two processes, on the embedded broker and on RabbitMQ."""

from collections import Counter
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.application import running
from tests.publishing import publishing
from tests.test_docs import ROOT, blocks
from tests.waiting import eventually
from workerkit import AMQPConsumer, PublishRefused, Unroutable
from workerkit.testing import embedded_broker

PAGE: Path = ROOT / "docs" / "patterns.md"


@pytest.fixture
def page() -> dict[str, Any]:
    """The names that the page defines, anew for each test."""
    namespace: dict[str, Any] = {"__name__": "shop"}
    for block in blocks(PAGE, "python"):
        exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace


class Process:
    """The classes of the page, with what this process has received.

    Attributes:
        received: The name of the class and the body, of each message.
    """

    def __init__(self, page: dict[str, Any]) -> None:
        self.received: Counter[tuple[str, object]] = Counter()
        self.consumers = [
            self._recording(each)
            for each in page.values()
            if isinstance(each, type)
            and issubclass(each, AMQPConsumer)
            and each is not AMQPConsumer
        ]

    def _recording(self, consumer: Any) -> type[AMQPConsumer]:
        @wraps(consumer.handle)
        async def handle(_: AMQPConsumer, body: object) -> None:
            self.received[consumer.__name__, body] += 1

        return type(consumer.__name__, (consumer,), {"handle": handle})


async def who_gets_a_copy(url: str, page: dict[str, Any]) -> None:
    """Two processes; then one of them ends; then both have ended."""
    one, other, third = Process(page), Process(page), Process(page)
    async with publishing(url) as publisher:
        async with running(url, *one.consumers):
            async with running(url, *other.consumers):
                await publisher.publish("image", "images")
                await publisher.publish(1, "", exchange=page["ORDERS"])
                await publisher.publish(9.5, "", exchange="prices")
                await publisher.publish("both", "order.placed.de", exchange=page["EVENTS"])
                await publisher.publish("one", "refund.de", exchange=page["EVENTS"])
                headers = {"format": "pdf", "language": "de", "fax": True, "pages": 3}
                await publisher.publish("all", "", exchange=page["DOCUMENTS"], headers=headers)
                headers = {"format": "pdf", "urgent": True}
                await publisher.publish("any", "", exchange=page["DOCUMENTS"], headers=headers)
                expected = Counter(
                    {
                        ("Resize", "image"): 1,
                        ("Invoice", 1): 1,
                        ("Parcel", 1): 1,
                        ("Prices", 9.5): 2,
                        ("Germany", "both"): 1,
                        ("Orders", "both"): 1,
                        ("Orders", "one"): 1,
                        ("Urgent", "all"): 1,
                        ("GermanPDF", "all"): 1,
                        ("Urgent", "any"): 1,
                    }
                )
                await eventually(lambda: one.received + other.received == expected)
                assert [each.received["Prices", 9.5] for each in (one, other)] == [1, 1]
            while True:
                # The queue of the other process is being deleted: its copy may be refused.
                with suppress(PublishRefused):
                    await publisher.publish(8.5, "", exchange="prices")
                    break
            await eventually(lambda: one.received["Prices", 8.5] >= 1)
        assert other.received["Prices", 8.5] == 0
        with pytest.raises(Unroutable):
            await publisher.publish(7.5, "", exchange="prices")
        await publisher.publish("later", "images")
        await publisher.publish(2, "", exchange=page["ORDERS"])
        async with running(url, *third.consumers):
            waited = Counter({("Resize", "later"): 1, ("Invoice", 2): 1, ("Parcel", 2): 1})
            await eventually(lambda: third.received == waited)


async def test_fr20_who_gets_a_copy_on_rabbitmq(url: str, page: dict[str, Any]) -> None:
    """Queues with a name keep their copies; the queue of a process ends with it."""
    await who_gets_a_copy(url, page)


async def test_fr20_who_gets_a_copy_on_the_embedded_broker(page: dict[str, Any]) -> None:
    """It is the same."""
    async with embedded_broker() as broker:
        await who_gets_a_copy(broker.url, page)
