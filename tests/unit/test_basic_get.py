"""Asking for messages one by one: answers, and what becomes of questions without one."""

import asyncio
from struct import pack

import pytest

from workerkit.amqp.acks import Acks
from workerkit.amqp.basic_get import GetRequests
from workerkit.errors import ConnectionLost


class Site:
    """A channel whose broker is the test."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.lost: asyncio.Future[ConnectionLost] = asyncio.get_running_loop().create_future()
        self.acks = Acks(3, self.write, lambda flush: None)
        self.gets = GetRequests(3, self.acks, self.write, self.lost)

    def write(self, data: bytes) -> bool:
        self.written.append(data)
        return True

    def answer(self, tag: int, body: bytes) -> None:
        """A message, as the tap hands it over."""
        envelope = b"\x01" + b"\x04shop" + b"\x03key" + pack(">I", 9)
        self.gets.delivered(b"\0" + pack(">Q", tag) + envelope, b"\0\0", body)


async def test_a_question_on_the_wire() -> None:
    """basic.get of the queue, to be acknowledged."""
    site = Site()
    _ = site.gets.request("orders")

    assert site.written == [b"\x01\0\x03\0\0\0\x0e\0\x3c\0\x46\0\0\x06orders\0\xce"]


async def test_answers_come_in_the_order_of_the_questions() -> None:
    """Each question has its own, a message or none."""
    site = Site()
    asked = [site.gets.request(queue) for queue in ("a", "b", "c")]
    site.answer(1, b"first")
    site.gets.empty()
    site.answer(2, b"second")

    first, none, second = [await each for each in asked]
    assert first is not None
    assert (first.queue, first.raw, first.tag, first.redelivered) == ("a", b"first", 1, True)
    assert (first.exchange, first.routing_key) == ("shop", "key")
    assert none is None
    assert second is not None
    assert (second.queue, second.raw) == ("c", b"second")


async def test_who_does_not_wait_any_more_takes_no_other_answer() -> None:
    """A cancelled question keeps its place."""
    site = Site()
    given_up, other = site.gets.request("a"), site.gets.request("b")
    given_up.cancel()
    site.answer(1, b"first")
    site.answer(2, b"second")

    message = await other
    assert message is not None
    assert message.raw == b"second"


async def test_a_channel_that_is_lost_answers_nobody() -> None:
    """Questions fail with the reason, new ones too, and what still comes is nobody's."""
    site = Site()
    asked = site.gets.request("a")
    site.lost.set_result(ConnectionLost("gone"))

    with pytest.raises(ConnectionLost, match="gone"):
        await asked
    with pytest.raises(ConnectionLost, match="gone"):
        await site.gets.request("a")
    site.answer(1, b"late")
    site.gets.empty()
    assert site.acks.first is None


async def test_a_name_that_no_queue_can_have() -> None:
    """It is refused before the broker would close the connection over it."""
    with pytest.raises(ValueError, match="256 bytes long"):
        await Site().gets.request("q" * 256)
