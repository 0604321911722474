"""Publishing: confirms, returns, bodies, properties, copies, senders, direct replies."""

import struct
from datetime import UTC, datetime
from typing import Any

from pamqp.body import ContentBody
from pamqp.commands import Basic, Confirm
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from tests.contract.client import Channel, Message, refused
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import BODY, HEADER, frame


async def publishes_are_confirmed_by_number(env: Environment) -> object:
    """Confirms count the publishes of a channel from 1, each once, alone or several at a time."""
    channel = await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", *[b"x"] * 200)
    confirmed = await channel.confirms(200)
    return {name for name, _ in confirmed}, sorted(tag for _, tag in confirmed) == [*range(1, 201)]


async def confirms_count_from_the_selection(env: Environment) -> object:
    """Publishes before confirm.select have no number."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"before")
    await channel.call(Confirm.Select())
    await channel.call(Confirm.Select())
    channel.publish("q", b"after")
    return await channel.confirms(1)


async def what_cannot_be_routed_is_confirmed_too(env: Environment) -> object:
    """A message without a matching queue is acknowledged."""
    channel = await env.channel(confirms=True)
    channel.publish("nowhere", b"x")
    return await channel.confirms(1)


async def a_return_comes_before_its_confirm(env: Environment) -> object:
    """A mandatory message that no queue takes is returned, and then confirmed."""
    channel = await env.channel(confirms=True)
    channel.publish("nowhere", b"x", mandatory=True)
    first, second = await channel.event(), await channel.event()
    assert isinstance(first, Message)
    assert isinstance(second, Basic.Ack)
    return first.method.name, second.delivery_tag


async def a_return_has_everything(env: Environment) -> object:
    """A returned message has code, text, exchange, key, its properties and its body."""
    channel = await env.channel()
    headers = {"a": 1}
    channel.publish(
        "k", b"x", exchange="amq.direct", mandatory=True, headers=headers, message_id="m"
    )
    message = await channel.message()
    method: Basic.Return = message.method
    place = method.reply_code, method.reply_text, method.exchange, method.routing_key
    return *place, message.properties.headers, message.properties.message_id, message.body


async def a_return_has_no_bcc(env: Environment) -> object:
    """BCC is removed before the message is delivered or returned."""
    channel = await env.channel()
    channel.publish("nowhere", b"x", mandatory=True, headers={"BCC": ["b"], "CC": ["c"]})
    return (await channel.message()).headers


async def mandatory_is_content_with_one_queue(env: Environment) -> object:
    """A mandatory message that a queue took is not returned."""
    channel = await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", b"x", mandatory=True)
    return await channel.confirms(1), channel.waiting()


async def an_error_confirms_nothing(env: Environment) -> object:
    """The publish that closed the channel gets no confirm, the ones before it do."""
    channel = await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", b"good")
    confirmed = await channel.confirms(1)
    channel.publish("q", b"bad", exchange="nowhere")
    return confirmed, await refused(channel.event())


async def a_body_of_many_frames(env: Environment) -> object:
    """A body larger than a frame comes in frames of the size that was negotiated."""
    sender = await env.channel()
    receiver = await (await env.client(frame_max=8192)).channel()
    await sender.declare("q")
    body = bytes(range(256)) * 1200
    sender.publish("q", body)
    message = await receiver.take("q")
    return message.body == body, receiver.client.raw.largest, message.frames


async def bodies_at_the_edge_of_a_frame(env: Environment) -> object:
    """A body of exactly a frame's room is one frame; a byte more is two."""
    channel = await (await env.client(frame_max=8192)).channel()
    await channel.declare("q")
    seen = []
    for size in (0, 1, 8183, 8184, 8185, 16368, 16369):
        channel.publish("q", bytes(size))
        message = await channel.take("q")
        seen.append((len(message.body), message.frames))
    return seen


async def a_body_in_small_frames(env: Environment) -> object:
    """A client may split a body in any way, with empty frames."""
    channel = await env.channel()
    await channel.declare("q")
    channel.send(Basic.Publish(0, "", "q"), ContentHeader(0, 3, Basic.Properties()))
    channel.send(ContentBody(b"a"))
    channel.client.raw.write(frame(BODY, channel.number, b""))
    channel.send(ContentBody(b"bc"))
    return (await channel.take("q")).body


async def properties_arrive_as_they_were_sent(env: Environment) -> object:
    """All thirteen properties survive."""
    channel = await env.channel()
    await channel.declare("q")
    sent: dict[str, Any] = {
        "content_type": "text/plain",
        "content_encoding": "utf-8",
        "headers": {"a": [1, {"b": None}], "c": True},
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "60000",
        "message_id": "m",
        "timestamp": datetime(2024, 2, 29, 12, tzinfo=UTC),
        "message_type": "t",
        "user_id": "guest",
        "app_id": "app",
    }
    channel.publish("q", b"", **sent)
    properties = (await channel.take("q")).properties
    return {name for name, value in sent.items() if getattr(properties, name) != value}


async def absent_properties_stay_absent(env: Environment) -> object:
    """Nothing is added to a message without properties; an empty table is not an absent one."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x")
    bare = (await channel.take("q")).raw
    publish = marshal(Basic.Publish(0, "", "q"), channel.number)
    properties = b"\x20\x00" + bytes(4)
    header = struct.pack(">HHQ", 60, 0, 0) + properties
    channel.client.raw.write(publish + frame(HEADER, channel.number, header))
    return bare, (await channel.take("q")).raw == properties


async def headers_of_every_type_keep_their_bytes(env: Environment) -> object:
    """A value is forwarded byte for byte; so is the table, but since 4.0 sorted by name."""
    values = {
        "b": b"b\xff",
        "B": b"B\xff",
        "s": b"s\xff\xfe",
        "u": b"u\xff\xfe",
        "I": b"I\xff\xff\xff\xfe",
        "i": b"i\xff\xff\xff\xfe",
        "l": b"l\xff\xff\xff\xff\xff\xff\xff\xfe",
        "f": b"f\x3f\xc0\x00\x00",
        "d": b"d\x3f\xf8\x00\x00\x00\x00\x00\x00",
        "D": b"D\x02\x00\x00\x00\x7b",
        "t": b"t\x01",
        "V": b"V",
        "S": b"S\x00\x00\x00\x02\xff\xfe",
        "x": b"x\x00\x00\x00\x02\xff\xfe",
        "T": b"T\x00\x00\x00\x00\x65\xe0\x75\x00",
        "A": b"A\x00\x00\x00\x04b\x01b\x02",
        "F": b"F\x00\x00\x00\x04\x01kb\x01",
    }
    properties, ordered = (
        b"\x20\x00" + struct.pack(">I", len(entries)) + entries
        for entries in (
            b"".join(b"\x01" + name.encode() + values[name] for name in names)
            for names in (values, sorted(values))
        )
    )
    channel = await env.channel()
    await channel.declare("q")
    publish = marshal(Basic.Publish(0, "", "q"), channel.number)
    header = struct.pack(">HHQ", 60, 0, 0) + properties
    channel.client.raw.write(publish + frame(HEADER, channel.number, header))
    raw = (await channel.take("q")).raw
    return raw == properties, raw == ordered


async def cc_and_bcc_are_more_keys(env: Environment) -> object:
    """A message is routed by its key and by those in CC and BCC; BCC is removed."""
    channel = await env.channel()
    for queue in ("q", "c", "b"):
        await channel.declare(queue)
    channel.publish("q", b"x", headers={"CC": ["c", "q"], "BCC": ["b"], "z": 1})
    seen = []
    for queue in ("q", "c", "b"):
        message = await channel.take(queue)
        seen.append((message.headers, message.method.routing_key))
    return seen, await channel.drain("q")


async def cc_that_is_not_a_list_is_406(env: Environment) -> object:
    """CC and BCC are arrays of keys."""
    texts = []
    for header in ("CC", "BCC"):
        channel = await env.channel()
        channel.publish("q", b"x", headers={header: "c"})
        texts.append(await channel.refused())
    return texts


async def the_user_id_is_checked(env: Environment) -> object:
    """A message's user-id is the user that is logged in, or it is refused."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x", user_id="guest")
    accepted = (await channel.take("q")).properties.user_id
    channel.publish("q", b"x", user_id="other")
    return accepted, await channel.refused()


async def direct_reply_to(env: Environment) -> object:
    """A request gets an address of its channel in reply-to, and the reply is sent there."""
    client, server = await env.channel(), await env.channel()
    await server.declare("q")
    tag = await client.consume("amq.rabbitmq.reply-to", "c", no_ack=True)
    client.publish("q", b"ask", reply_to="amq.rabbitmq.reply-to")
    request = await server.take("q")
    address = request.properties.reply_to or ""
    server.publish(address, b"answer", mandatory=True, correlation_id="7")
    answer = await client.message()
    ways = answer.method.exchange, answer.method.routing_key == address
    named = address.startswith("amq.rabbitmq.reply-to.")
    return tag, named, answer.body, answer.properties.correlation_id, *ways


async def direct_replies_need_no_ack_and_a_consumer(env: Environment) -> object:
    """The consumer must not acknowledge, must be there before the request, and is only one."""
    client, name = await env.client(), "amq.rabbitmq.reply-to"
    alone = await client.channel()
    alone.publish("q", b"x", reply_to=name)
    twice = await client.channel()
    await twice.consume(name, no_ack=True)
    return [
        await refused((await client.channel()).consume(name)),
        await alone.refused(),
        await refused(twice.consume(name, no_ack=True)),
    ]


async def the_address_of_a_reply_exists_as_long_as_its_channel(env: Environment) -> object:
    """A server can check with a passive declare whether the client still waits for a reply."""
    client, server = await env.channel(), await env.channel()
    await server.declare("q")
    await client.consume("amq.rabbitmq.reply-to", no_ack=True)
    client.publish("q", b"ask", reply_to="amq.rabbitmq.reply-to")
    address = (await server.take("q")).properties.reply_to or ""
    alive = (await server.declare(address, passive=True)).consumer_count
    await client.close()
    return alive, await refused(server.declare(address, passive=True)) is not None


async def a_mandatory_reply_is_returned(env: Environment) -> object:
    """It is returned, delivered or not; since 4.3 never, not even without a consumer."""
    client, server = await env.channel(), await env.channel(confirms=True)
    await server.declare("q")
    await client.consume("amq.rabbitmq.reply-to", no_ack=True)
    client.publish("q", b"ask", reply_to="amq.rabbitmq.reply-to")
    address = (await server.take("q")).properties.reply_to or ""
    events = []
    server.publish(address, b"answer", mandatory=True)
    events += await _events(server)
    answer = (await client.message()).body
    await client.close()
    server.publish(address, b"late", mandatory=True)
    return answer, events, await _events(server)


async def _events(channel: Channel) -> list[object]:
    """What came until a publish was confirmed: codes of returns, and the confirm."""
    events: list[object] = []
    while "Basic.Ack" not in events:
        event = await channel.event()
        events.append(event.method.reply_code if isinstance(event, Message) else event.name)
    return events


ROWS = [
    Row(publishes_are_confirmed_by_number, ({"Basic.Ack"}, True)),
    Row(confirms_count_from_the_selection, [("Basic.Ack", 1)]),
    Row(what_cannot_be_routed_is_confirmed_too, [("Basic.Ack", 1)]),
    Row(a_return_comes_before_its_confirm, ("Basic.Return", 1)),
    Row(a_return_has_everything, (312, "NO_ROUTE", "amq.direct", "k", {"a": 1}, "m", b"x")),
    Row(a_return_has_no_bcc, {"CC": ["c"]}),
    Row(mandatory_is_content_with_one_queue, ([("Basic.Ack", 1)], [])),
    Row(
        an_error_confirms_nothing,
        ([("Basic.Ack", 1)], "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'"),
    ),
    Row(a_body_of_many_frames, (True, 8192, 38)),
    Row(
        bodies_at_the_edge_of_a_frame,
        [(0, 0), (1, 1), (8183, 1), (8184, 1), (8185, 2), (16368, 2), (16369, 3)],
    ),
    Row(a_body_in_small_frames, b"abc"),
    Row(properties_arrive_as_they_were_sent, set()),
    Row(absent_properties_stay_absent, (b"\0\0", True)),
    Row(headers_of_every_type_keep_their_bytes, (True, False), {"4.0": (False, True)}),
    Row(
        cc_and_bcc_are_more_keys,
        (
            [
                ({"CC": ["c", "q"], "z": 1}, "q"),
                ({"CC": ["c", "q"], "z": 1}, "q"),
                ({"CC": ["c", "q"], "z": 1}, "q"),
            ],
            [],
        ),
    ),
    Row(
        cc_that_is_not_a_list_is_406,
        [
            (
                "channel 406: PRECONDITION_FAILED - invalid message: "
                '{unacceptable_type_in_header,"CC",longstr}'
            ),
            (
                "channel 406: PRECONDITION_FAILED - invalid message: "
                '{unacceptable_type_in_header,"BCC",longstr}'
            ),
        ],
    ),
    Row(
        the_user_id_is_checked,
        (
            "guest",
            (
                "channel 406: PRECONDITION_FAILED - user_id property set to 'other' but "
                "authenticated user was 'guest'"
            ),
        ),
    ),
    Row(direct_reply_to, ("c", True, b"answer", "7", "", True)),
    Row(
        direct_replies_need_no_ack_and_a_consumer,
        [
            "channel 406: PRECONDITION_FAILED - reply consumer cannot acknowledge",
            "channel 406: PRECONDITION_FAILED - fast reply consumer does not exist",
            "channel 406: PRECONDITION_FAILED - reply consumer already set",
        ],
    ),
    Row(the_address_of_a_reply_exists_as_long_as_its_channel, (1, True)),
    Row(
        a_mandatory_reply_is_returned,
        (b"answer", [312, "Basic.Ack"], [312, "Basic.Ack"]),
        {"4.3": (b"answer", ["Basic.Ack"], ["Basic.Ack"])},
    ),
]
