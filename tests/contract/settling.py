"""Acks, rejects, requeues, recovery, and the prefetch count."""

from pamqp.commands import Basic

from tests.contract.client import Channel, Message, refused, short
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import METHOD, frame


async def _holding(env: Environment, count: int) -> Channel:
    """A channel with a consumer on `q` that holds messages 1 to *count*, unacknowledged."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", *(str(n + 1).encode() for n in range(count)))
    await channel.consume("q", "c")
    await channel.bodies(count)
    await channel.cancel("c")
    return channel


async def _left(channel: Channel, count: int) -> list[tuple[bytes, bool]]:
    """What a closed channel gives back: bodies and redelivered flags of *count* messages, or more.

    RabbitMQ requeues messages of a get after it has confirmed the close of the channel.
    """
    await channel.close()
    other = await channel.client.channel()
    left = [await other.take("q") for _ in range(count)]
    while message := await other.get("q", no_ack=True):
        left.append(message)
    return [(message.body, message.method.redelivered) for message in left]


async def an_ack_settles_one(env: Environment) -> object:
    """Only the message with that tag is removed."""
    channel = await _holding(env, 3)
    channel.ack(2)
    return await _left(channel, 2)


async def an_ack_with_multiple_settles_all_before(env: Environment) -> object:
    """Multiple covers everything up to that tag that is still open."""
    channel = await _holding(env, 4)
    channel.ack(2)
    channel.ack(3, multiple=True)
    return await _left(channel, 1)


async def tag_zero_with_multiple_is_everything(env: Environment) -> object:
    """Tag 0 means all deliveries of the channel, even if there are none."""
    channel = await _holding(env, 3)
    channel.ack(0, multiple=True)
    channel.ack(0, multiple=True)
    return await _left(channel, 0)


async def an_unknown_tag_is_406(env: Environment) -> object:
    """A tag that was never given, settled already, or zero without multiple."""
    texts = []
    for tags in ([9], [1, 1], [0]):
        channel = await _holding(env, 2)
        for tag in tags:
            channel.ack(tag)
        texts.append(await channel.refused())
        await (await channel.client.channel()).drain("q")
    return texts


async def an_unknown_tag_is_406_in_each_method(env: Environment) -> object:
    """Nack and reject are as strict as ack, and a multiple that ends on a settled tag, too."""
    texts = []
    for method in (Basic.Nack(9), Basic.Reject(9), Basic.Nack(9, True), Basic.Ack(1, True)):
        channel = await _holding(env, 1)
        channel.ack(1)
        channel.send(method)
        texts.append(await channel.refused())
    return texts


async def an_error_requeues_what_was_held(env: Environment) -> object:
    """A channel closed by the broker requeues its unacknowledged messages."""
    channel = await _holding(env, 2)
    channel.ack(9)
    await channel.refused()
    other = await channel.client.channel()
    back = [(await other.take("q")).body for _ in range(2)]
    return back + await other.drain("q")


async def a_tag_belongs_to_its_channel(env: Environment) -> object:
    """Another channel of the same connection does not know the tag."""
    channel = await _holding(env, 1)
    other = await channel.client.channel()
    other.ack(1)
    return await other.refused(), await _left(channel, 1)


async def what_needs_no_ack_has_no_tag_to_ack(env: Environment) -> object:
    """The tag of a no-ack delivery is unknown."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x")
    message = await channel.take("q", no_ack=True)
    channel.ack(message.tag)
    return message.tag, await channel.refused()


async def acks_on_a_closed_channel_end_the_connection(env: Environment) -> object:
    """After the close, an ack is a method on a channel that is not open."""
    channel = await _holding(env, 1)
    await channel.close()
    channel.ack(1)
    return await channel.client.ended()


async def a_reject_drops_or_requeues(env: Environment) -> object:
    """Reject settles one; without requeue it is gone."""
    channel = await _holding(env, 3)
    channel.reject(1, requeue=False)
    channel.reject(2, requeue=True)
    again = await channel.take("q", no_ack=False)
    return again.body, again.method.redelivered, await _left(channel, 2)


async def a_nack_with_multiple(env: Environment) -> object:
    """Nack settles many: without requeue they are gone, with it they are back in order."""
    channel = await _holding(env, 5)
    channel.nack(2, multiple=True, requeue=False)
    channel.nack(4, multiple=True, requeue=True)
    back = [await channel.take("q", no_ack=False) for _ in range(2)]
    return [message.body for message in back], await _left(channel, 3)


async def a_nack_of_zero_is_everything(env: Environment) -> object:
    """Nack of tag 0 with multiple requeues all messages of the channel."""
    channel = await _holding(env, 3)
    channel.nack(0, multiple=True)
    return await channel.drain("q")


async def a_requeued_message_returns_to_its_place(env: Environment) -> object:
    """Requeued in any order, messages are in their old order, before newer ones."""
    channel = await _holding(env, 4)
    channel.publish("q", b"5")
    for tag in (3, 1, 4, 2):
        channel.reject(tag, requeue=True)
    return await _left(channel, 5)


async def a_requeued_message_goes_to_a_consumer_before_newer_ones(env: Environment) -> object:
    """A requeued message is the next to be delivered."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(1)
    channel.publish("q", b"1", b"2", b"3")
    await channel.consume("q")
    first = await channel.message()
    channel.reject(first.tag, requeue=True)
    again = await channel.message()
    return again.body, again.method.redelivered, again.tag


async def recover_requeues_everything(env: Environment) -> object:
    """basic.recover with requeue redelivers to any consumer, with new tags."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    await channel.consume("q")
    await channel.bodies(2)
    await channel.call(Basic.Recover(True))
    messages = [await channel.message() for _ in range(2)]
    return [(message.body, message.tag, message.method.redelivered) for message in messages]


async def recover_async_has_no_reply(env: Environment) -> object:
    """basic.recover-async does the same without a reply."""
    channel = await _holding(env, 2)
    # pamqp warns that the method is deprecated, which is intended here.
    channel.client.raw.write(frame(METHOD, channel.number, b"\x00\x3c\x00\x64\x01"))
    return await channel.drain("q")


async def prefetch_limits_a_consumer(env: Environment) -> object:
    """A consumer holds at most its prefetch count, and gets one more for each settled one."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(2)
    channel.publish("q", b"1", b"2", b"3", b"4")
    await channel.consume("q")
    first, second = await channel.message(), await channel.message()
    await channel.settled("q")
    seen = [channel.waiting()]
    channel.ack(first.tag)
    seen.append(await channel.bodies(1))
    channel.reject(second.tag, requeue=False)
    seen.append(await channel.bodies(1))
    await channel.settled("q")
    return seen, channel.waiting()


async def prefetch_is_each_consumers_own(env: Environment) -> object:
    """Without global, each later consumer has its own count, and earlier ones keep theirs."""
    channel = await env.channel()
    for queue in ("q", "p", "r"):
        await channel.declare(queue)
        channel.publish(queue, b"1", b"2", b"3")
    await channel.qos(1)
    await channel.consume("q", "q")
    await channel.qos(2)
    await channel.consume("p", "p")
    await channel.qos(0)
    await channel.consume("r", "r")
    for queue in ("q", "p", "r"):
        await channel.settled(queue)
    return sorted(channel.waiting()), [
        (await channel.declare(queue)).message_count for queue in ("q", "p", "r")
    ]


async def _two_queues(env: Environment) -> Channel:
    """The queues `q` and `p`, each with three messages."""
    channel, publisher = await env.channel(), await env.channel(confirms=True)
    for queue in ("q", "p"):
        await channel.declare(queue)
        publisher.publish(queue, b"1", b"2", b"3")
    await publisher.confirms(6)
    return channel


async def _consumed(channel: Channel) -> list[Message]:
    """What comes when `q` and `p` are consumed."""
    for queue in ("q", "p"):
        await channel.consume(queue, queue)
    for queue in ("q", "p"):
        await channel.settled(queue)
    return channel.delivered()


async def global_prefetch_is_shared(env: Environment) -> object:
    """With global, the limit is for all consumers of the channel; in 4.3, for each."""
    channel = await _two_queues(env)
    await channel.qos(2, shared=True)
    held = await _consumed(channel)
    channel.ack(held[0].tag)
    await channel.message()
    await channel.settled("q")
    await channel.settled("p")
    return len(held), channel.waiting()


async def both_kinds_of_prefetch_count(env: Environment) -> object:
    """The smaller of the two limits stops a consumer; 4.3 has only one, set by the last call."""
    channel = await _two_queues(env)
    await channel.qos(2)
    await channel.qos(3, shared=True)
    return sorted(message.method.consumer_tag for message in await _consumed(channel))


async def a_prefetch_of_consumers_replaces_the_shared_one(env: Environment) -> object:
    """In 3.10, setting the count of later consumers ends a limit of the channel set before."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2", b"3")
    await channel.qos(1, shared=True)
    await channel.qos(2)
    await channel.consume("q")
    return await channel.bodies(2)


async def global_prefetch_set_later_counts_what_is_held(env: Environment) -> object:
    """It applies immediately to existing consumers and their messages; not so in 4.3."""
    channel, publisher = await env.channel(), await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    await channel.consume("q")
    await channel.bodies(2)
    await channel.qos(2, shared=True)
    publisher.publish("q", b"3")
    await publisher.confirms(1)
    await channel.settled("q")
    before = channel.waiting()
    await channel.qos(3, shared=True)
    return before, [] if before else await channel.bodies(1)


async def prefetch_does_not_limit_no_ack_or_get(env: Environment) -> object:
    """What needs no ack is not counted, and a get is not limited."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.qos(1)
    channel.publish("q", b"1", b"2", b"3", b"4", b"5")
    gets = [(await channel.take("q", no_ack=False)).body for _ in range(2)]
    await channel.consume("q", no_ack=True)
    return gets, await channel.bodies(3)


async def settling_before_a_close_by_an_error(env: Environment) -> object:
    """A close by the broker is final: what was acked before it is gone, the rest is back."""
    channel = await _holding(env, 2)
    other = await env.channel()
    channel.ack(1)
    code = short(await refused(channel.exchange("e", "magic")))
    return code, (await other.take("q")).body, await other.drain("q")


_UNKNOWN = "channel 406: PRECONDITION_FAILED - unknown delivery tag {}"

ROWS = [
    Row(an_ack_settles_one, [(b"1", True), (b"3", True)]),
    Row(an_ack_with_multiple_settles_all_before, [(b"4", True)]),
    Row(tag_zero_with_multiple_is_everything, []),
    Row(an_unknown_tag_is_406, [_UNKNOWN.format(tag) for tag in (9, 1, 0)]),
    Row(
        an_unknown_tag_is_406_in_each_method,
        [_UNKNOWN.format(tag) for tag in (9, 9, 9, 1)],
    ),
    Row(an_error_requeues_what_was_held, [b"1", b"2"]),
    Row(a_tag_belongs_to_its_channel, (_UNKNOWN.format(1), [(b"1", True)])),
    Row(what_needs_no_ack_has_no_tag_to_ack, (1, _UNKNOWN.format(1))),
    Row(
        acks_on_a_closed_channel_end_the_connection,
        "connection 504: CHANNEL_ERROR - expected 'channel.open'",
    ),
    Row(a_reject_drops_or_requeues, (b"2", True, [(b"2", True), (b"3", True)])),
    Row(a_nack_with_multiple, ([b"3", b"4"], [(b"3", True), (b"4", True), (b"5", True)])),
    Row(a_nack_of_zero_is_everything, [b"1", b"2", b"3"]),
    Row(
        a_requeued_message_returns_to_its_place,
        [(b"1", True), (b"2", True), (b"3", True), (b"4", True), (b"5", False)],
    ),
    Row(a_requeued_message_goes_to_a_consumer_before_newer_ones, (b"1", True, 2)),
    Row(recover_requeues_everything, [(b"1", 3, True), (b"2", 4, True)]),
    Row(recover_async_has_no_reply, [b"1", b"2"]),
    Row(prefetch_limits_a_consumer, ([[], [b"3"], [b"4"]], [])),
    Row(prefetch_is_each_consumers_own, ([b"1"] * 3 + [b"2"] * 2 + [b"3"], [2, 1, 0])),
    Row(global_prefetch_is_shared, (2, []), {"4.3": (4, [])}),
    Row(both_kinds_of_prefetch_count, ["p", "q", "q"], {"4.3": ["p"] * 3 + ["q"] * 3}),
    Row(a_prefetch_of_consumers_replaces_the_shared_one, [b"1", b"2"]),
    Row(
        global_prefetch_set_later_counts_what_is_held,
        ([], [b"3"]),
        {"4.3": ([b"3"], [])},
    ),
    Row(prefetch_does_not_limit_no_ack_or_get, ([b"1", b"2"], [b"3", b"4", b"5"])),
    Row(
        settling_before_a_close_by_an_error,
        ("connection 503", b"2", []),
        {"4.0": ("channel 406", b"2", [])},
    ),
]
