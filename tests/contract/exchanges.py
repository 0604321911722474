"""Declaring and deleting exchanges."""

from typing import Any

from pamqp.commands import Exchange, Queue

from tests.contract.client import Channel, refused, short
from tests.contract.environment import Environment, Row


async def _fresh(channel: Channel) -> Channel:
    """Another channel, where an error closed the one before."""
    return await channel.client.channel()


async def _delete(channel: Channel, exchange: str, if_unused: bool = False) -> str | None:
    """Delete an exchange; how it was refused, if it was."""
    return await refused(channel.call(Exchange.Delete(0, exchange, if_unused)))


async def _exists(channel: Channel, exchange: str) -> bool:
    """Say whether there is such an exchange."""
    other = await _fresh(channel)
    return await refused(other.exchange(exchange, passive=True)) is None


async def declaring_an_exchange_alike_is_fine(env: Environment) -> object:
    """The same declaration twice is one exchange."""
    channel = await env.channel()
    for _ in range(2):
        await channel.exchange("e", "topic", durable=True, alternate_exchange="a")
    return await _exists(channel, "e")


async def declaring_an_exchange_differently_is_406(env: Environment) -> object:
    """The refusal names what differs, first by type, then flags, then arguments."""
    channel = await env.channel()
    await channel.exchange("e", "direct")
    await channel.exchange("a", "direct", alternate_exchange="x")

    async def again(name: str, kind: str = "direct", **changes: Any) -> str | None:
        return await refused((await _fresh(channel)).exchange(name, kind, **changes))

    return {
        "type": await again("e", "fanout", durable=True),
        "durable": await again("e", durable=True),
        "auto_delete": await again("e", auto_delete=True),
        "internal": await again("e", internal=True),
        "argument more": await again("e", alternate_exchange="x"),
        "argument less": await again("a"),
        "argument other": await again("a", alternate_exchange="y"),
        "argument of another type": await again("e", alternate_exchange=1),
        "argument of another type, new": await again("new", alternate_exchange=1),
        "argument of no meaning": await again("e", colour="red"),
    }


async def a_passive_declaration_looks_only_at_the_name(env: Environment) -> object:
    """It finds an exchange of any type; a missing one is 404."""
    channel = await env.channel()
    await channel.exchange("e", "topic", auto_delete=True)
    found = await refused(channel.exchange("e", "direct", durable=True, passive=True))
    return found, await refused(channel.exchange("nowhere", passive=True))


async def some_exchanges_are_there_from_the_start(env: Environment) -> object:
    """Each kind has its predeclared exchange, durable."""
    channel = await env.channel()
    kinds = ("direct", "fanout", "topic", "headers")
    for kind in kinds:
        await channel.exchange(f"amq.{kind}", kind, durable=True)
    await channel.exchange("amq.match", "headers", durable=True)
    return "declared again"


async def exchange_names_of_the_broker_are_403(env: Environment) -> object:
    """A client may not declare or delete an exchange whose name begins with `amq.`."""
    channel = await env.channel()
    declared = await refused(channel.exchange("amq.mine"))
    return declared, await _delete(await _fresh(channel), "amq.direct")


async def the_default_exchange_cannot_be_changed(env: Environment) -> object:
    """No declaring, deleting, binding or unbinding of the default exchange."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.exchange("e")
    fresh = [await _fresh(channel) for _ in range(7)]
    return {
        "declare": await refused(fresh[0].exchange("")),
        "passive": await refused(fresh[1].exchange("", passive=True)),
        "delete": await _delete(fresh[2], ""),
        "bind": await refused(fresh[3].bind("q", "", "k")),
        "unbind": await refused(fresh[4].unbind("q", "", "q")),
        "as source": await refused(fresh[5].chain("e", "", "k")),
        "as destination": await refused(fresh[6].chain("", "e", "k")),
    }


async def an_unknown_type_is_refused(env: Environment) -> object:
    """A type that does not exist is an error of the connection; since 4.0 of the channel."""
    return await refused((await env.channel()).exchange("e", "magic"))


async def an_internal_exchange_takes_no_publish(env: Environment) -> object:
    """Only other exchanges reach an internal one."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.exchange("inside", "fanout", internal=True)
    await channel.exchange("outside", "fanout")
    await channel.chain("inside", "outside")
    await channel.bind("q", "inside")
    channel.publish("", b"by way", exchange="outside")
    arrived = (await channel.take("q")).body
    channel.publish("", b"straight", exchange="inside")
    return arrived, await channel.refused()


async def an_exchange_deletes_itself_after_its_last_binding(env: Environment) -> object:
    """Auto-delete waits for a binding, and acts when the last one is gone."""
    channel = await env.channel()
    await channel.exchange("e", "fanout", auto_delete=True)
    for queue in ("q", "p"):
        await channel.declare(queue)
        await channel.bind(queue, "e")
    seen = []
    for queue in ("q", "p"):
        await channel.unbind(queue, "e")
        seen.append(await _exists(channel, "e"))
    return seen


async def an_exchange_deletes_itself_with_its_last_queue(env: Environment) -> object:
    """The deletion of a bound queue counts as unbinding."""
    channel = await env.channel()
    await channel.exchange("e", "fanout", auto_delete=True)
    await channel.declare("q")
    await channel.bind("q", "e")
    await channel.call(Queue.Delete(0, "q"))
    return await _exists(channel, "e")


async def only_sources_delete_themselves(env: Environment) -> object:
    """Of two exchanges bound, the source goes with the binding, the destination stays."""
    channel = await env.channel()
    await channel.exchange("source", "fanout", auto_delete=True)
    await channel.exchange("destination", "fanout", auto_delete=True)
    await channel.chain("destination", "source")
    await channel.call(Exchange.Unbind(0, "destination", "source", ""))
    return await _exists(channel, "source"), await _exists(channel, "destination")


async def deleting_an_exchange(env: Environment) -> object:
    """It is gone with its bindings; deleting a missing one is no error."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.exchange("e", "fanout")
    await channel.bind("q", "e")
    deleted = await _delete(channel, "e"), await _delete(channel, "e")
    await channel.exchange("e", "fanout")
    channel.publish("", b"x", exchange="e")
    return deleted, await channel.drain("q")


async def deleting_an_exchange_in_use(env: Environment) -> object:
    """With if-unused, an exchange that has bindings is refused, and stays."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.exchange("e", "fanout")
    await channel.exchange("unused", "fanout")
    await channel.bind("q", "e")
    free = await _delete(channel, "unused", if_unused=True)
    return free, await _delete(channel, "e", if_unused=True), await _exists(channel, "e")


async def publishing_needs_its_exchange_at_that_moment(env: Environment) -> object:
    """A channel that published before gets a 404 once the exchange is gone."""
    channel = await env.channel()
    await channel.exchange("e")
    channel.publish("", b"x", exchange="e")
    await _delete(channel, "e")
    channel.publish("", b"x", exchange="e")
    return short(await channel.refused())


def _differs(argument: str, exchange: str, what: str) -> str:
    return (
        f"channel 406: PRECONDITION_FAILED - inequivalent arg '{argument}'"
        f" for exchange '{exchange}' in vhost 'V': received {what}"
    )


_DEFAULT = "channel 403: ACCESS_REFUSED - operation not permitted on the default exchange"

ROWS = [
    Row(declaring_an_exchange_alike_is_fine, True),
    Row(
        declaring_an_exchange_differently_is_406,
        {
            "type": _differs("type", "e", "'fanout' but current is 'direct'"),
            "durable": _differs("durable", "e", "'true' but current is 'false'"),
            "auto_delete": _differs("auto_delete", "e", "'true' but current is 'false'"),
            "internal": _differs("internal", "e", "'true' but current is 'false'"),
            "argument more": _differs(
                "alternate-exchange", "e", "the value 'x' of type 'longstr' but current is none"
            ),
            "argument less": _differs(
                "alternate-exchange", "a", "none but current is the value 'x' of type 'longstr'"
            ),
            "argument other": _differs("alternate-exchange", "a", "'y' but current is 'x'"),
            "argument of another type": _differs(
                "alternate-exchange", "e", "the value '1' of type 'byte' but current is none"
            ),
            "argument of another type, new": (
                "channel 406: PRECONDITION_FAILED - invalid type 'byte' for arg"
                " 'alternate-exchange' in exchange 'new' in vhost 'V'"
            ),
            "argument of no meaning": None,
        },
    ),
    Row(
        a_passive_declaration_looks_only_at_the_name,
        (None, "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'"),
    ),
    Row(some_exchanges_are_there_from_the_start, "declared again"),
    Row(
        exchange_names_of_the_broker_are_403,
        (
            (
                "channel 403: ACCESS_REFUSED - exchange name 'amq.mine' contains reserved "
                "prefix 'amq.*'"
            ),
            (
                "channel 403: ACCESS_REFUSED - deletion of system exchange 'amq.direct' in "
                "vhost 'V' not allowed"
            ),
        ),
    ),
    Row(
        the_default_exchange_cannot_be_changed,
        {
            "declare": _DEFAULT,
            "passive": _DEFAULT,
            "delete": _DEFAULT,
            "bind": _DEFAULT,
            "unbind": _DEFAULT,
            "as source": _DEFAULT,
            "as destination": _DEFAULT,
        },
    ),
    Row(
        an_unknown_type_is_refused,
        "connection 503: COMMAND_INVALID - unknown exchange type 'magic'",
        {"4.0": "channel 406: PRECONDITION_FAILED - unknown exchange type 'magic'"},
    ),
    Row(
        an_internal_exchange_takes_no_publish,
        (
            b"by way",
            (
                "channel 403: ACCESS_REFUSED - cannot publish to internal exchange 'inside' "
                "in vhost 'V'"
            ),
        ),
    ),
    Row(an_exchange_deletes_itself_after_its_last_binding, [True, False]),
    Row(an_exchange_deletes_itself_with_its_last_queue, False),
    Row(only_sources_delete_themselves, (False, True)),
    Row(deleting_an_exchange, ((None, None), [])),
    Row(
        deleting_an_exchange_in_use,
        (None, "channel 406: PRECONDITION_FAILED - exchange 'e' in vhost 'V' in use", True),
    ),
    Row(publishing_needs_its_exchange_at_that_moment, "channel 404"),
]
