"""Declaring queues: names, flags, arguments, and whose they are."""

from typing import Any

from pamqp.commands import Queue

from tests.contract.client import Channel, refused, short
from tests.contract.environment import Environment, Row


async def _fresh(channel: Channel) -> Channel:
    """Another channel, where an error closed the one before."""
    return await channel.client.channel()


async def a_declaration_counts_what_is_ready(env: Environment) -> object:
    """declare-ok has the name, the messages that are ready, and the consumers."""
    channel = await env.channel()
    counts = [await channel.declare("q")]
    channel.publish("q", b"1", b"2", b"3")
    await channel.get("q")
    counts.append(await channel.declare("q"))
    await channel.consume("q")
    await channel.bodies(2)
    counts.append(await channel.declare("q", passive=True))
    return [(ok.queue, ok.message_count, ok.consumer_count) for ok in counts]


async def the_broker_names_a_queue(env: Environment) -> object:
    """The broker generates a name if it is empty, a new one each time."""
    channel = await env.channel()
    names = {(await channel.declare("", exclusive=True)).queue for _ in range(2)}
    return len(names), all(str(name).startswith("amq.gen-") for name in names)


async def an_empty_name_is_the_last_queue_declared(env: Environment) -> object:
    """On each channel, the empty name stands for its last declaration, also as the key to bind."""
    channel = await env.channel()
    await channel.declare("other")
    await channel.declare("q")
    await channel.bind("", "amq.direct")
    channel.publish("q", b"x", exchange="amq.direct")
    message = await channel.get("", no_ack=True)
    await channel.bind("", "amq.direct", "own key")
    channel.publish("own key", b"y", exchange="amq.direct")
    return message and message.body, await channel.drain("q")


async def an_empty_name_without_a_declaration_is_404(env: Environment) -> object:
    """Nothing was declared on this channel."""
    return await refused((await env.channel()).get(""))


async def queue_names_of_the_broker_are_403(env: Environment) -> object:
    """A client may not declare a queue whose name begins with `amq.`."""
    return await refused((await env.channel()).declare("amq.mine"))


async def what_is_missing_is_404(env: Environment) -> object:
    """Everything except deleting needs an existing queue."""
    channel = await env.channel()
    return [
        await refused((await _fresh(channel)).declare("q", passive=True)),
        await refused((await _fresh(channel)).get("q")),
        await refused((await _fresh(channel)).consume("q")),
        await refused((await _fresh(channel)).call(Queue.Purge(0, "q"))),
        (await channel.call(Queue.Delete(0, "q"))).message_count,
    ]


async def declaring_a_queue_differently_is_406(env: Environment) -> object:
    """The refusal names the first thing that differs, and both values."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.declare("t", x_message_ttl=60000, x_dead_letter_exchange="x")

    async def again(name: str, **changes: Any) -> str | None:
        return await refused((await _fresh(channel)).declare(name, **changes))

    table = {"x_message_ttl": 60000, "x_dead_letter_exchange": "x"}
    return {
        "alike": await again("t", **table),
        "durable": await again("q", durable=True),
        "auto_delete": await again("q", auto_delete=True),
        "durable first": await again("q", durable=True, auto_delete=True),
        "more": await again("q", x_message_ttl=60000),
        "less": await again("t"),
        "other number": await again("t", **table | {"x_message_ttl": 1}),
        "other text": await again("t", **table | {"x_dead_letter_exchange": "y"}),
        "no meaning": await again("q", colour="red"),
    }


async def declaring_another_type_of_queue_is_406(env: Environment) -> object:
    """No type is classic, and since 4.0 the refusal says so."""
    channel = await env.channel()
    await channel.declare("plain", durable=True)
    await channel.declare("quorum", durable=True, x_queue_type="quorum")

    async def again(name: str, **changes: Any) -> str | None:
        return await refused((await _fresh(channel)).declare(name, durable=True, **changes))

    return {
        "classic": await again("plain", x_queue_type="classic"),
        "quorum": await again("plain", x_queue_type="quorum"),
        "not classic": await again("quorum", x_queue_type="classic"),
        "none": await again("quorum"),
    }


async def a_passive_declaration_looks_only_at_the_name_of_a_queue(env: Environment) -> object:
    """It finds a queue with any flags and arguments."""
    channel = await env.channel()
    await channel.declare("q", auto_delete=True, x_max_length=1)
    return (await channel.declare("q", passive=True, durable=True, x_max_length=2)).queue


async def a_number_may_have_another_width(env: Environment) -> object:
    """Arguments are compared by value: 60000 in two or in eight bytes is the same."""
    channel = await env.channel()
    await channel.declare("q", x_message_ttl=2**31 - 1)
    # A byte array in pamqp's table would have its own type: this is the raw method.
    name = b"\x01q"
    entry = b"\x0dx-message-ttl" + b"l" + (2**31 - 1).to_bytes(8, "big")
    table = len(entry).to_bytes(4, "big") + entry
    payload = b"\x00\x32\x00\x0a\x00\x00" + name + b"\x00" + table
    channel.client.raw.write(b"\x01\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce")
    return (await channel.declare("q", passive=True)).queue


async def wrong_arguments_are_406(env: Environment) -> object:
    """An argument that is known must have the right type and be in its range."""
    wrong: list[dict[str, Any]] = [
        {"x_message_ttl": -1},
        {"x_message_ttl": "1"},
        {"x_expires": 0},
        {"x_expires": -1},
        {"x_max_length": -1},
        {"x_max_length_bytes": "1"},
        {"x_max_priority": -1},
        {"x_max_priority": 256},
        {"x_overflow": "explode"},
        {"x_dead_letter_exchange": 1},
        {"x_dead_letter_routing_key": "alone"},
        {"x_single_active_consumer": "yes"},
        {"x_queue_type": "pile"},
    ]
    client = await env.client()
    return [
        await refused((await client.channel()).declare("q", **arguments)) for arguments in wrong
    ]


async def arguments_of_quorum_queues_are_406_for_classic_ones(env: Environment) -> object:
    """Most arguments that only quorum queues have are refused, not ignored."""
    only: list[dict[str, Any]] = [
        {"x_delivery_limit": 3},
        {"x_quorum_initial_group_size": 1},
        {"x_dead_letter_strategy": "at-least-once"},
        {"x_max_in_memory_length": 3},
    ]
    client = await env.client()
    return [await refused((await client.channel()).declare("q", **arguments)) for arguments in only]


async def arguments_of_another_type_are_not_compared(env: Environment) -> object:
    """Where the queue exists, only arguments that queues of its type have are compared."""
    client = await env.client()
    channel = await client.channel()
    await channel.declare("c", durable=True)
    await channel.declare("q", durable=True, x_queue_type="quorum")

    async def again(name: str, **arguments: Any) -> str | None:
        return await refused((await client.channel()).declare(name, durable=True, **arguments))

    return {
        "limit": await again("c", x_delivery_limit=-1),
        "age": await again("c", x_max_age="impossible"),
        "priority": await again("q", x_queue_type="quorum", x_max_priority=3),
        "priority of classic": await again("c", x_max_priority=3),
    }


async def an_exclusive_queue_is_405_for_others(env: Environment) -> object:
    """No other connection may use an exclusive queue; other channels of the same one may."""
    owner, other = await env.channel(), await env.client()
    await owner.declare("q", exclusive=True)
    sibling = await _fresh(owner)
    await sibling.consume("q")
    refusals = [
        await refused((await other.channel()).declare("q", exclusive=True)),
        await refused((await other.channel()).declare("q", passive=True)),
        await refused((await other.channel()).consume("q")),
        await refused((await other.channel()).get("q")),
        await refused((await other.channel()).bind("q", "amq.direct")),
        await refused((await other.channel()).call(Queue.Purge(0, "q"))),
        await refused((await other.channel()).call(Queue.Delete(0, "q"))),
    ]
    return refusals[0], {short(refusal) for refusal in refusals}


async def anyone_may_publish_to_an_exclusive_queue(env: Environment) -> object:
    """Exclusive does not concern publishing."""
    owner, other = await env.channel(), await env.channel()
    await owner.declare("q", exclusive=True)
    other.publish("q", b"x")
    return (await owner.take("q")).body


async def exclusive_must_be_repeated(env: Environment) -> object:
    """The owner itself is refused when it declares without or newly with exclusive."""
    channel = await env.channel()
    await channel.declare("q", exclusive=True)
    await channel.declare("open")
    return [
        await refused((await _fresh(channel)).declare("q", exclusive=True)),
        await refused((await _fresh(channel)).declare("q")),
        await refused((await _fresh(channel)).declare("q", durable=True)),
        await refused((await _fresh(channel)).declare("open", exclusive=True)),
    ]


def _differs(argument: str, queue: str, what: str) -> str:
    return (
        f"channel 406: PRECONDITION_FAILED - inequivalent arg '{argument}' for queue '{queue}'"
        f" in vhost 'V': received {what}"
    )


def _invalid(argument: str, why: str = "", *, classic: bool = False) -> str:
    end = " of queue type rabbit_classic_queue" if classic else f": {why}"
    return (
        f"channel 406: PRECONDITION_FAILED - invalid arg '{argument}' for queue 'q' in vhost 'V'"
        f"{end}"
    )


def _locked(queue: str) -> str:
    return (
        f"channel 405: RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue}'"
        " in vhost 'V'. It could be originally declared on another connection or the exclusive"
        " property value does not match that of the original declaration."
    )


ROWS = [
    Row(a_declaration_counts_what_is_ready, [("q", 0, 0), ("q", 2, 0), ("q", 0, 1)]),
    Row(the_broker_names_a_queue, (2, True)),
    Row(an_empty_name_is_the_last_queue_declared, (b"x", [b"y"])),
    Row(
        an_empty_name_without_a_declaration_is_404,
        "channel 404: NOT_FOUND - no previously declared queue",
    ),
    Row(
        queue_names_of_the_broker_are_403,
        "channel 403: ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
    ),
    Row(
        what_is_missing_is_404,
        [
            "channel 404: NOT_FOUND - no queue 'q' in vhost 'V'",
            "channel 404: NOT_FOUND - no queue 'q' in vhost 'V'",
            "channel 404: NOT_FOUND - no queue 'q' in vhost 'V'",
            "channel 404: NOT_FOUND - no queue 'q' in vhost 'V'",
            0,
        ],
    ),
    Row(
        declaring_a_queue_differently_is_406,
        {
            "alike": None,
            "durable": _differs("durable", "q", "'true' but current is 'false'"),
            "auto_delete": _differs("auto_delete", "q", "'true' but current is 'false'"),
            "durable first": _differs("durable", "q", "'true' but current is 'false'"),
            "more": _differs(
                "x-message-ttl",
                "q",
                "the value '60000' of type 'unsignedshort' but current is none",
            ),
            "less": _differs(
                "x-message-ttl",
                "t",
                "none but current is the value '60000' of type 'unsignedshort'",
            ),
            "other number": _differs("x-message-ttl", "t", "'1' but current is '60000'"),
            "other text": _differs("x-dead-letter-exchange", "t", "'y' but current is 'x'"),
            "no meaning": None,
        },
    ),
    Row(
        declaring_another_type_of_queue_is_406,
        {
            "classic": None,
            "quorum": _differs(
                "x-queue-type", "plain", "the value 'quorum' of type 'longstr' but current is none"
            ),
            "not classic": _differs("x-queue-type", "quorum", "'classic' but current is 'quorum'"),
            "none": _differs(
                "x-queue-type",
                "quorum",
                "none but current is the value 'quorum' of type 'longstr'",
            ),
        },
        {
            "4.0": {
                "classic": None,
                "quorum": _differs("x-queue-type", "plain", "'quorum' but current is 'classic'"),
                "not classic": _differs(
                    "x-queue-type", "quorum", "'classic' but current is 'quorum'"
                ),
                "none": _differs("x-queue-type", "quorum", "'classic' but current is 'quorum'"),
            }
        },
    ),
    Row(a_number_may_have_another_width, "q"),
    Row(
        wrong_arguments_are_406,
        [
            _invalid("x-message-ttl", "{value_negative,-1}"),
            _invalid("x-message-ttl", '"expected integer, got longstr"'),
            _invalid("x-expires", "{value_zero,0}"),
            _invalid("x-expires", "{value_negative,-1}"),
            _invalid("x-max-length", "{value_negative,-1}"),
            _invalid("x-max-length-bytes", '"expected integer, got longstr"'),
            _invalid("x-max-priority", "{value_negative,-1}"),
            _invalid("x-max-priority", "{max_value_exceeded,256}"),
            _invalid("x-overflow", "invalid_overflow"),
            (
                "channel 406: PRECONDITION_FAILED - invalid type 'byte' for arg "
                "'x-dead-letter-exchange' in queue 'q' in vhost 'V'"
            ),
            _invalid("x-dead-letter-routing-key", "routing_key_but_no_dlx_defined"),
            _invalid("x-single-active-consumer", "{unacceptable_type,longstr}"),
            _invalid("x-queue-type", "\"unsupported queue type 'pile'\""),
        ],
    ),
    Row(
        arguments_of_quorum_queues_are_406_for_classic_ones,
        [
            _invalid(f"x-{name}", classic=True)
            for name in (
                "delivery-limit",
                "quorum-initial-group-size",
                "dead-letter-strategy",
                "max-in-memory-length",
            )
        ],
    ),
    Row(
        arguments_of_another_type_are_not_compared,
        {
            "limit": None,
            "age": None,
            "priority": None,
            "priority of classic": (
                "channel 406: PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'c'"
                " in vhost 'V': received the value '3' of type 'byte' but current is none"
            ),
        },
    ),
    Row(
        an_exclusive_queue_is_405_for_others,
        (
            _locked("q"),
            {"channel 405"},
        ),
    ),
    Row(anyone_may_publish_to_an_exclusive_queue, b"x"),
    Row(
        exclusive_must_be_repeated,
        [
            None,
            _locked("q"),
            _locked("q"),
            _locked("open"),
        ],
    ),
    Row(a_passive_declaration_looks_only_at_the_name_of_a_queue, "q"),
]
