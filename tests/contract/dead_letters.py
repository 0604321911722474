"""Dead letters: their destination, their headers, and cycles."""

import asyncio
from datetime import datetime
from typing import Any

from pamqp.commands import Queue

from tests.contract.client import Channel, Message
from tests.contract.environment import Environment, Row


async def _pair(env: Environment, **arguments: Any) -> Channel:
    """A queue `q` whose dead letters go to the queue `dead`."""
    channel = await env.channel()
    await channel.declare("dead")
    table = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"} | arguments
    await channel.declare("q", **table)
    return channel


async def _reject(channel: Channel, queue: str = "q") -> None:
    """Take the first message and drop it."""
    channel.reject((await channel.take(queue, no_ack=False)).tag, requeue=False)


def _deaths(message: Message) -> list[dict[str, Any]]:
    """The header x-death, with a mark in place of the time."""
    found = []
    for death in message.headers["x-death"]:
        kind = "a time" if isinstance(death["time"], datetime) else "no time"
        found.append({**death, "time": kind})
    return found


async def a_rejected_message_has_x_death(env: Environment) -> object:
    """x-death has reason, queue, exchange, keys, count, time; the first death has its own headers.

    Since 4.0 the last one has them, too.
    """
    channel = await _pair(env)
    await channel.bind("q", "amq.direct", "k")
    channel.publish("k", b"x", exchange="amq.direct", headers={"own": 1})
    await _reject(channel)
    message = await channel.take("dead")
    others = {name: value for name, value in message.headers.items() if name != "x-death"}
    method = message.method
    return _deaths(message), others, method.exchange, method.routing_key


async def a_message_without_headers_gets_them(env: Environment) -> object:
    """Headers are added to a message without any; the body and the other properties stay."""
    channel = await _pair(env)
    channel.publish("q", b"x", content_type="text/plain", priority=3)
    await _reject(channel)
    message = await channel.take("dead")
    kept = message.properties.content_type, message.properties.priority
    return sorted(message.headers), message.body, *kept


async def an_expired_message_has_its_reason(env: Environment) -> object:
    """The reason of an expired message is `expired`, with its own time to live."""
    channel = await _pair(env)
    channel.publish("q", b"x", expiration="1")
    return _deaths(await channel.take("dead"))


async def a_nack_makes_dead_letters_in_order(env: Environment) -> object:
    """Nack of several without requeue: all of them, the oldest first."""
    channel = await _pair(env)
    channel.publish("q", b"1", b"2", b"3")
    held = [await channel.take("q", no_ack=False) for _ in range(3)]
    channel.nack(held[-1].tag, multiple=True, requeue=False)
    return [(await channel.take("dead")).body for _ in range(3)]


async def without_a_key_the_original_one_is_kept(env: Environment) -> object:
    """Only x-dead-letter-routing-key changes the key."""
    channel = await env.channel()
    await channel.declare("dead")
    await channel.bind("dead", "amq.topic", "a.*")
    await channel.declare("q", x_dead_letter_exchange="amq.topic")
    await channel.bind("q", "amq.direct", "a.b")
    channel.publish("a.b", b"x", exchange="amq.direct")
    await _reject(channel)
    method = (await channel.take("dead")).method
    return method.exchange, method.routing_key


async def without_an_exchange_it_is_dropped(env: Environment) -> object:
    """Without a dead-letter exchange, or with a missing one, the message is dropped."""
    channel = await env.channel()
    await channel.declare("plain")
    await channel.declare("q", x_dead_letter_exchange="nowhere")
    for queue in ("plain", "q"):
        channel.publish(queue, b"x")
        await _reject(channel, queue)
    return [(await channel.declare(queue, passive=True)).message_count for queue in ("plain", "q")]


async def a_dead_letter_may_reach_many_queues(env: Environment) -> object:
    """A dead letter is a publish: each queue has its own copy, and settles it alone."""
    channel = await env.channel()
    await channel.exchange("graves", "fanout")
    for queue in ("a", "b"):
        await channel.declare(queue)
        await channel.bind(queue, "graves")
    await channel.declare("q", x_dead_letter_exchange="graves")
    channel.publish("q", b"x")
    await _reject(channel)
    await channel.take("a")
    held = await channel.take("b", no_ack=False)
    channel.reject(held.tag, requeue=True)
    message = await channel.take("b")
    return _deaths(message)[0]["count"], message.method.redelivered, await channel.drain("a")


async def the_exchange_may_come_later(env: Environment) -> object:
    """The exchange is looked up by its name for each message."""
    channel = await env.channel()
    await channel.declare("dead")
    await channel.declare("q", x_dead_letter_exchange="later")
    await channel.exchange("later", "fanout")
    await channel.bind("dead", "later")
    channel.publish("q", b"x")
    await _reject(channel)
    return (await channel.take("dead")).body


async def deaths_in_two_queues_are_two_entries(env: Environment) -> object:
    """The newest death is first; the first death has separate headers."""
    channel = await _pair(env)
    await channel.declare("middle", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    await channel.declare("first", x_dead_letter_exchange="", x_dead_letter_routing_key="middle")
    channel.publish("first", b"x", expiration="1")
    held = await channel.take("middle", no_ack=False)
    channel.reject(held.tag, requeue=False)
    message = await channel.take("dead")
    deaths = [(death["queue"], death["reason"], death["count"]) for death in _deaths(message)]
    first = [message.headers[f"x-first-death-{name}"] for name in ("queue", "reason", "exchange")]
    return deaths, first


async def deaths_of_one_kind_are_counted(env: Environment) -> object:
    """The same queue and the same reason again: one entry, and it moves to the front."""
    channel = await env.channel()
    await channel.declare("q", x_dead_letter_exchange="", x_dead_letter_routing_key="wait")
    await channel.declare(
        "wait", x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key="q"
    )
    channel.publish("q", b"x")
    for _ in range(3):
        await _reject(channel)
    message = await channel.take("q")
    return [
        (death["queue"], death["reason"], death["count"], death["exchange"], death["routing-keys"])
        for death in _deaths(message)
    ]


async def a_cycle_without_a_reject_ends(env: Environment) -> object:
    """A message is dropped if it would return to a queue only because it expires again."""
    channel = await env.channel()
    await channel.declare("alarm")
    await channel.declare(
        "a", x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key="b"
    )
    await channel.declare(
        "b", x_message_ttl=1, x_dead_letter_exchange="amq.fanout", x_dead_letter_routing_key="a"
    )
    await channel.bind("a", "amq.fanout")
    await channel.bind("alarm", "amq.fanout")
    channel.publish("a", b"x")
    reached = (await channel.take("alarm")).body
    await asyncio.sleep(0.05)  # some rounds, if there were any
    return reached, [await channel.drain(queue) for queue in ("a", "b", "alarm")]


async def a_cycle_with_a_reject_continues(env: Environment) -> object:
    """A cycle that contains a reject does not end."""
    channel = await env.channel()
    await channel.declare("q", x_dead_letter_exchange="", x_dead_letter_routing_key="q")
    channel.publish("q", b"x")
    for _ in range(4):
        await _reject(channel)
    message = await channel.take("q")
    return [(death["reason"], death["count"]) for death in _deaths(message)]


async def copies_are_not_dead_lettered_to_their_keys(env: Environment) -> object:
    """With a dead-letter routing key, the dead letter goes only there; x-death has the keys of CC.

    Up to 3.10 it drops CC, since 4.0 it keeps it.
    """
    channel = await _pair(env)
    await channel.declare("copy")
    channel.publish("q", b"x", headers={"CC": ["copy"]})
    await channel.take("copy")
    await _reject(channel)
    message = await channel.take("dead")
    keys = _deaths(message)[0]["routing-keys"]
    return "CC" in message.headers, keys, await channel.drain("copy")


async def the_head_of_a_deleted_or_purged_queue_is_no_dead_letter(env: Environment) -> object:
    """Purged and deleted messages are not dead-lettered."""
    channel = await _pair(env)
    channel.publish("q", b"1")
    await channel.call(Queue.Purge(0, "q"))
    channel.publish("q", b"2")
    await channel.call(Queue.Delete(0, "q"))
    return await channel.drain("dead")


def _death_headers(which: str, exchange: str) -> dict[str, str]:
    """The headers of the first or the last death: a reject in `q`."""
    names = {"exchange": exchange, "queue": "q", "reason": "rejected"}
    return {f"x-{which}-death-{name}": value for name, value in names.items()}


_REJECTED = {
    "count": 1,
    "reason": "rejected",
    "queue": "q",
    "time": "a time",
    "exchange": "amq.direct",
    "routing-keys": ["k"],
}
_FIRST, _LAST = list(_death_headers("first", "")), list(_death_headers("last", ""))

ROWS = [
    Row(
        a_rejected_message_has_x_death,
        (
            [_REJECTED],
            {"own": 1, **_death_headers("first", "amq.direct")},
            "",
            "dead",
        ),
        {
            "4.0": (
                [_REJECTED],
                {
                    "own": 1,
                    **_death_headers("first", "amq.direct"),
                    **_death_headers("last", "amq.direct"),
                },
                "",
                "dead",
            )
        },
    ),
    Row(
        a_message_without_headers_gets_them,
        (["x-death", *_FIRST], b"x", "text/plain", 3),
        {"4.0": (["x-death", *_FIRST, *_LAST], b"x", "text/plain", 3)},
    ),
    Row(
        an_expired_message_has_its_reason,
        [
            {
                "count": 1,
                "reason": "expired",
                "queue": "q",
                "time": "a time",
                "exchange": "",
                "routing-keys": ["q"],
                "original-expiration": "1",
            }
        ],
    ),
    Row(a_nack_makes_dead_letters_in_order, [b"1", b"2", b"3"]),
    Row(without_a_key_the_original_one_is_kept, ("amq.topic", "a.b")),
    Row(without_an_exchange_it_is_dropped, [0, 0]),
    Row(a_dead_letter_may_reach_many_queues, (1, True, [])),
    Row(the_exchange_may_come_later, b"x"),
    Row(
        deaths_in_two_queues_are_two_entries,
        ([("middle", "rejected", 1), ("first", "expired", 1)], ["first", "expired", ""]),
    ),
    Row(
        deaths_of_one_kind_are_counted,
        [("wait", "expired", 3, "", ["wait"]), ("q", "rejected", 3, "", ["q"])],
    ),
    Row(a_cycle_without_a_reject_ends, (b"x", [[], [], []])),
    Row(a_cycle_with_a_reject_continues, [("rejected", 4)]),
    Row(
        copies_are_not_dead_lettered_to_their_keys,
        (False, ["q", "copy"], []),
        {"4.0": (True, ["q", "copy"], [])},
    ),
    Row(the_head_of_a_deleted_or_purged_queue_is_no_dead_letter, []),
]
