"""Consumers: their deliveries, order, prefetch and cancellation."""

from pamqp.commands import Basic, Queue

from tests.contract.client import Channel, refused
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import CAPABILITIES


async def a_delivery_says_where_it_comes_from(env: Environment) -> object:
    """A delivery has consumer tag, delivery tag, exchange, routing key and the redelivered flag."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.bind("q", "amq.topic", "#")
    channel.publish("a.b", b"x", exchange="amq.topic")
    await channel.consume("q", "mine")
    method: Basic.Deliver = (await channel.message()).method
    return (
        method.consumer_tag,
        method.delivery_tag,
        method.exchange,
        method.routing_key,
        method.redelivered,
    )


async def a_get_says_how_many_are_left(env: Environment) -> object:
    """get-ok has the number of messages after this one; an empty queue replies get-empty."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    counts = []
    while message := await channel.get("q"):
        counts.append((message.tag, message.method.message_count, message.method.redelivered))
    return counts


async def a_consumer_gets_messages_in_order(env: Environment) -> object:
    """Messages come in the order in which they were published, old ones first."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2", b"3")
    await channel.consume("q")
    early = await channel.bodies(3)
    channel.publish("q", b"4", b"5")
    return early + await channel.bodies(2)


async def the_broker_names_a_consumer(env: Environment) -> object:
    """The broker generates a tag if it is empty."""
    channel = await env.channel()
    await channel.declare("q")
    tags = {await channel.consume("q") for _ in range(2)}
    return len(tags), all(tag.startswith("amq.ctag-") for tag in tags)


async def a_tag_used_twice_ends_the_connection(env: Environment) -> object:
    """A consumer tag is unique on its channel; on another channel it is another one."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.consume("q", "c")
    other = await channel.client.channel()
    elsewhere = await other.consume("q", "c")
    return elsewhere, await refused(channel.consume("q", "c"))


async def a_tag_is_free_after_the_cancel(env: Environment) -> object:
    """A cancelled consumer's tag may be used again."""
    channel = await env.channel()
    await channel.declare("q")
    for _ in range(2):
        await channel.consume("q", "c")
        await channel.cancel("c")
    return (await channel.declare("q")).consumer_count


async def cancelling_an_unknown_consumer_gets_a_reply(env: Environment) -> object:
    """Cancelling an unknown consumer gets cancel-ok."""
    channel = await env.channel()
    return (await channel.call(Basic.Cancel("nobody"))).consumer_tag


async def what_a_cancelled_consumer_holds_stays_unacknowledged(env: Environment) -> object:
    """A cancel stops deliveries and requeues nothing; the acks still count."""
    channel, other = await env.channel(), await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    await channel.consume("q", "c")
    first, second = await channel.message(), await channel.message()
    await channel.cancel("c")
    channel.publish("q", b"3")
    rest = (await channel.take("q")).body
    channel.ack(first.tag)
    await channel.close()
    back = await other.take("q")
    return rest, back.body == second.body, back.method.redelivered


async def a_deleted_queue_cancels_its_consumers(env: Environment) -> object:
    """Each consumer of a deleted queue gets basic.cancel, for any deletion."""
    channel, other = await env.channel(), await env.channel()
    await channel.declare("q")
    await channel.consume("q", "c")
    await other.consume("q", "d")
    await channel.call(Queue.Delete(0, "q"))
    events = [await channel.event(), await other.event()]
    assert all(isinstance(event, Basic.Cancel) for event in events)
    return [event.consumer_tag for event in events if isinstance(event, Basic.Cancel)]


async def an_old_client_gets_no_cancel(env: Environment) -> object:
    """Without the capability `consumer_cancel_notify`, a consumer ends without basic.cancel."""
    abilities = CAPABILITIES | {"consumer_cancel_notify": False}
    channel = await (await env.client(capabilities=abilities)).channel()
    await channel.declare("q")
    await channel.declare("other")
    await channel.consume("q")
    await channel.consume("other", no_ack=True)
    await channel.call(Queue.Delete(0, "q"))
    channel.publish("other", b"next")
    return (await channel.message()).body


async def consumers_take_turns(env: Environment) -> object:
    """Several consumers of one queue get its messages in turn."""
    channel = await env.channel()
    await channel.declare("q")
    for tag in ("a", "b", "c"):
        await channel.consume("q", tag, no_ack=True)
    channel.publish("q", *(bytes([n]) for n in range(9)))
    messages = [await channel.message() for _ in range(9)]
    tags = [message.method.consumer_tag for message in messages]
    return sorted(tags), len(set(tags[:3])), tags[:3] == tags[3:6] == tags[6:]


async def a_full_consumer_is_skipped(env: Environment) -> object:
    """A consumer at its prefetch count loses its turn to the others."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(1)
    await channel.consume("q", "a")
    await channel.qos(0)
    await channel.consume("q", "b")
    channel.publish("q", b"1", b"2", b"3", b"4")
    messages = [await channel.message() for _ in range(4)]
    return sorted(message.method.consumer_tag for message in messages)


async def a_full_consumer_comes_last(env: Environment) -> object:
    """A consumer that is full at its turn loses it, and comes last when it has room again."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(1)
    await channel.consume("q", "small")
    await channel.qos(0)
    await channel.consume("q", "large")
    order = []
    for number in range(5):
        channel.publish("q", b"x")
        message = await channel.message()
        order.append(message.method.consumer_tag)
        if number == 2:  # "small" was passed over just now
            channel.ack(1)
            await channel.settled("q")
    return order


async def priority_decides_among_consumers(env: Environment) -> object:
    """A consumer of higher priority gets everything until it is full, then the next one."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(2)
    await channel.consume("q", "low", x_priority=-1)
    await channel.consume("q", "normal")
    await channel.consume("q", "high", x_priority=10)
    channel.publish("q", b"1", b"2", b"3", b"4", b"5", b"6")
    messages = [await channel.message() for _ in range(6)]
    return [message.method.consumer_tag for message in messages]


async def a_wrong_priority_is_406(env: Environment) -> object:
    """A consumer's priority is a whole number."""
    channel = await env.channel()
    await channel.declare("q")
    return await refused(channel.consume("q", x_priority="high"))


async def an_exclusive_consumer_is_alone(env: Environment) -> object:
    """No second consumer next to an exclusive one, and no exclusive one next to another."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.declare("p")
    await channel.consume("q", "alone", exclusive=True)
    await channel.consume("p")
    second = await refused((await channel.client.channel()).consume("q"))
    late = await refused((await channel.client.channel()).consume("p", exclusive=True))
    await channel.cancel("alone")
    return second, late, await channel.consume("q", "next")


async def no_ack_counts_as_acknowledged(env: Environment) -> object:
    """A message for a no-ack consumer is removed, even if the consumer then fails."""
    channel, other = await env.channel(), await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    await channel.consume("q", no_ack=True)
    await channel.bodies(2)
    channel.client.drop()
    return (await other.declare("q")).message_count, await other.drain("q")


async def one_active_consumer(env: Environment) -> object:
    """With a single active consumer the first one gets all, and the next takes over in its turn."""
    channel = await env.channel()
    await channel.declare("q", x_single_active_consumer=True)
    for tag in ("a", "b", "c"):
        await channel.consume("q", tag, no_ack=True)
    order = []
    for end in ("a", "b", "c"):
        channel.publish("q", b"1", b"2")
        messages = [await channel.message() for _ in range(2)]
        order += [message.method.consumer_tag for message in messages]
        await channel.cancel(end)
    return order


async def the_next_active_consumer_gets_what_was_left(env: Environment) -> object:
    """What the active consumer held when its channel closed goes to its successor, in order."""
    first, second = await env.channel(), await env.channel()
    await first.declare("q", x_single_active_consumer=True)
    await first.consume("q", "a")
    await second.consume("q", "b")
    first.publish("q", b"1", b"2")
    await first.bodies(2)
    first.publish("q", b"3")
    await first.message()
    early = second.waiting()
    await first.close()
    messages = [await second.message() for _ in range(3)]
    return early, [(message.body, message.method.redelivered) for message in messages]


async def a_lost_active_consumer_is_replaced(env: Environment) -> object:
    """The next one in order gets the messages of the lost one, then the one after it."""
    first, second, third = [await env.channel() for _ in range(3)]
    await first.declare("q", x_single_active_consumer=True)
    return await replace_active(first, second, third)


async def replace_active(first: Channel, second: Channel, third: Channel) -> object:
    """Three connections that consume `q`; the active one is lost, and then the next."""
    for channel in (first, second, third):
        await channel.consume("q", "c")
    first.publish("q", b"1", b"2")
    await first.bodies(2)
    first.client.drop()
    found = [await second.message() for _ in range(2)]
    second.ack(found[0].tag)
    await second.settled("q")
    early = third.waiting()
    second.client.drop()
    found.append(await third.message())
    third.publish("q", b"3")
    found.append(await third.message())
    return early, [(each.body, each.method.redelivered) for each in found]


async def a_cancelled_active_consumer_keeps_what_it_holds(env: Environment) -> object:
    """Its successor gets new messages only, until the channel of the first one closes."""
    first, second = await env.channel(), await env.channel()
    await first.declare("q", x_single_active_consumer=True)
    await first.consume("q", "a")
    await second.consume("q", "b")
    first.publish("q", b"1")
    await first.message()
    await first.cancel("a")
    first.publish("q", b"2")
    new = (await second.message()).body
    await first.close()
    return new, (await second.message()).body


async def a_waiting_consumer_that_ends_is_skipped(env: Environment) -> object:
    """The active one continues, and is followed by the one that still waits."""
    first, second, third = [await env.channel() for _ in range(3)]
    await first.declare("q", x_single_active_consumer=True)
    for channel in (first, second, third):
        await channel.consume("q", "c")
    await second.cancel("c")
    first.publish("q", b"1")
    bodies = [(await first.message()).body]
    await first.close()
    return [*bodies, (await third.message()).body]


async def an_active_consumer_that_is_full_stays_the_only_one(env: Environment) -> object:
    """A full prefetch does not make another consumer active."""
    channel = await env.channel()
    await channel.declare("q", x_single_active_consumer=True)
    await channel.qos(1)
    await channel.consume("q", "a")
    await channel.consume("q", "b")
    channel.publish("q", b"1", b"2")
    first = await channel.message()
    await channel.settled("q")
    waiting = channel.waiting()
    channel.ack(first.tag)
    second = await channel.message()
    return first.method.consumer_tag, waiting, second.method.consumer_tag


async def an_exclusive_consumer_cannot_be_a_single_active_one(env: Environment) -> object:
    """The two modes exclude each other."""
    channel = await env.channel()
    await channel.declare("q", x_single_active_consumer=True)
    return await refused(channel.consume("q", exclusive=True))


async def consuming_with_nowait(env: Environment) -> object:
    """There is no consume-ok; deliveries have the requested tag."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x")
    channel.send(Basic.Consume(0, "q", "c", nowait=True))
    message = await channel.message()
    return message.method.consumer_tag, message.body


ROWS = [
    Row(a_delivery_says_where_it_comes_from, ("mine", 1, "amq.topic", "a.b", False)),
    Row(a_get_says_how_many_are_left, [(1, 1, False), (2, 0, False)]),
    Row(a_consumer_gets_messages_in_order, [b"1", b"2", b"3", b"4", b"5"]),
    Row(the_broker_names_a_consumer, (2, True)),
    Row(
        a_tag_used_twice_ends_the_connection,
        ("c", "connection 530: NOT_ALLOWED - attempt to reuse consumer tag 'c'"),
    ),
    Row(a_tag_is_free_after_the_cancel, 0),
    Row(cancelling_an_unknown_consumer_gets_a_reply, "nobody"),
    Row(what_a_cancelled_consumer_holds_stays_unacknowledged, (b"3", True, True)),
    Row(a_deleted_queue_cancels_its_consumers, ["c", "d"]),
    Row(an_old_client_gets_no_cancel, b"next"),
    Row(consumers_take_turns, (["a"] * 3 + ["b"] * 3 + ["c"] * 3, 3, True)),
    Row(a_full_consumer_is_skipped, ["a", "b", "b", "b"]),
    Row(
        a_full_consumer_comes_last,
        ["small", "large", "large", "large", "small"],
    ),
    Row(priority_decides_among_consumers, ["high", "high", "normal", "normal", "low", "low"]),
    Row(
        a_wrong_priority_is_406,
        "channel 406: PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost 'V':"
        ' "expected integer, got longstr"',
    ),
    Row(
        an_exclusive_consumer_is_alone,
        (
            "channel 403: ACCESS_REFUSED - queue 'q' in vhost 'V' in exclusive use",
            "channel 403: ACCESS_REFUSED - queue 'p' in vhost 'V' in exclusive use",
            "next",
        ),
    ),
    Row(no_ack_counts_as_acknowledged, (0, [])),
    Row(one_active_consumer, ["a", "a", "b", "b", "c", "c"]),
    Row(
        the_next_active_consumer_gets_what_was_left,
        ([], [(b"1", True), (b"2", True), (b"3", True)]),
    ),
    Row(
        a_lost_active_consumer_is_replaced,
        ([], [(b"1", True), (b"2", True), (b"2", True), (b"3", False)]),
    ),
    Row(a_cancelled_active_consumer_keeps_what_it_holds, (b"2", b"1")),
    Row(a_waiting_consumer_that_ends_is_skipped, [b"1", b"1"]),
    Row(an_active_consumer_that_is_full_stays_the_only_one, ("a", [], "a")),
    Row(
        an_exclusive_consumer_cannot_be_a_single_active_one,
        "channel 403: ACCESS_REFUSED - queue 'q' in vhost 'V' in exclusive use",
    ),
    Row(consuming_with_nowait, ("c", b"x")),
]
