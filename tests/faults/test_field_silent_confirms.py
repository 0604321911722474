"""FR5. A node that is cut off from its cluster keeps connections open and confirms nothing."""

import asyncio

import pytest

from tests.client import Client
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import PublishOutcomeUnknown

ACK = (60, 80)
DEADLINE = 0.5


class Silent(Proxy):
    """A filter that passes everything except a number of confirms.

    Attributes:
        unconfirmed: How many confirms are left out from now on.
    """

    unconfirmed = 0

    def wanted(self, method: tuple[int, int]) -> bool:
        """Return whether a frame of the server passes."""
        if method != ACK or not self.unconfirmed:
            return True
        self.unconfirmed -= 1
        return False


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close a connection that confirms nothing within half a second."""
    monkeypatch.setattr("workerkit.amqp.publishing_channels.CONFIRM_DEADLINE", DEADLINE)


async def test_fr5_a_connection_that_confirms_nothing_is_replaced(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """The outcome of the publish is unknown, and the next one uses another connection."""
    await client.declare("orders")
    async with (
        Silent("127.0.0.1", rabbit.port, amqp=True) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.unconfirmed = 1
        with pytest.raises(PublishOutcomeUnknown, match="no confirm within"):
            await publisher.publish(b"second", "orders", timeout=DEADLINE + 0.1)
        await publisher.publish(b"third", "orders")
        accepted = proxy.accepted

    assert accepted == 2
    assert [(await client.take("orders")).body for _ in range(3)] == [b"first", b"second", b"third"]


async def test_fr5_publishes_in_doubt_end_with_their_connection(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """A publish with a longer timeout fails immediately, before its own timeout."""
    await client.declare("orders")
    async with (
        Silent("127.0.0.1", rabbit.port, amqp=True) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.unconfirmed = 2
        patient = asyncio.create_task(publisher.publish(b"patient", "orders", timeout=100.0))
        with pytest.raises(PublishOutcomeUnknown, match="no confirm within"):
            await publisher.publish(b"hasty", "orders", timeout=DEADLINE + 0.1)
        with pytest.raises(PublishOutcomeUnknown, match="lost before the confirm"):
            await patient


async def test_fr5_a_connection_that_confirms_others_stays(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """One queue that accepts nothing does not affect the publishes to others."""
    await client.declare("orders")
    async with (
        Silent("127.0.0.1", rabbit.port, amqp=True) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.unconfirmed = 1
        stuck = asyncio.create_task(publisher.publish(b"stuck", "orders", timeout=DEADLINE + 0.1))
        await eventually(lambda: proxy.unconfirmed == 0)
        await publisher.publish(b"other", "orders")
        with pytest.raises(PublishOutcomeUnknown, match="no confirm within"):
            await stuck
        await publisher.publish(b"last", "orders")

        assert proxy.accepted == 1


async def test_fr5_a_publish_with_a_short_timeout_does_not_close_the_connection(
    rabbit: PrivateRabbit, url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout far below the deadline does not show that the node is cut off."""
    monkeypatch.setattr("workerkit.amqp.publishing_channels.CONFIRM_DEADLINE", 100.0)
    await client.declare("orders")
    async with (
        Silent("127.0.0.1", rabbit.port, amqp=True) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.unconfirmed = 1
        with pytest.raises(PublishOutcomeUnknown, match="no confirm within"):
            await publisher.publish(b"second", "orders", timeout=0.1)
        await publisher.publish(b"third", "orders")

        assert proxy.accepted == 1
