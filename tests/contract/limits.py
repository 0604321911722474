"""Queues with a bound on their length, and queues with priorities."""

import asyncio
from typing import Any

from pamqp.commands import Basic

from tests.contract.client import Channel
from tests.contract.environment import Environment, Row


async def _sent(channel: Channel, *bodies: bytes) -> list[str]:
    """Publish to `q` one by one, and say how each was confirmed."""
    outcomes = []
    for body in bodies:
        channel.publish("q", body)
        event = await channel.event()
        assert isinstance(event, Basic.Ack | Basic.Nack)
        outcomes.append(event.name.removeprefix("Basic."))
    return outcomes


async def _dead(env: Environment, count: int) -> list[tuple[bytes, Any]]:
    """Wait for dead letters in `dead`: bodies and reasons."""
    channel = await env.channel()
    await channel.consume("dead", no_ack=True)
    messages = [await channel.message() for _ in range(count)]
    return [(message.body, message.headers["x-death"][0]["reason"]) for message in messages]


_DEAD: dict[str, Any] = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}


async def a_full_queue_drops_its_head(env: Environment) -> object:
    """By default the oldest messages make room, and become dead letters."""
    channel = await env.channel(confirms=True)
    await channel.declare("dead")
    await channel.declare("q", x_max_length=2, **_DEAD)
    outcomes = await _sent(channel, b"1", b"2", b"3", b"4")
    return outcomes, await channel.drain("q"), await _dead(env, 2)


async def a_full_queue_may_reject(env: Environment) -> object:
    """With reject-publish the newest message is refused by a nack, and is no dead letter."""
    channel = await env.channel(confirms=True)
    await channel.declare("dead")
    await channel.declare("q", x_max_length=2, x_overflow="reject-publish", **_DEAD)
    outcomes = await _sent(channel, b"1", b"2", b"3")
    return outcomes, await channel.drain("q"), await channel.drain("dead")


async def a_full_queue_may_reject_to_the_dead_letters(env: Environment) -> object:
    """With reject-publish-dlx the message that is refused becomes a dead letter, too."""
    channel = await env.channel(confirms=True)
    await channel.declare("dead")
    await channel.declare("q", x_max_length=2, x_overflow="reject-publish-dlx", **_DEAD)
    outcomes = await _sent(channel, b"1", b"2", b"3")
    return outcomes, await channel.drain("q"), await _dead(env, 1)


async def one_full_queue_of_several_is_a_nack(env: Environment) -> object:
    """A message that one queue took and another refused is refused, and is in the first."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_max_length=0, x_overflow="reject-publish")
    await channel.declare("open")
    for queue in ("q", "open"):
        await channel.bind(queue, "amq.fanout")
    channel.publish("", b"x", exchange="amq.fanout")
    confirm = await channel.event()
    assert isinstance(confirm, Basic.Ack | Basic.Nack)
    return confirm.name, await channel.drain("open")


async def bytes_count_too(env: Environment) -> object:
    """x-max-length-bytes counts bodies, and drops from the head as many as it takes."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_max_length_bytes=10)
    await _sent(channel, b"1234", b"5678", b"90")
    full = (await channel.declare("q", passive=True)).message_count
    await _sent(channel, b"abcdef")
    after = await channel.drain("q")
    await _sent(channel, b"more than ten")
    return full, after, await channel.drain("q")


async def only_what_is_ready_counts(env: Environment) -> object:
    """Messages that are held make room for others."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_max_length=1, x_overflow="reject-publish")
    outcomes = await _sent(channel, b"1")
    await channel.take("q", no_ack=False)
    outcomes += await _sent(channel, b"2", b"3")
    return outcomes, await channel.drain("q")


async def a_requeue_overfills_a_queue_for_a_moment(env: Environment) -> object:
    """A message requeued to a full queue returns to the head, and is dropped first."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_max_length=1)
    await _sent(channel, b"1")
    held = await channel.take("q", no_ack=False)
    await _sent(channel, b"2")
    channel.reject(held.tag, requeue=True)
    return await channel.drain("q")


async def a_requeue_to_a_full_queue_is_dropped_before_it_is_delivered(env: Environment) -> object:
    """The limit is applied before delivery to a consumer."""
    channel = await env.channel()
    await channel.declare("q", x_max_length=1)
    await channel.qos(1)
    await channel.consume("q")
    channel.publish("q", b"1", b"2")
    held = await channel.message()
    await channel.settled("q")
    channel.reject(held.tag, requeue=True)
    return held.body, await channel.bodies(1)


async def a_length_of_zero_needs_a_ready_consumer(env: Environment) -> object:
    """A queue of length 0 keeps nothing, and delivers to ready consumers."""
    channel = await env.channel()
    await channel.declare("q", x_max_length=0)
    channel.publish("q", b"no consumer")
    nothing = await channel.get("q")
    await channel.consume("q", no_ack=True)
    channel.publish("q", b"with a consumer")
    return nothing, await channel.bodies(1)


async def higher_priorities_come_first(env: Environment) -> object:
    """By priority, then by age; none is 0, and what is above the maximum is the maximum."""
    channel = await env.channel()
    await channel.declare("q", x_max_priority=5)
    for priority in (1, None, 5, 0, 9, 1):
        number = str(priority).encode()
        channel.publish("q", number, priority=priority)
    return await channel.drain("q")


async def priorities_are_ignored_elsewhere(env: Environment) -> object:
    """A queue without x-max-priority is in the order of publishing."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", priority=1)
    channel.publish("q", b"9", priority=9)
    return await channel.drain("q")


async def a_requeue_returns_to_its_priority(env: Environment) -> object:
    """A requeued message is first of its priority, after the higher ones."""
    channel = await env.channel()
    await channel.declare("q", x_max_priority=5)
    channel.publish("q", b"low 1", b"low 2", priority=1)
    held = await channel.take("q", no_ack=False)
    channel.publish("q", b"high", priority=5)
    channel.reject(held.tag, requeue=True)
    return held.body, await channel.drain("q")


async def the_head_is_dropped_with_any_priority(env: Environment) -> object:
    """A full queue with priorities drops its head, which is the highest: a trap, and documented."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_max_priority=5, x_max_length=2)
    for body, priority in ((b"high", 5), (b"low", 1), (b"middle", 3)):
        channel.publish("q", body, priority=priority)
    return await channel.drain("q")


async def what_expires_may_wait_behind_a_higher_priority(env: Environment) -> object:
    """Messages expire at the head of the whole queue, not of their priority."""
    channel = await env.channel(confirms=True)
    await channel.declare("dead")
    await channel.declare("q", x_max_priority=5, **_DEAD)
    channel.publish("q", b"high", priority=5)
    channel.publish("q", b"low", priority=1, expiration="1")
    await channel.confirms(2)
    await asyncio.sleep(0.03)
    counted = (await channel.declare("q", passive=True)).message_count
    taken = (await channel.take("q")).body
    return counted, taken, await _dead(env, 1)


ROWS = [
    Row(
        a_full_queue_drops_its_head,
        (["Ack"] * 4, [b"3", b"4"], [(b"1", "maxlen"), (b"2", "maxlen")]),
    ),
    Row(a_full_queue_may_reject, (["Ack", "Ack", "Nack"], [b"1", b"2"], [])),
    Row(
        a_full_queue_may_reject_to_the_dead_letters,
        (["Ack", "Ack", "Nack"], [b"1", b"2"], [(b"3", "maxlen")]),
    ),
    Row(one_full_queue_of_several_is_a_nack, ("Basic.Nack", [b"x"])),
    Row(bytes_count_too, (3, [b"90", b"abcdef"], [])),
    Row(only_what_is_ready_counts, (["Ack", "Ack", "Nack"], [b"2"])),
    Row(a_requeue_overfills_a_queue_for_a_moment, [b"2"]),
    Row(a_requeue_to_a_full_queue_is_dropped_before_it_is_delivered, (b"1", [b"2"])),
    Row(a_length_of_zero_needs_a_ready_consumer, (None, [b"with a consumer"])),
    Row(higher_priorities_come_first, [b"5", b"9", b"1", b"1", b"None", b"0"]),
    Row(priorities_are_ignored_elsewhere, [b"1", b"9"]),
    Row(a_requeue_returns_to_its_priority, (b"low 1", [b"high", b"low 1", b"low 2"])),
    Row(the_head_is_dropped_with_any_priority, [b"middle", b"low"]),
    Row(what_expires_may_wait_behind_a_higher_priority, (2, b"high", [(b"low", "expired")])),
]
