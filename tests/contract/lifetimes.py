"""The end of queues: purge, delete, auto-delete, expiry."""

from pamqp.commands import Queue

from tests.contract.client import Channel, Message, refused, short
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import DEADLINE
from tests.waiting import eventually


async def _fresh(channel: Channel) -> Channel:
    """Another channel, where an error closed the one before."""
    return await channel.client.channel()


async def _exists(channel: Channel, queue: str) -> bool:
    """Say whether there is such a queue."""
    other = await _fresh(channel)
    return await refused(other.declare(queue, passive=True)) is None


async def _vanishes(channel: Channel, queue: str) -> bool:
    """Wait until a queue is deleted, and not only locked by its owner."""

    async def gone() -> bool:
        other = await _fresh(channel)
        return short(await refused(other.declare(queue, passive=True))) == "channel 404"

    return bool(await eventually(gone, what=f"{queue!r} vanishes"))


async def an_exclusive_queue_ends_with_its_connection(env: Environment) -> object:
    """The channel that declared it may close; the connection may not."""
    owner, other = await env.channel(), await env.channel()
    await owner.declare("q", exclusive=True)
    sibling = await _fresh(owner)
    await owner.close()
    survived = (await sibling.declare("q", passive=True)).queue
    await owner.client.close()
    return survived, await _vanishes(other, "q")


async def a_queue_deletes_itself_after_its_last_consumer(env: Environment) -> object:
    """Auto-delete waits for a consumer, and acts when the last one has gone."""
    channel = await env.channel()
    await channel.declare("q", auto_delete=True)
    await channel.get("q")
    tags = [await channel.consume("q") for _ in range(2)]
    await channel.cancel(tags[0])
    kept = await _exists(channel, "q")
    await channel.cancel(tags[1])
    return kept, await _vanishes(channel, "q")


async def a_queue_deletes_itself_with_its_consumers_channel(env: Environment) -> object:
    """The end of a channel is the end of its consumers."""
    channel, consumer = await env.channel(), await env.channel()
    await channel.declare("q", auto_delete=True)
    await consumer.consume("q")
    await consumer.close()
    return await _vanishes(channel, "q")


async def _returned(channel: Channel, queue: str) -> bool:
    """Return whether a mandatory message is returned: a check that does not count as use."""
    channel.publish(queue, b"x", mandatory=True)
    returned = isinstance(await channel.event(), Message)
    if returned:
        await channel.event()  # Its confirm.
    return returned


async def an_unused_queue_expires(env: Environment) -> object:
    """x-expires deletes a queue, with its messages, after this number of ms without use."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", x_expires=50)
    await eventually(lambda: _returned(channel, "q"), DEADLINE, what="'q' expires")
    return await _exists(channel, "q")


async def use_keeps_a_queue(env: Environment) -> object:
    """Getting, declaring and consuming are use, publishing is not."""
    channel = await env.channel(confirms=True)
    queues = ("got", "declared", "consumed", "published")
    # So long that this process may stand still for two seconds between one use and the next.
    for queue in queues:
        await channel.declare(queue, x_expires=3000)
    await channel.consume("consumed")

    async def expired() -> bool:
        await channel.get("got")
        await channel.declare("declared", x_expires=3000)
        return await _returned(channel, "published")

    await eventually(expired, DEADLINE, what="'published' expires")
    return [await _exists(channel, queue) for queue in queues]


async def purging_counts_what_is_ready(env: Environment) -> object:
    """Purge drops what is ready and leaves what is unacknowledged."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2", b"3")
    held = await channel.take("q", no_ack=False)
    purged = (await channel.call(Queue.Purge(0, "q"))).message_count
    channel.reject(held.tag, requeue=True)
    return purged, await channel.drain("q")


async def deleting_counts_what_is_ready(env: Environment) -> object:
    """delete-ok has the number of messages that were ready; a second time it is 0."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2", b"3")
    await channel.take("q", no_ack=False)
    return [(await channel.call(Queue.Delete(0, "q"))).message_count for _ in range(2)]


async def deleting_a_queue_in_use_or_not_empty(env: Environment) -> object:
    """if-unused and if-empty refuse, and the queue stays."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.consume("q")
    used = await refused((await _fresh(channel)).call(Queue.Delete(0, "q", True)))
    await channel.declare("p")
    channel.publish("p", b"x")
    await channel.declare("p", passive=True)
    filled = await refused((await _fresh(channel)).call(Queue.Delete(0, "p", False, True)))
    return used, filled, await _exists(channel, "q"), await _exists(channel, "p")


async def an_ack_after_the_queue_is_gone_is_no_error(env: Environment) -> object:
    """The delivery is known; its deleted queue does not matter."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x")
    message = await channel.take("q", no_ack=False)
    await channel.call(Queue.Delete(0, "q"))
    channel.ack(message.tag)
    return (await channel.declare("p")).queue


ROWS = [
    Row(an_exclusive_queue_ends_with_its_connection, ("q", True)),
    Row(a_queue_deletes_itself_after_its_last_consumer, (True, True)),
    Row(a_queue_deletes_itself_with_its_consumers_channel, True),
    Row(an_unused_queue_expires, False),
    Row(use_keeps_a_queue, [True, True, True, False]),
    Row(purging_counts_what_is_ready, (2, [b"1"])),
    Row(deleting_counts_what_is_ready, [2, 0]),
    Row(
        deleting_a_queue_in_use_or_not_empty,
        (
            "channel 406: PRECONDITION_FAILED - queue 'q' in vhost 'V' in use",
            "channel 406: PRECONDITION_FAILED - queue 'p' in vhost 'V' not empty",
            True,
            True,
        ),
    ),
    Row(an_ack_after_the_queue_is_gone_is_no_error, "p"),
]
