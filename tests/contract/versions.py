"""Differences of RabbitMQ 4.0 and 4.3 from 3.10, apart from the rows of the other files."""

from collections.abc import Callable
from itertools import count
from typing import Any

from pamqp.commands import Basic

from tests.contract.client import Channel, Message, refused
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import METHOD, frame

_numbers = count(1)
_MOST = 25  # Deliveries after which there is no limit.


async def _sent(env: Environment, queue: str, *bodies: bytes, **properties: Any) -> None:
    """Publish, and return when the queue has it all."""
    publisher = await env.channel(confirms=True)
    publisher.publish(queue, *bodies, **properties)
    await publisher.confirms(len(bodies))


def _reject(channel: Channel, message: Message) -> None:
    channel.reject(message.tag, requeue=True)


def _nack(channel: Channel, message: Message) -> None:
    channel.nack(message.tag)


async def _deliveries(
    env: Environment, back: Callable[[Channel, Message], None] = _reject, **arguments: Any
) -> int:
    """How often a quorum queue delivers a message that is given back each time."""
    channel = await env.channel()
    queue = f"quorum {next(_numbers)}"
    letters: dict[str, Any] = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}
    await channel.declare("dead")
    await channel.declare(queue, durable=True, x_queue_type="quorum", **letters, **arguments)
    await _sent(env, queue, b"x")
    await channel.consume("dead", "dead", no_ack=True)
    await channel.consume(queue, "q")
    deliveries = 0
    while deliveries < _MOST:
        message = await channel.message()
        if message.method.consumer_tag == "dead":
            break
        deliveries += 1
        back(channel, message)
    await channel.client.close()  # So that it takes no dead letters of the next queue.
    return deliveries


async def a_quorum_queue_drops_messages_above_its_limit(env: Environment) -> object:
    """Since 4.0 the limit is 20 if none is declared, and one below zero is none.

    In 3.10 none is declared is none, and one below zero drops at the first return.
    """
    return {
        "none": await _deliveries(env),
        "-1": await _deliveries(env, x_delivery_limit=-1),
        "2": await _deliveries(env, x_delivery_limit=2),
    }


async def a_nack_counts_for_the_limit(env: Environment) -> object:
    """A basic.nack counts as a basic.reject does; not so in 4.3."""
    return await _deliveries(env, _nack, x_delivery_limit=2)


async def kinds_of_requeue(env: Environment) -> object:
    """The counts after two requeues of each kind; 4.3 has a separate count without failures."""
    counts = {}
    for way in ("reject", "nack", "recover", "close"):
        channel = await env.channel()
        await channel.declare(way, durable=True, x_queue_type="quorum")
        await _sent(env, way, b"x")
        for _ in range(2):
            holder = await env.channel()
            message = await holder.take(way, no_ack=False)
            if way == "reject":
                _reject(holder, message)
            elif way == "nack":
                _nack(holder, message)
            elif way == "recover":
                await holder.call(Basic.Recover(True))
            else:
                await holder.close()
        counts[way] = (await channel.take(way)).headers
    return counts


async def the_order_of_requeued_messages(env: Environment) -> object:
    """Four of five are held; the fourth, the first and the second come back one by one.

    Classic queues keep the places. Quorum queues with a limit put them first in the order in which
    they came back; those without a limit, which only 3.10 has, last.
    """
    orders = {}
    kinds: dict[str, dict[str, Any]] = {
        "classic": {},
        "quorum": {"x_queue_type": "quorum"},
        "limited": {"x_queue_type": "quorum", "x_delivery_limit": 9},
    }
    for kind, arguments in kinds.items():
        channel = await env.channel()
        await channel.declare(kind, durable=True, **arguments)
        await _sent(env, kind, b"1", b"2", b"3", b"4", b"5")
        held = [await channel.take(kind, no_ack=False) for _ in range(4)]
        for place in (3, 0, 1):
            _reject(channel, held[place])
        orders[kind] = b"".join([(await channel.take(kind)).body for _ in range(4)])
    return orders


async def priorities_in_a_quorum_queue(env: Environment) -> object:
    """3.10 has none. 4.0 has two, above 4 and not, of which two of three are high.

    4.3 has all up to 31, the highest first. No priority is 4 in 4.3, and not high in 4.0.
    """
    channel = await env.channel()
    await channel.declare("q", durable=True, x_queue_type="quorum")
    publisher = await env.channel(confirms=True)
    priorities = [0, None, 9, 4, 5, 31, 255, 1, 5, 4]
    for place, priority in enumerate(priorities):
        own: dict[str, Any] = {} if priority is None else {"priority": priority}
        publisher.publish("q", str(place).encode(), **own)
    await publisher.confirms(len(priorities))
    return b"".join([(await channel.take("q")).body for _ in priorities])


async def requeued_messages_precede_higher_priorities(env: Environment) -> object:
    """In a quorum queue with a limit; without one it is last."""
    channel = await env.channel()
    await channel.declare("q", durable=True, x_queue_type="quorum")
    await _sent(env, "q", b"low")
    held = await channel.take("q", no_ack=False)
    await _sent(env, "q", b"high", b"higher", priority=9)
    _reject(channel, held)
    return [(await channel.take("q")).body for _ in range(3)]


async def headers_that_only_the_broker_should_write(env: Environment) -> object:
    """They arrive as sent; since 4.0 a dead letter drops an `x-death` of a client."""
    channel = await env.channel()
    await channel.declare("dead")
    await channel.declare("q", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    written = {
        "x-death": [{"queue": "e", "reason": "rejected", "count": 7}],
        "x-delivery-count": 30,
        "x-first-death-queue": "e",
    }
    channel.publish("q", b"x", headers=written)
    message = await channel.take("q", no_ack=False)
    channel.reject(message.tag, requeue=False)
    dead = (await channel.take("dead")).headers
    queues = [death["queue"] for death in dead["x-death"]]
    first, written_count = dead["x-first-death-queue"], dead["x-delivery-count"]
    return message.headers == written, queues, first, written_count


async def a_quorum_queue_overwrites_a_count(env: Environment) -> object:
    """An `x-delivery-count` that a client wrote arrives with the first delivery to a consumer."""
    channel = await env.channel()
    await channel.declare("q", durable=True, x_queue_type="quorum")
    await _sent(env, "q", b"x", headers={"x-delivery-count": 30})
    await channel.consume("q")
    first = await channel.message()
    _reject(channel, first)
    counts = [each.headers["x-delivery-count"] for each in (first, await channel.message())]
    return counts, first.method.redelivered


async def dead_letters_keep_their_counts(env: Environment) -> object:
    """Given back once and then rejected: counts and the redelivered flag of the dead letter.

    3.10 starts again; 4.0 counts what a quorum queue rejects, in quorum queues; 4.3 all of it.
    """
    seen = {}
    for source in ("classic", "quorum"):
        for target in ("classic", "quorum"):
            channel, name = await env.channel(), f"{source} to {target}"
            letters: dict[str, Any] = {
                "x_dead_letter_exchange": "",
                "x_dead_letter_routing_key": f"{name}.dead",
            }
            await channel.declare(f"{name}.dead", durable=True, x_queue_type=target)
            await channel.declare(name, durable=True, x_queue_type=source, **letters)
            await _sent(env, name, b"x")
            _reject(channel, await channel.take(name, no_ack=False))
            channel.reject((await channel.take(name, no_ack=False)).tag, requeue=False)
            message = await channel.take(f"{name}.dead")
            counts = [message.headers.get(f"x-{each}-count") for each in ("delivery", "acquired")]
            seen[name] = (*counts, message.method.redelivered)
    return seen


async def deliveries_before_count_for_the_limit(env: Environment) -> object:
    """How often a queue with a limit of two delivers a dead letter that was delivered twice."""
    channel = await env.channel()
    table: dict[str, Any] = {"x_dead_letter_exchange": "", "x_queue_type": "quorum"}
    await channel.declare("q", durable=True, x_dead_letter_routing_key="again", **table)
    limited = table | {"x_delivery_limit": 2, "x_dead_letter_routing_key": "dead"}
    await channel.declare("again", durable=True, **limited)
    await channel.declare("dead")
    await _sent(env, "q", b"x")
    _reject(channel, await channel.take("q", no_ack=False))
    channel.reject((await channel.take("q", no_ack=False)).tag, requeue=False)
    await channel.consume("dead", "dead", no_ack=True)
    await channel.consume("again", "again")
    deliveries = 0
    while (message := await channel.message()).method.consumer_tag == "again":
        deliveries += 1
        _reject(channel, message)
    return deliveries


async def a_message_of_16_mib_and_more(env: Environment) -> object:
    """Since 4.0 one byte more than 16 MiB is too much."""
    channel = await env.channel(confirms=True)
    await channel.declare("q")
    channel.publish("q", bytes(2**24))
    await channel.confirms(1)
    channel.publish("q", bytes(2**24 + 1))
    return await refused(channel.event())


async def a_vhost_with_quorum_queues_by_default(env: Environment) -> object:
    """Queues that can be quorum queues are; those cannot have priorities."""
    vhost = env.add_vhost(default_queue_type="quorum")
    client = await env.client(vhost=vhost)

    async def declare(name: str, **options: Any) -> str | None:
        return await refused((await client.channel()).declare(name, **options))

    return {
        "durable": await declare("q", durable=True),
        "is quorum": await declare("q", durable=True, x_queue_type="quorum"),
        "is not classic": await declare("q", durable=True, x_queue_type="classic"),
        "transient": await declare("t"),
        "is classic": await declare("t", x_queue_type="classic"),
        "limit": await declare("l", durable=True, x_delivery_limit=5),
        "priorities": await declare("p", durable=True, x_max_priority=5),
        "transient priorities": await declare("tp", x_max_priority=5),
        "auto-delete": await declare("a", durable=True, auto_delete=True),
        "exclusive": await declare("e", durable=True, exclusive=True),
    }


async def arguments_that_come_and_go(env: Environment) -> object:
    """Arguments of queues that some versions take and others refuse."""
    tried: dict[str, dict[str, Any]] = {
        "version 1": {"x_queue_version": 1},
        "version 2": {"x_queue_version": 2},
        "version 3": {"x_queue_version": 3},
        "leader": {"x_queue_leader_locator": "balanced"},
        "no leader": {"x_queue_leader_locator": "nowhere"},
        "leader of quorum": {"x_queue_leader_locator": "min-masters", "x_queue_type": "quorum"},
        "timeout": {"x_consumer_timeout": 60000},
        "timeout of quorum": {"x_consumer_timeout": 60000, "x_queue_type": "quorum"},
        "no timeout": {"x_consumer_timeout": "long", "x_queue_type": "quorum"},
        "master": {"x_queue_master_locator": "min-masters"},
    }
    seen = {}
    for name, arguments in tried.items():
        answer = await refused((await env.channel()).declare(name, durable=True, **arguments))
        seen[name] = answer and answer.partition(" - ")[2].replace(_place(name), "Q")
    return seen


async def names_of_any_kind(env: Environment) -> object:
    """Every text is a name of a queue; bytes that are no UTF-8 end the connection."""
    channel = await env.channel()
    names = [
        "a*b",
        "a;b=c",
        "$[x]",
        "~&`",
        "grüße",
        "日本",
        "a b",
        "a'b\"c",
        "%2F",
        "\x07",
        "x" * 255,
    ]
    seen = []
    for name in names:
        await channel.declare(name)
        await channel.consume(name, name, no_ack=True)
        channel.publish(name, b"x")
        seen.append((await channel.message()).method.routing_key)
    other = await env.channel()
    method = b"\x00\x32\x00\x0a\x00\x00" + b"\x02a\xff" + bytes(5)
    other.client.raw.write(frame(METHOD, other.number, method))
    return seen == names, await other.refused()


def _place(name: str) -> str:
    return f"queue '{name}' in vhost 'V'"


_REFUSED_ALIKE: dict[str, object] = {
    "version 2": None,
    "version 3": "invalid arg 'x-queue-version' for Q: \"unsupported queue version '3'\"",
    "timeout of quorum": None,
}
_COUNTED = {"x-delivery-count": 2}
_COUNTED_43 = {"x-delivery-count": 2, "x-acquired-count": 2}
_DEFAULT_QUORUM = {
    "durable": None,
    "is quorum": None,
    "is not classic": (
        "channel 406: PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost"
        " 'V': received 'classic' but current is 'quorum'"
    ),
    "transient": None,
    "is classic": None,
    "limit": None,
    "priorities": (
        "channel 406: PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'p' in vhost 'V'"
        " of queue type rabbit_quorum_queue"
    ),
    "transient priorities": None,
    "auto-delete": None,
    "exclusive": None,
}

ROWS = [
    Row(
        a_quorum_queue_drops_messages_above_its_limit,
        {"none": _MOST, "-1": 1, "2": 3},
        {"4.0": {"none": 21, "-1": _MOST, "2": 3}},
    ),
    Row(a_nack_counts_for_the_limit, 3, {"4.3": _MOST}),
    Row(
        kinds_of_requeue,
        {"reject": _COUNTED, "nack": _COUNTED, "recover": _COUNTED, "close": _COUNTED},
        {
            "4.3": {
                "reject": _COUNTED_43,
                "nack": {"x-acquired-count": 2},
                "recover": {"x-acquired-count": 2},
                "close": _COUNTED_43,
            }
        },
    ),
    Row(
        the_order_of_requeued_messages,
        {"classic": b"1245", "quorum": b"5412", "limited": b"4125"},
        {"4.0": {"classic": b"1245", "quorum": b"4125", "limited": b"4125"}},
    ),
    Row(
        priorities_in_a_quorum_queue,
        b"0123456789",
        {"4.0": b"2405618379", "4.3": b"5624813970"},
    ),
    Row(
        requeued_messages_precede_higher_priorities,
        [b"high", b"higher", b"low"],
        {"4.0": [b"low", b"high", b"higher"]},
    ),
    Row(
        headers_that_only_the_broker_should_write,
        (True, ["q", "e"], "e", 30),
        {"4.0": (True, ["q"], "q", 30)},
    ),
    Row(a_quorum_queue_overwrites_a_count, ([30, 1], False)),
    Row(
        dead_letters_keep_their_counts,
        {
            "classic to classic": (None, None, False),
            "classic to quorum": (0, None, False),
            "quorum to classic": (None, None, False),
            "quorum to quorum": (0, None, False),
        },
        {
            "4.0": {
                "classic to classic": (None, None, False),
                "classic to quorum": (None, None, False),
                "quorum to classic": (None, None, False),
                "quorum to quorum": (1, None, True),
            },
            "4.3": {
                "classic to classic": (None, None, True),
                "classic to quorum": (2, 2, True),
                "quorum to classic": (None, None, True),
                "quorum to quorum": (2, 2, True),
            },
        },
    ),
    Row(deliveries_before_count_for_the_limit, 3, {"4.3": 1}),
    Row(
        a_message_of_16_mib_and_more,
        None,
        {
            "4.0": (
                "channel 406: PRECONDITION_FAILED - message size 16777217 is larger than"
                " configured max size 16777216"
            )
        },
    ),
    Row(a_vhost_with_quorum_queues_by_default, _DEFAULT_QUORUM),
    Row(
        arguments_that_come_and_go,
        {
            **_REFUSED_ALIKE,
            "version 1": None,
            "leader": (
                "invalid arg 'x-queue-leader-locator' for Q of queue type rabbit_classic_queue"
            ),
            "no leader": (
                "invalid arg 'x-queue-leader-locator' for Q of queue type rabbit_classic_queue"
            ),
            "leader of quorum": (
                "invalid arg 'x-queue-leader-locator' for Q: invalid_queue_locator_arg"
            ),
            "timeout": None,
            "no timeout": None,
            "master": None,
        },
        {
            "4.0": {
                **_REFUSED_ALIKE,
                "version 1": None,
                "leader": None,
                "no leader": (
                    "invalid arg 'x-queue-leader-locator' for Q: invalid_queue_locator_arg"
                ),
                "leader of quorum": None,
                "timeout": None,
                "no timeout": None,
                "master": None,
            },
            "4.3": {
                **_REFUSED_ALIKE,
                "version 1": (
                    "invalid arg 'x-queue-version' for Q: \"unsupported queue version '1'\""
                ),
                "leader": None,
                "no leader": (
                    "invalid arg 'x-queue-leader-locator' for Q: invalid_queue_locator_arg"
                ),
                "leader of quorum": None,
                "timeout": (
                    "invalid arg 'x-consumer-timeout' for Q of queue type rabbit_classic_queue"
                ),
                "no timeout": (
                    "invalid arg 'x-consumer-timeout' for Q: \"expected integer, got longstr\""
                ),
                "master": (
                    "Feature `queue_master_locator` is deprecated.\nBy default, this feature is not"
                    " permitted anymore.\nThe feature will be removed from a future major RabbitMQ"
                    " version, regardless of the configuration; actual version to be determined.\n"
                    "To con..."
                ),
            },
        },
    ),
    Row(
        names_of_any_kind,
        (True, "connection 501: FRAME_ERROR - Malformed UTF-8 in shortstr"),
    ),
]
