"""Errors: their codes, and what they close."""

import asyncio
from typing import Any

from pamqp.commands import Basic, Confirm, Connection, Exchange, Queue
from pamqp.commands import Channel as ChannelClass
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from tests.contract.client import refused, short
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import BODY, HEADER, METHOD, frame


async def a_404_closes_only_its_channel(env: Environment) -> object:
    """A queue that does not exist closes only the channel that uses it."""
    client = await env.client()
    first, second = await client.channel(), await client.channel()
    refusal = await refused(first.declare("q", passive=True))
    return refusal, (await second.declare("q")).queue


async def a_close_names_the_method_that_caused_it(env: Environment) -> object:
    """The close has class and method, for methods with a reply and without."""
    raw = await env.raw_client()
    await raw.log_in(env.login)
    closes = []
    for cause in (Queue.Declare(queue="q", passive=True), Basic.Ack(7), Basic.Publish(0, "e")):
        raw.send(1, ChannelClass.Open(), cause)
        if isinstance(cause, Basic.Publish):
            raw.send(1, ContentHeader(0, 0, Basic.Properties()))
        await raw.expect(ChannelClass.OpenOk)
        close = await raw.expect(ChannelClass.Close)
        closes.append((close.reply_code, close.class_id, close.method_id))
        raw.send(1, ChannelClass.CloseOk())
    return closes


async def publishing_to_no_exchange_closes_the_channel_later(env: Environment) -> object:
    """A publish has no reply, so its 404 arrives later."""
    channel = await env.channel()
    channel.publish("", b"lost", exchange="nowhere")
    return await channel.refused()


async def what_follows_an_error_is_ignored(env: Environment) -> object:
    """Methods that were on their way when the broker closed the channel have no effect."""
    channel = await env.channel()
    await channel.declare("q")
    channel.send(Queue.Declare(queue="missing", passive=True))
    channel.publish("q", b"too late")
    return short(await channel.refused()), await (await channel.client.channel()).drain("q")


async def a_number_can_be_used_again(env: Environment) -> object:
    """A channel closed by the client or by the broker leaves its number free."""
    client = await env.client()
    channel = await client.channel(5)
    await channel.close()
    channel = await client.channel(5)
    code = short(await refused(channel.declare("q", passive=True)))
    return code, (await (await client.channel(5)).declare("q")).queue


async def tags_start_at_1_on_each_channel(env: Environment) -> object:
    """Delivery tags count from 1 on each channel, also on a number used again."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2", b"3")
    tags = [(await channel.take("q", no_ack=False)).tag for _ in range(2)]
    await channel.close()
    again = await channel.client.channel(channel.number)
    return tags, (await again.take("q")).tag


async def a_channel_must_be_opened(env: Environment) -> object:
    """A method on a number that was never opened ends the connection."""
    client = await env.client()
    client.raw.send(3, Queue.Declare(queue="q"))
    return await client.ended()


async def a_channel_is_opened_once(env: Environment) -> object:
    """Opening an open channel ends the connection."""
    channel = await env.channel()
    return await refused(channel.call(ChannelClass.Open()))


async def a_hard_error_ends_all_channels(env: Environment) -> object:
    """A connection error reaches every channel of that connection, and no other connection."""
    client, other = await env.client(), await env.channel()
    first, second = await client.channel(), await client.channel()
    first.send(Basic.Publish(0, "", "q", False, True), *_EMPTY)
    ends = [await first.refused(), await second.refused()]
    return ends[0] == ends[1], short(ends[0]), (await other.declare("q")).queue


async def a_close_of_a_closed_channel_ends_the_connection(env: Environment) -> object:
    """A close on a channel that is not open is a connection error, as any method is."""
    channel = await env.channel()
    await channel.close()
    channel.send(ChannelClass.Close(200, "", 0, 0))
    return await channel.client.ended()


async def _end(env: Environment, data: bytes) -> str:
    """Return the broker's response to bytes after the handshake and the opening of channel 1."""
    client = await env.client()
    await client.channel()
    client.raw.write(data)
    return await client.ended()


async def broken_frames_end_the_connection(env: Environment) -> object:
    """A frame without its end, of a kind unknown, or too large is a frame error."""
    declare = marshal(Queue.Declare(queue="q"), 1)
    ends = await asyncio.gather(
        _end(env, declare[:-1] + b"\x00"),
        _end(env, frame(9, 1, b"?")),
        _end(env, frame(BODY, 1, bytes(131073))),
    )
    return [end.split(",")[0] for end in ends]


async def broken_methods_end_the_connection(env: Environment) -> object:
    """A method that is unknown or cannot be read, by code; the texts differ too much."""
    return {
        "unknown method": short(await _end(env, frame(METHOD, 1, b"\x00\x3c\x00\xc8"))),
        "cut off": short(await _end(env, frame(METHOD, 1, b"\x00\x32\x00\x0a\x00"))),
        "empty": short(await _end(env, frame(METHOD, 1, b""))),
    }


async def content_out_of_order_ends_the_connection(env: Environment) -> object:
    """Header and body frames belong after a publish, and nothing else belongs between them."""
    publish = marshal(Basic.Publish(0, "", "q"), 1)
    header = marshal(ContentHeader(0, 2, Basic.Properties()), 1)
    return {
        "header first": await _end(env, header),
        "body first": await _end(env, frame(BODY, 1, b"x")),
        "method for header": await _end(env, publish + publish),
        "body for header": await _end(env, publish + frame(BODY, 1, b"x")),
        "method for body": await _end(env, publish + header + publish),
        "class of the header": await _end(env, publish + frame(HEADER, 1, b"\x00\x32" + bytes(12))),
    }


async def methods_in_the_wrong_place_end_the_connection(env: Environment) -> object:
    """The connection's own methods belong on channel 0, all others elsewhere."""
    return {
        "queue on channel 0": short(await _end(env, marshal(Queue.Declare(queue="q"), 0))),
        "connection on channel 1": short(await _end(env, marshal(Connection.Open("/"), 1))),
        "of the broker": short(await _end(env, marshal(Basic.GetEmpty(), 1))),
    }


async def what_is_not_implemented_is_540(env: Environment) -> object:
    """Old parts of the protocol that RabbitMQ does not have end the connection."""

    async def end(method: Any, *content: Any) -> str:
        channel = await env.channel()
        await channel.declare("q")
        channel.send(method, *content)
        return await channel.client.ended()

    return {
        "immediate": await end(Basic.Publish(0, "", "q", False, True), *_EMPTY),
        "prefetch size": await end(Basic.Qos(1, 0)),
        "recover without requeue": await end(Basic.Recover(False)),
        "stop of the flow": await end(ChannelClass.Flow(False)),
    }


async def flow_that_is_active_stays_so(env: Environment) -> object:
    """`channel.flow` with true gets a reply, and changes nothing."""
    channel = await env.channel()
    return (await channel.call(ChannelClass.Flow(True))).active


async def nowait_has_no_reply(env: Environment) -> object:
    """A declaration with nowait is done without a reply."""
    channel = await env.channel()
    channel.send(Queue.Declare(queue="q", nowait=True))
    return (await channel.call(Queue.Declare(queue="q", passive=True))).queue


async def nowait_works_for_every_method_that_has_it(env: Environment) -> object:
    """All of them are done without a reply."""
    channel = await env.channel()
    channel.send(
        Exchange.Declare(0, "e", "fanout", nowait=True),
        Exchange.Declare(0, "f", "fanout", nowait=True),
        Exchange.Bind(0, "f", "e", nowait=True),
        Queue.Declare(0, "q", nowait=True),
        Queue.Bind(0, "q", "f", nowait=True),
        Confirm.Select(nowait=True),
        Basic.Publish(0, "e", ""),
        *_EMPTY,
    )
    confirmed = await channel.event()
    bound = (await channel.declare("q")).message_count
    channel.send(
        Basic.Consume(0, "q", "c", nowait=True),
        Basic.Cancel("c", nowait=True),
        Queue.Purge(0, "q", nowait=True),
        Exchange.Unbind(0, "f", "e", nowait=True),
        Queue.Delete(0, "q", nowait=True),
        Exchange.Delete(0, "f", nowait=True),
    )
    gone = short(await refused(channel.declare("q", passive=True)))
    return getattr(confirmed, "name", ""), bound, gone


async def nowait_errors_still_close(env: Environment) -> object:
    """A declaration with nowait that fails closes the channel nevertheless."""
    channel = await env.channel()
    channel.send(Queue.Declare(queue="q", passive=True, nowait=True))
    return short(await channel.refused())


async def channels_do_not_wait_for_each_other(env: Environment) -> object:
    """Half a message on one channel does not stop the others."""
    client = await env.client()
    first, second = await client.channel(), await client.channel()
    await first.declare("q")
    first.send(Basic.Publish(0, "", "q"), ContentHeader(0, 2, Basic.Properties()))
    second.publish("q", b"whole")
    early = (await second.take("q")).body
    client.raw.write(frame(BODY, 1, b"a") + frame(BODY, 1, b"b"))
    return early, (await second.take("q")).body


async def a_lost_connection_requeues_its_messages(env: Environment) -> object:
    """Unacknowledged messages of a lost connection are redelivered."""
    channel, other = await env.channel(), await env.channel()
    await channel.declare("q")
    channel.publish("q", b"1", b"2")
    await channel.consume("q")
    await channel.bodies(2)
    channel.client.drop()
    first = await other.take("q")
    second = await other.take("q")
    return [(message.body, message.method.redelivered) for message in (first, second)]


_EMPTY = [ContentHeader(0, 0, Basic.Properties())]


def _unexpected(what: str) -> str:
    return f"connection 505: UNEXPECTED_FRAME - expected {what} instead"


ROWS = [
    Row(
        a_404_closes_only_its_channel,
        ("channel 404: NOT_FOUND - no queue 'q' in vhost 'V'", "q"),
    ),
    Row(a_close_names_the_method_that_caused_it, [(404, 50, 10), (406, 60, 80), (404, 60, 40)]),
    Row(
        publishing_to_no_exchange_closes_the_channel_later,
        "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'",
    ),
    Row(what_follows_an_error_is_ignored, ("channel 404", [])),
    Row(a_number_can_be_used_again, ("channel 404", "q")),
    Row(tags_start_at_1_on_each_channel, ([1, 2], 1)),
    Row(a_channel_must_be_opened, "connection 504: CHANNEL_ERROR - expected 'channel.open'"),
    Row(a_channel_is_opened_once, "connection 504: CHANNEL_ERROR - second 'channel.open' seen"),
    Row(a_hard_error_ends_all_channels, (True, "connection 540", "q")),
    Row(
        a_close_of_a_closed_channel_ends_the_connection,
        "connection 504: CHANNEL_ERROR - expected 'channel.open'",
    ),
    Row(
        broken_frames_end_the_connection,
        [
            "connection 501: FRAME_ERROR - type 1",
            "connection 501: FRAME_ERROR - type 9",
            "connection 501: FRAME_ERROR - type 3",
        ],
    ),
    Row(
        broken_methods_end_the_connection,
        {
            "unknown method": "connection 501",
            "cut off": "connection 501",
            "empty": "connection 501",
        },
    ),
    Row(
        content_out_of_order_ends_the_connection,
        {
            "header first": _unexpected("method frame, got non method frame"),
            "body first": _unexpected("method frame, got non method frame"),
            "method for header": _unexpected(
                "content header for class 60, got non content header frame"
            ),
            "body for header": _unexpected(
                "content header for class 60, got non content header frame"
            ),
            "method for body": _unexpected("content body, got non content body frame"),
            "class of the header": _unexpected("content header for class 60, got one for class 50"),
        },
    ),
    Row(
        methods_in_the_wrong_place_end_the_connection,
        {
            "queue on channel 0": "connection 504",
            "connection on channel 1": "connection 503",
            "of the broker": "connection 503",
        },
    ),
    Row(
        what_is_not_implemented_is_540,
        {
            "immediate": "connection 540: NOT_IMPLEMENTED - immediate=true",
            "prefetch size": "connection 540: NOT_IMPLEMENTED - prefetch_size!=0 (1)",
            "recover without requeue": "connection 540: NOT_IMPLEMENTED - requeue=false",
            "stop of the flow": "connection 540: NOT_IMPLEMENTED - active=false",
        },
    ),
    Row(flow_that_is_active_stays_so, True),
    Row(nowait_has_no_reply, "q"),
    Row(nowait_works_for_every_method_that_has_it, ("Basic.Ack", 1, "channel 404")),
    Row(nowait_errors_still_close, "channel 404"),
    Row(channels_do_not_wait_for_each_other, (b"whole", b"ab")),
    Row(a_lost_connection_requeues_its_messages, [(b"1", True), (b"2", True)]),
]
