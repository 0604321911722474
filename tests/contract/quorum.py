"""Quorum queues: what differs from classic ones, above all that they count deliveries."""

from typing import Any

from pamqp.commands import Basic

from tests.contract.client import Channel, refused
from tests.contract.consuming import replace_active
from tests.contract.environment import Environment, Row


async def _declared(env: Environment, **arguments: Any) -> Channel:
    """A quorum queue `q`, and the queue `dead`."""
    channel = await env.channel(confirms=True)
    await channel.declare("q", durable=True, x_queue_type="quorum", **arguments)
    await channel.declare("dead")
    return channel


async def _send(channel: Channel, *bodies: bytes, queue: str = "q") -> None:
    """Publish, and return when the queue has it all."""
    channel.publish(queue, *bodies)
    confirmed = 0
    while confirmed < len(bodies):
        event = await channel.event()
        assert isinstance(event, Basic.Ack)
        confirmed = event.delivery_tag or 0


async def requeues_are_counted(env: Environment) -> object:
    """x-delivery-count is 0 first, and then counts requeues; since 4.0 it is absent first.

    A delivery to a consumer never had the zero.
    """
    channel = await _declared(env)
    await _send(channel, b"x")
    counts = []
    for _ in range(3):
        message = await channel.take("q", no_ack=False)
        counts.append((message.headers.get("x-delivery-count"), message.method.redelivered))
        channel.reject(message.tag, requeue=True)
    await channel.take("q")
    await _send(channel, b"y")
    await channel.consume("q")
    return counts, (await channel.message()).headers


async def a_lost_consumer_counts_too(env: Environment) -> object:
    """A closed channel requeues its messages, which counts."""
    channel = await _declared(env)
    await _send(channel, b"x")
    other = await env.channel()
    await other.consume("q")
    await other.message()
    await other.close()
    return (await channel.take("q")).headers.get("x-delivery-count")


async def a_limit_ends_the_requeues(env: Environment) -> object:
    """With x-delivery-limit, a message requeued more often is dropped."""
    channel = await _declared(env, x_delivery_limit=2)
    await _send(channel, b"bad", b"good")
    seen = []
    for _ in range(4):
        message = await channel.take("q", no_ack=False)
        seen.append(message.body)
        channel.reject(message.tag, requeue=True)
    return seen


async def a_limit_makes_dead_letters(env: Environment) -> object:
    """A message over the limit becomes a dead letter for that reason."""
    table: dict[str, Any] = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}
    channel = await _declared(env, x_delivery_limit=1, **table)
    await _send(channel, b"x")
    for _ in range(2):
        message = await channel.take("q", no_ack=False)
        channel.reject(message.tag, requeue=True)
    death = (await channel.take("dead")).headers["x-death"][0]
    return death["reason"], death["count"], death["queue"]


async def a_reject_makes_a_dead_letter(env: Environment) -> object:
    """Rejecting and expiry work as with classic queues."""
    table: dict[str, Any] = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}
    channel = await _declared(env, x_message_ttl=60000, **table)
    await _send(channel, b"x")
    channel.reject((await channel.take("q", no_ack=False)).tag, requeue=False)
    first = await channel.take("dead")
    channel.publish("q", b"y", expiration="1")
    second = await channel.take("dead")
    return [message.headers["x-death"][0]["reason"] for message in (first, second)]


async def requeued_messages_come_last_or_first(env: Environment) -> object:
    """Requeued messages go to the tail, but to the head in a queue with a delivery limit.

    Since 4.0 every quorum queue has a limit.
    """
    orders = []
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "limited": {"x_delivery_limit": 9}}
    for queue, table in kinds.items():
        channel = await env.channel(confirms=True)
        await channel.declare(queue, durable=True, x_queue_type="quorum", **table)
        await _send(channel, b"1", b"2", b"3", queue=queue)
        await channel.qos(2)
        await channel.consume(queue)
        tag = [(await channel.message()).tag for _ in range(2)][-1]
        channel.nack(tag, multiple=True, requeue=True)
        again = [await channel.message() for _ in range(2)]
        channel.ack(again[-1].tag, multiple=True)
        orders.append([*(message.body for message in again), *await channel.bodies(1)])
    return orders


async def prefetch_works(env: Environment) -> object:
    """A consumer's prefetch count holds."""
    channel = await _declared(env)
    await _send(channel, b"1", b"2", b"3")
    await channel.qos(1)
    await channel.consume("q")
    bodies = []
    for _ in range(3):
        message = await channel.message()
        bodies.append(message.body)
        channel.ack(message.tag)
    return bodies


async def shared_prefetch_is_refused(env: Environment) -> object:
    """Quorum queues know no global prefetch: consuming with one ends the connection.

    In 4.3 nothing has it: the count is each consumer's.
    """
    channel = await _declared(env)
    await channel.qos(1, shared=True)
    return await refused(channel.consume("q"))


async def what_a_quorum_queue_cannot_be(env: Environment) -> object:
    """It is durable, shared and permanent, and has no priorities."""
    client = await env.client()

    async def declare(durable: bool = True, **options: Any) -> str | None:
        channel = await client.channel()
        call = channel.declare("q", durable=durable, x_queue_type="quorum", **options)
        return await refused(call)

    return {
        "transient": await declare(durable=False),
        "exclusive": await declare(exclusive=True),
        "auto-delete": await declare(auto_delete=True),
        "all of it": await declare(durable=False, exclusive=True, auto_delete=True),
        "priorities": await declare(x_max_priority=5),
    }


async def one_active_consumer_of_a_quorum_queue(env: Environment) -> object:
    """A single active consumer is replaced when it ends."""
    channel = await _declared(env, x_single_active_consumer=True)
    for tag in ("a", "b"):
        await channel.consume("q", tag, no_ack=True)
    other = await env.channel()
    tags = []
    for end in ("a", "b"):
        other.publish("q", b"x")
        tags.append((await channel.message()).method.consumer_tag)
        await channel.cancel(end)
    return tags


async def a_lost_active_consumer_of_a_quorum_queue_is_replaced(env: Environment) -> object:
    """The next one in order gets the messages of the lost one, then the one after that."""
    first = await env.channel()  # Without confirms, which would come among the messages.
    await first.declare("q", durable=True, x_queue_type="quorum", x_single_active_consumer=True)
    return await replace_active(first, await env.channel(), await env.channel())


ROWS = [
    Row(
        a_lost_active_consumer_of_a_quorum_queue_is_replaced,
        ([], [(b"1", True), (b"2", True), (b"2", True), (b"3", False)]),
    ),
    Row(
        requeues_are_counted,
        ([(0, False), (1, True), (2, True)], {}),
        {"4.0": ([(None, False), (1, True), (2, True)], {})},
    ),
    Row(a_lost_consumer_counts_too, 1),
    Row(a_limit_ends_the_requeues, [b"bad", b"bad", b"bad", b"good"]),
    Row(a_limit_makes_dead_letters, ("delivery_limit", 1, "q")),
    Row(a_reject_makes_a_dead_letter, ["rejected", "expired"]),
    Row(
        requeued_messages_come_last_or_first,
        [[b"3", b"1", b"2"], [b"1", b"2", b"3"]],
        {"4.0": [[b"1", b"2", b"3"], [b"1", b"2", b"3"]]},
    ),
    Row(prefetch_works, [b"1", b"2", b"3"]),
    Row(
        shared_prefetch_is_refused,
        "connection 540: NOT_IMPLEMENTED - queue 'q' in vhost 'V' does not support global qos",
        {"4.3": None},
    ),
    Row(
        what_a_quorum_queue_cannot_be,
        {
            "transient": (
                "channel 406: PRECONDITION_FAILED - invalid property 'non-durable' for queue "
                "'q' in vhost 'V'"
            ),
            "exclusive": (
                "channel 406: PRECONDITION_FAILED - invalid property 'exclusive-owner' for "
                "queue 'q' in vhost 'V'"
            ),
            "auto-delete": (
                "channel 406: PRECONDITION_FAILED - invalid property 'auto-delete' for queue "
                "'q' in vhost 'V'"
            ),
            "all of it": (
                "channel 406: PRECONDITION_FAILED - invalid property 'auto-delete' for queue 'q'"
                " in vhost 'V'"
            ),
            "priorities": (
                "channel 406: PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue "
                "'q' in vhost 'V' of queue type rabbit_quorum_queue"
            ),
        },
    ),
    Row(one_active_consumer_of_a_quorum_queue, ["a", "b"]),
]
