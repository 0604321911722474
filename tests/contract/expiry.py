"""Messages that expire, and in which order it happens."""

import asyncio
import time
from typing import Any

from tests.contract.client import Channel, refused, short
from tests.contract.environment import Environment, Row


async def _dying(channel: Channel, queue: str = "q", **arguments: Any) -> None:
    """Declare a queue whose dead letters go to the queue `dead`, which is consumed."""
    await channel.declare("dead")
    table = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"} | arguments
    await channel.declare(queue, **table)
    await channel.consume("dead", no_ack=True)


async def a_queues_ttl_ends_its_messages(env: Environment) -> object:
    """x-message-ttl drops a message after this number of milliseconds, and not before."""
    channel = await env.channel()
    await _dying(channel, x_message_ttl=50)
    began = time.monotonic()
    channel.publish("q", b"x")
    body = (await channel.message()).body
    in_time = time.monotonic() - began > 0.045
    return body, in_time, (await channel.declare("q", passive=True)).message_count


async def a_message_may_have_its_own_ttl(env: Environment) -> object:
    """The property expiration, a text of milliseconds, does the same for one message."""
    channel = await env.channel()
    await _dying(channel)
    channel.publish("q", b"short", expiration="30")
    channel.publish("q", b"for ever")
    return (await channel.message()).body, await channel.drain("q")


async def the_shorter_ttl_counts(env: Environment) -> object:
    """The shorter TTL of queue and message applies."""
    channel = await env.channel()
    await _dying(channel, "long", x_message_ttl=60000)
    channel.publish("long", b"by message", expiration="20")
    first = (await channel.message()).body
    await channel.declare(
        "q", x_message_ttl=20, x_dead_letter_exchange="", x_dead_letter_routing_key="dead"
    )
    channel.publish("q", b"by queue", expiration="60000")
    return first, (await channel.message()).body


async def messages_expire_only_at_the_head(env: Environment) -> object:
    """An expired message after one that is not expired stays, and is counted."""
    channel = await env.channel(confirms=True)
    await _dying(channel)
    channel.publish("q", b"first")
    channel.publish("q", b"second", expiration="1")
    channel.publish("q", b"third")
    await channel.confirms(3)
    await asyncio.sleep(0.05)
    counted = (await channel.declare("q", passive=True)).message_count
    early = channel.waiting()
    first = await channel.get("q", no_ack=True)
    dead = (await channel.message()).body
    return counted, early, first and first.body, dead, await channel.drain("q")


async def an_expired_message_is_not_delivered(env: Environment) -> object:
    """An expired message is delivered neither to a get nor to a later consumer."""
    channel = await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", b"first")
    channel.publish("q", b"gone", expiration="1")
    channel.publish("q", b"last")
    await channel.confirms(3)
    await asyncio.sleep(0.03)
    await channel.consume("q", no_ack=True)
    return await channel.bodies(2)


async def a_ttl_of_zero_needs_a_ready_consumer(env: Environment) -> object:
    """A message with ttl 0 goes to a consumer that is ready, or expires immediately."""
    channel = await env.channel()
    await channel.declare("q", x_message_ttl=0)
    channel.publish("q", b"no consumer")
    nothing = await channel.get("q")
    await channel.consume("q", no_ack=True)
    channel.publish("q", b"with a consumer")
    return nothing, await channel.bodies(1)


async def what_is_unacknowledged_does_not_expire(env: Environment) -> object:
    """A message that is held does not expire; requeued too late, it expires."""
    channel = await env.channel()
    await _dying(channel, x_message_ttl=30)
    await channel.consume("q", "c")
    channel.publish("q", b"x")
    held = await channel.message()
    await channel.cancel("c")
    await asyncio.sleep(0.08)
    early = channel.waiting()
    channel.reject(held.tag, requeue=True)
    return early, (await channel.message()).body


async def a_wrong_expiration_is_406(env: Environment) -> object:
    """The expiration is a text of a whole number, not below zero."""
    texts = {}
    for expiration in ("-1", "soon", "1.5"):
        channel = await env.channel()
        await channel.declare("q")
        channel.publish("q", b"x", expiration=expiration)
        texts[expiration] = await channel.refused()
    return texts


async def a_ttl_beyond_ten_years_is_406(env: Environment) -> object:
    """Ten years of milliseconds are the most, as argument and as property."""
    most = 10 * 365 * 24 * 3600 * 1000
    channel = await env.channel()
    await channel.declare("q", x_message_ttl=most, x_expires=most)
    channel.publish("q", b"x", expiration=str(most))
    taken = (await channel.take("q")).body
    channel.publish("q", b"x", expiration=str(most + 1))
    texts = [await channel.refused()]
    beyond: list[dict[str, Any]] = [{"x_message_ttl": most + 1}, {"x_expires": most + 1}]
    for arguments in beyond:
        channel = await channel.client.channel()
        texts.append(short(await refused(channel.declare("p", **arguments))))
    return taken, texts


async def a_dead_letter_has_no_expiration(env: Environment) -> object:
    """The property is removed, so it does not expire again; the header keeps it."""
    channel = await env.channel()
    await _dying(channel)
    channel.publish("q", b"x", expiration="10", delivery_mode=2, message_id="m")
    message = await channel.message()
    death = message.headers["x-death"][0]
    properties = message.properties
    kept = properties.delivery_mode, properties.message_id
    return properties.expiration, death["original-expiration"], *kept


_INVALID = "channel 406: PRECONDITION_FAILED - invalid expiration "

ROWS = [
    Row(a_queues_ttl_ends_its_messages, (b"x", True, 0)),
    Row(a_message_may_have_its_own_ttl, (b"short", [b"for ever"])),
    Row(the_shorter_ttl_counts, (b"by message", b"by queue")),
    Row(messages_expire_only_at_the_head, (3, [], b"first", b"second", [b"third"])),
    Row(an_expired_message_is_not_delivered, [b"first", b"last"]),
    Row(a_ttl_of_zero_needs_a_ready_consumer, (None, [b"with a consumer"])),
    Row(what_is_unacknowledged_does_not_expire, ([], b"x")),
    Row(
        a_wrong_expiration_is_406,
        {
            "-1": _INVALID + "'-1': {value_negative,-1}",
            "soon": _INVALID + "'soon': no_integer",
            "1.5": _INVALID + "'1.5': {leftover_string,\".5\"}",
        },
    ),
    Row(
        a_ttl_beyond_ten_years_is_406,
        (
            b"x",
            [
                _INVALID + "'315360000001': {value_too_large,315360000001}",
                "channel 406",
                "channel 406",
            ],
        ),
    ),
    Row(a_dead_letter_has_no_expiration, (None, "10", 2, "m")),
]
