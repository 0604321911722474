"""Requests with basic.get, and their replies."""

import asyncio
from struct import pack

import pytest

from workerkit.amqp.acks import Acks
from workerkit.amqp.basic_get import GetRequests
from workerkit.errors import ConnectionLost


class Site:
    """A channel; the test is its broker."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.lost: asyncio.Future[ConnectionLost] = asyncio.get_running_loop().create_future()
        self.acks = Acks(3, self.write, lambda flush: None)
        self.gets = GetRequests(3, self.acks, self.write, self.lost)

    def write(self, data: bytes) -> bool:
        self.written.append(data)
        return True

    def reply(self, tag: int, body: bytes) -> None:
        """Deliver a message, as the frame reader does."""
        envelope = b"\x01" + b"\x04shop" + b"\x03key" + pack(">I", 9)
        self.gets.delivered(b"\0" + pack(">Q", tag) + envelope, b"\0\0", body)


async def test_the_frame_of_a_request() -> None:
    """basic.get of the queue, with acknowledgement."""
    site = Site()
    _ = site.gets.request("orders")

    assert site.written == [b"\x01\0\x03\0\0\0\x0e\0\x3c\0\x46\0\0\x06orders\0\xce"]


async def test_replies_are_in_the_order_of_the_requests() -> None:
    """Each request gets its own reply, a message or None."""
    site = Site()
    pending = [site.gets.request(queue) for queue in ("a", "b", "c")]
    site.reply(1, b"first")
    site.gets.empty()
    site.reply(2, b"second")

    first, none, second = [await each for each in pending]
    assert first is not None
    assert (first.queue, first.raw, first.tag, first.redelivered) == ("a", b"first", 1, True)
    assert (first.exchange, first.routing_key) == ("shop", "key")
    assert none is None
    assert second is not None
    assert (second.queue, second.raw) == ("c", b"second")


async def test_a_cancelled_request_keeps_its_place() -> None:
    """The next request does not get the reply to the cancelled one."""
    site = Site()
    cancelled, other = site.gets.request("a"), site.gets.request("b")
    cancelled.cancel()
    site.reply(1, b"first")
    site.reply(2, b"second")

    message = await other
    assert message is not None
    assert message.raw == b"second"


async def test_requests_on_a_lost_channel_fail() -> None:
    """Pending and new requests fail with the reason, and later frames are ignored."""
    site = Site()
    pending = site.gets.request("a")
    site.lost.set_result(ConnectionLost("gone"))

    with pytest.raises(ConnectionLost, match="gone"):
        await pending
    with pytest.raises(ConnectionLost, match="gone"):
        await site.gets.request("a")
    site.reply(1, b"late")
    site.gets.empty()
    assert site.acks.first is None


async def test_a_name_that_is_too_long() -> None:
    """It is refused before the broker would close the connection because of it."""
    with pytest.raises(ValueError, match="256 bytes long"):
        await Site().gets.request("q" * 256)
