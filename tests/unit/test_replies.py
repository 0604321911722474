"""Late replies, channel numbers, and the reuse of channels."""

import asyncio

import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from workerkit.amqp.channel_numbers import ChannelLimit, ChannelNumbers, parse_limit
from workerkit.amqp.replies import Replies, refusal
from workerkit.amqp.scratch_channels import ScratchChannels
from workerkit.errors import BrokerRefused, ConnectionLost, QueueInUse

SOON = 0.02


class Socket:
    """The time of the last bytes."""

    last_read = 0.0


async def never() -> None:
    """A reply that never arrives."""
    await asyncio.get_running_loop().create_future()


async def refused() -> None:
    """A reply that refuses the request."""
    raise ChannelNotFoundEntity("no queue")


async def test_a_late_reply_on_a_silent_connection_drops_it() -> None:
    """Nothing has arrived since the request was sent."""
    reasons: list[str] = []
    replies = Replies(Socket(), reasons.append)

    with pytest.raises(ConnectionLost, match=r"no answer to x within 0\.02 s"):
        await replies.wait("x", never(), SOON)
    assert reasons == ["no answer to x within 0.02 s, and no other bytes arrived"]


async def test_a_late_reply_fails_only_its_request_while_bytes_arrive() -> None:
    """The connection stays open."""
    reasons: list[str] = []
    socket = Socket()
    replies = Replies(socket, reasons.append)
    socket.last_read = float("inf")

    with pytest.raises(ConnectionLost, match="no answer to x"):
        await replies.wait("x", never(), 0.2)
    assert reasons == []


async def test_a_connection_without_replies_is_dropped() -> None:
    """Although heartbeats arrive. A refusal is a reply, and the time starts again."""
    reasons: list[str] = []
    socket = Socket()
    replies = Replies(socket, reasons.append)
    socket.last_read = float("inf")
    with pytest.raises(ConnectionLost):
        await replies.wait("x", never(), 0.2)
    with pytest.raises(BrokerRefused):
        await replies.wait("y", refused(), 0.2)
    with pytest.raises(ConnectionLost):
        await replies.wait("x", never(), 0.2)
    assert reasons == []

    with pytest.raises(ConnectionLost):
        await replies.wait("x", never(), 0.2)

    assert reasons == ["no answer to x, and none to any other request in the last seconds"]


def test_an_exclusive_consumer_is_not_a_missing_permission() -> None:
    """RabbitMQ uses the same code for both."""
    text = "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"

    assert isinstance(refusal("x", ChannelAccessRefused(text)), QueueInUse)
    error = refusal("x", ChannelAccessRefused("ACCESS_REFUSED - read access to queue 'q' refused"))
    assert isinstance(error, BrokerRefused)
    assert error.code == 403


class OpenChannel:
    """A channel that is open until the test closes it."""

    def __init__(self) -> None:
        self.is_closed = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closes = 0

    async def close(self) -> None:
        """Count."""
        self.closes += 1


async def test_a_number_is_free_once_its_channel_has_confirmed_the_close() -> None:
    """The lowest number is used; if all are in use, there is none."""
    used: dict[int, OpenChannel] = {}
    numbers = ChannelNumbers(3, used, scratch=16)
    for number in (1, 2, 3):
        assert numbers.free() == number
        used[number] = OpenChannel()
        numbers.assign(number)
    assert numbers.free() is None

    channel = used.pop(2)
    assert numbers.free() is None
    channel.is_closed = True
    assert numbers.free() == 2


@pytest.mark.parametrize(
    ("channel_max", "room", "scratch"),
    [(0, 65_519, 16), (2047, 2031, 16), (16, 14, 2), (4, 3, 1), (1, 1, 1)],
)
def test_the_limit_of_consumers(channel_max: int, room: int, scratch: int) -> None:
    """Some channels are reserved for requests, but never all."""
    numbers = ChannelNumbers(channel_max, {}, scratch=16)

    assert (numbers.max_consumers, numbers.scratch) == (room, scratch)
    taken = sum(numbers.reserve_consumer() for _ in range(70_000))
    assert taken == room
    numbers.release_consumer()
    assert numbers.reserve_consumer()


async def test_scratch_channels_are_reused_and_closed_after_the_last_turn() -> None:
    """A channel that was lost, or on which a request was refused, is not reused."""
    created: list[OpenChannel] = []

    async def create() -> OpenChannel:
        created.append(OpenChannel())
        return created[-1]

    scratch = ScratchChannels(create, max_setups=2)
    async with scratch.turn():
        async with scratch.channel() as first:
            pass
        async with scratch.channel() as again:
            pass
        assert again is first
        with pytest.raises(BrokerRefused):
            async with scratch.channel():
                raise BrokerRefused("no", 404)
        assert first.closes == 1
        async with scratch.channel() as second:
            pass
        second.lost.set_result(None)
        async with scratch.channel() as third:
            pass
        assert third.closes == 0

    assert len(created) == 3
    assert third.closes == 1


async def test_turns_are_limited() -> None:
    """Other callers wait."""
    running, most = 0, 0

    async def create() -> OpenChannel:
        return OpenChannel()

    scratch = ScratchChannels(create, max_setups=3)

    async def work() -> None:
        nonlocal running, most
        async with scratch.turn():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(work() for _ in range(20)))

    assert most == 3


def test_a_limit_that_is_reached_again_is_reduced() -> None:
    """Two channels are for the publisher; the channels of other connections are not known."""
    text = (
        "number of channels opened for user 'x' has reached the maximum allowed user limit of (10)"
    )
    first = parse_limit(f"NOT_ALLOWED - {text}", None)

    assert first == ChannelLimit(8, f"the broker's limit of 10 channels (NOT_ALLOWED - {text})")
    again = parse_limit(text, first)
    assert again is not None
    assert again.most == 7
    newer = text.replace("(10)", "10")  # RabbitMQ 4.3.
    assert parse_limit(newer, None) == ChannelLimit(
        8, f"the broker's limit of 10 channels ({newer})"
    )
    assert parse_limit("CONNECTION_FORCED - limit of (10)", None) is None
    assert parse_limit(text, ChannelLimit(1, "")) == ChannelLimit(
        1, f"the broker's limit of 10 channels ({text})"
    )
