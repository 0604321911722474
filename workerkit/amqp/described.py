"""Describe consumers of RabbitMQ, and what classes publish, for the AsyncAPI document."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from workerkit.amqp.checks import check_name
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.destination import Destination
from workerkit.amqp.queue import Exchange, ExchangeType, Queue
from workerkit.asyncapi import Channel, Message, Operation, Server
from workerkit.codec import (
    STRUCTURED,
    UnknownType,
    cloud_event_headers,
    decoder,
    is_cloud_event,
)
from workerkit.config.annotations import members
from workerkit.config.settings import WorkerSettings
from workerkit.delivery import Action
from workerkit.describe import describe_class
from workerkit.problem_details import PROBLEM, Problem
from workerkit.signature import Signature, shown_type
from workerkit.transport import Declared

_BINDING: Mapping[str, str] = {"bindingVersion": "0.3.0"}
_PROTOCOL_VERSION = "0.9.1"
# AsyncAPI allows no query and no fragment in an address, and braces enclose a parameter.
_NOT_IN_ADDRESS = frozenset("{}?#")
_PARAMETER = re.compile(r"\{([A-Za-z0-9_-]+)\}")


def receives(declared: Declared, settings: WorkerSettings) -> Iterator[Operation]:
    """Yield an operation for each queue of a consumer."""
    options, signature = _amqp(declared), declared.signature
    replies = tuple(_replies(options, signature))
    messages = tuple(_received(options, signature, correlated=bool(replies)))
    default_type = settings.amqp[options.connection.casefold()].queue_type
    place = (options.connection, options.vhost)
    for each in options.queues:
        queue = each.with_default_type(default_type)
        yield Operation(
            name=options.name if len(options.queues) == 1 else f"{options.name}.{queue.name}",
            action="receive",
            channel=_queue_channel(queue, place, settings),
            messages=messages,
            replies=replies,
            bindings={"amqp": {"ack": True, **_BINDING}},
            extensions=_handling(options, queue),
        )


def sends(declared: Declared, settings: WorkerSettings) -> Iterator[Operation]:
    """Yield an operation for each destination in `publishes`."""
    options = declared.options
    for key, type_ in options.publishes.items():
        to = Destination(key) if isinstance(key, str) else key
        yield Operation(
            name=f"{options.name}.sends.{to.routing_key or to.exchange}",
            action="send",
            channel=_destination_channel(to, settings),
            messages=tuple(_sent(type_, declared)),
            bindings={"amqp": {"deliveryMode": 2, "mandatory": to.mandatory, **_BINDING}},
        )


def publish_faults(declared: Declared, settings: WorkerSettings) -> Iterator[str]:
    """Yield the faults of the destinations and types in `publishes`, a sentence each."""
    for key, type_ in declared.options.publishes.items():
        start = f"{describe_class(declared.consumer)}: publishes[{_shown(key)}]"
        if not isinstance(key, str | Destination):
            yield f"{start}: write the name of a queue, or a Destination"
            continue
        to = Destination(key) if isinstance(key, str) else key
        yield from (f"{start}: {each}" for each in _destination_faults(to, settings))
        for each in members(type_):
            try:
                decoder(each)
            except UnknownType:
                yield f"{start} is {shown_type(each)}, which is no type of a body"


def _destination_faults(to: Any, settings: WorkerSettings) -> Iterator[str]:
    if not isinstance(to.routing_key, str):
        yield f"the routing key is {to.routing_key!r}: write a string"
        return
    try:
        if not to.exchange:
            check_name("queue", to.routing_key)
        elif not isinstance(to.exchange, Exchange):
            check_name("exchange", to.exchange)
    except (TypeError, ValueError) as error:
        yield str(error)
    if to.connection.casefold() not in settings.amqp:
        known = ", ".join(sorted(settings.amqp))
        yield f"the settings have no connection {to.connection!r}, only {known}"


def _shown(key: object) -> str:
    return repr(key) if not isinstance(key, Destination) else str(key)


def _received(options: AMQPOptions, signature: Signature, *, correlated: bool) -> Iterator[Message]:
    if options.types is None:
        for each in members(signature.body):
            yield from _formats(_type_name(each, options.name), each, correlated=correlated)
        return
    for name, type_ in options.types.items():
        headers, bindings, extensions = _type_place(options.type_from, name)
        for each in _formats(name, type_, correlated=correlated, headers=headers):
            yield replace(each, bindings=bindings, extensions=extensions)


def _formats(
    name: str,
    type_: Any,
    *,
    correlated: bool = False,
    headers: Mapping[str, Any] | None = None,
) -> Iterator[Message]:
    """Yield a message of a type, and for a CloudEvent one for each of its modes."""
    if not is_cloud_event(type_):
        yield Message(name=name, type=type_, headers=headers, correlated=correlated)
        return
    data = (get_args(type_) or (Any,))[0]
    yield Message(name=name, type=data, headers=cloud_event_headers(), correlated=correlated)
    yield Message(
        name=f"{name}.structured", type=type_, content_type=STRUCTURED, correlated=correlated
    )


def _type_place(
    type_from: str, name: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any], Mapping[str, Any]]:
    """Return the headers, the bindings and the extensions that show where the type is named."""
    kind, _, header = type_from.partition(":")
    if type_from == "type":
        return None, {"amqp": {"messageType": name, **_BINDING}}, {}
    if kind == "header":
        schema = {"type": "object", "required": [header], "properties": {header: {"const": name}}}
        return schema, {}, {}
    return None, {}, {"x-type": {"from": type_from, "name": name}}


def _sent(type_: Any, declared: Declared) -> Iterator[Message]:
    for each in members(type_):
        # In binary mode, unless the call chooses another content type.
        yield next(_formats(_type_name(each, declared.options.name), each))


def _replies(options: AMQPOptions, signature: Signature) -> Iterator[Message]:
    """Yield the replies of a consumer that is annotated to return a value."""
    if not signature.answers or signature.returns is Any or options.replies == "off":
        return
    for each in members(signature.returns):
        yield Message(name=_type_name(each, f"{options.name}.reply"), type=each, correlated=True)
    yield Message(name="Problem", type=Problem, content_type=PROBLEM, correlated=True)


def _handling(options: AMQPOptions, queue: Queue) -> dict[str, Any]:
    """Return what happens to messages: batches, and where failed messages go."""
    retried = options.retry is not None
    failures: dict[str, Any] = {
        "onException": str(Action.RETRY if retried else options.on_exception),
        "onInvalid": str(options.on_invalid),
    }
    if options.retry is not None:
        failures["retryDelays"] = list(options.retry.delays)
    if options.retry is not None and not queue.per_process:
        failures["retryQueues"] = [queue.retry_queue(each).name for each in options.retry.steps]
    dead = retried or Action.DEAD_LETTER in (options.on_exception, options.on_invalid)
    if dead and not queue.per_process:
        failures["deadLetterQueue"] = queue.dead_letters
    batch = {"x-batch-size": options.full_batch} if options.batch else {}
    return {"x-failures": failures, **batch}


def _queue_channel(
    queue: Queue, place: tuple[str, str | None], settings: WorkerSettings
) -> Channel:
    connection, vhost = place
    vhost_name = settings.amqp[connection.casefold()].vhost_name(vhost)
    described: dict[str, Any] = {
        "durable": queue.durable,
        "exclusive": queue.exclusive,
        "autoDelete": queue.auto_delete,
        "vhost": vhost_name,
    }
    extensions: dict[str, Any] = {}
    if arguments := queue.declared_arguments:
        extensions["x-arguments"] = dict(arguments)
    if queue.bindings:
        extensions["x-bindings"] = [
            {"exchange": str(each.exchange), "routingKey": each.routing_key}
            for each in queue.bindings
        ]
    address, parameters = _literal(queue.name), {}
    if queue.per_process:
        # The process chooses the whole name, so the binding has none.
        address = address and f"{address}.{{process}}"
        parameters = {"process": "A new one for each connection of a process."}
    else:
        described = {"name": queue.name, **described}
    return Channel(
        key=("queue", connection.casefold(), vhost_name, queue.name),
        name=queue.name,
        address=address,
        servers=_servers(connection, vhost, settings),
        parameters=parameters if address else {},
        bindings={"amqp": {"is": "queue", "queue": described, **_BINDING}},
        extensions=extensions,
    )


def _destination_channel(to: Destination, settings: WorkerSettings) -> Channel:
    place = (to.connection, to.vhost)
    vhost = settings.amqp[to.connection.casefold()].vhost_name(to.vhost)
    if not to.exchange:
        return _queue_channel(Queue(to.routing_key), place, settings)
    exchange: dict[str, Any] = {"name": str(to.exchange), "vhost": vhost}
    extensions: dict[str, Any] = {"x-routing-key": to.routing_key}
    if isinstance(to.exchange, Exchange):
        exchange |= {"durable": to.exchange.durable, "autoDelete": to.exchange.auto_delete}
        if to.exchange.type in get_args(ExchangeType):
            exchange["type"] = to.exchange.type
        else:
            extensions["x-exchange-type"] = to.exchange.type
    parameters = dict.fromkeys(
        _PARAMETER.findall(to.routing_key), f"A part of the routing key {to.routing_key}."
    )
    literal = _literal(_PARAMETER.sub("", to.routing_key))
    return Channel(
        key=("exchange", to.connection.casefold(), vhost, str(to.exchange), to.routing_key),
        name=f"{to.exchange}.{to.routing_key}" if to.routing_key else str(to.exchange),
        address=None if literal is None or not to.routing_key else to.routing_key,
        servers=_servers(*place, settings),
        parameters={} if literal is None else parameters,
        bindings={"amqp": {"is": "routingKey", "exchange": exchange, **_BINDING}},
        extensions=extensions,
    )


def _servers(connection: str, vhost: str | None, settings: WorkerSettings) -> tuple[Server, ...]:
    found = settings.amqp[connection.casefold()]
    protocol = "amqps" if found.is_encrypted else "amqp"
    path = found.vhost_name(vhost)
    return tuple(
        Server(connection, str(each), protocol, _PROTOCOL_VERSION, path) for each in found.servers
    )


def _literal(name: str) -> str | None:
    """Return a name as an address; None if it would mean something else there."""
    return name if _NOT_IN_ADDRESS.isdisjoint(name) else None


def _type_name(type_: Any, other: str) -> str:
    """Return the name of a type for a message; *other* for a type without its own name."""
    if is_cloud_event(type_):
        return _type_name((get_args(type_) or (Any,))[0], other)
    named = isinstance(type_, type) and type_.__module__ not in ("builtins", "types", "typing")
    return type_.__name__ if named else other


def _amqp(declared: Declared) -> AMQPOptions:
    assert isinstance(declared.options, AMQPOptions)
    return declared.options
