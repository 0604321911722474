"""The methods exchange.* and queue.*: one function for each, which returns the reply."""

from secrets import token_urlsafe

from pamqp.commands import Exchange as ExchangeMethods
from pamqp.commands import Queue as QueueMethods

from workerkit.embedded import arguments as queue_arguments
from workerkit.embedded import methods
from workerkit.embedded.arguments import QueueArguments, compare_argument, inequivalent
from workerkit.embedded.channel import Channel
from workerkit.embedded.errors import (
    Refusal,
    default_exchange,
    label,
    locked,
    not_found,
    reserved,
)
from workerkit.embedded.exchange import TYPES, Binding, Exchange
from workerkit.embedded.methods import Reply, arguments
from workerkit.embedded.queue import Queue
from workerkit.embedded.table import Table, text
from workerkit.embedded.vhost import REPLY_TO, VirtualHost

_RESERVED = "amq."


def usable_queue(channel: Channel, name: str) -> Queue:
    """Return the queue *name*, or the one that the channel declared last if it is empty.

    Raises:
        Refusal: It does not exist, or is exclusive to another connection.
    """
    if not name:
        if not channel.last_queue:
            raise Refusal("NOT_FOUND", "no previously declared queue")
        name = channel.last_queue
    queue = channel.vhost.queue(name)
    if queue.owner is not None and queue.owner is not channel.session:
        raise locked(name, channel.vhost.name)
    return queue


# Exchanges


def declare_exchange(channel: Channel, method: ExchangeMethods.Declare) -> Reply:
    """Handle exchange.declare."""
    vhost, name = channel.vhost, method.exchange
    if not name:
        raise default_exchange()
    if method.passive:
        vhost.exchange(name)
    elif name in vhost.exchanges:
        _check_type(method, vhost)
        _compare_exchange(vhost.exchanges[name], method)
    else:
        if name.startswith(_RESERVED):
            raise reserved("exchange", name)
        _check_type(method, vhost)
        _check_alternate(method, vhost)
        vhost.exchanges[name] = Exchange(
            name,
            vhost.name,
            method.exchange_type,
            arguments(method),
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            floats_equal_integers=vhost.behaviour.floats_equal_integers,
        )
    return methods.EXCHANGE_DECLARE_OK


def delete_exchange(channel: Channel, method: ExchangeMethods.Delete) -> Reply:
    """Handle exchange.delete."""
    vhost, name = channel.vhost, method.exchange
    if not name:
        raise default_exchange()
    if name.startswith(_RESERVED):
        place = label("exchange", name, vhost.name)
        raise Refusal("ACCESS_REFUSED", f"deletion of system {place} not allowed")
    exchange = vhost.exchanges.get(name)
    if exchange is not None:
        if method.if_unused and exchange.bindings:
            raise Refusal("PRECONDITION_FAILED", f"{exchange.label} in use")
        vhost.delete_exchange(exchange)
    return methods.EXCHANGE_DELETE_OK


def bind_exchange(channel: Channel, method: ExchangeMethods.Bind) -> Reply:
    """Handle exchange.bind."""
    if not (method.source and method.destination):
        raise default_exchange()
    source = channel.vhost.exchange(method.source)
    destination = channel.vhost.exchange(method.destination)
    source.bind(Binding(destination, method.routing_key, arguments(method)))
    return methods.EXCHANGE_BIND_OK


def unbind_exchange(channel: Channel, method: ExchangeMethods.Unbind) -> Reply:
    """Handle exchange.unbind."""
    if not (method.source and method.destination):
        raise default_exchange()
    exchanges = channel.vhost.exchanges
    source, destination = exchanges.get(method.source), exchanges.get(method.destination)
    if source is not None and destination is not None:
        binding = Binding(destination, method.routing_key, arguments(method))
        channel.vhost.unbind(source, binding)
    return methods.EXCHANGE_UNBIND_OK


def _check_type(method: ExchangeMethods.Declare, vhost: VirtualHost) -> None:
    if method.exchange_type not in TYPES:
        code = vhost.behaviour.unknown_exchange_type
        raise Refusal(code, f"unknown exchange type '{method.exchange_type}'")


def _check_alternate(method: ExchangeMethods.Declare, vhost: VirtualHost) -> None:
    """Check the alternate exchange of a new exchange. That of an existing one is compared."""
    alternate = arguments(method).get("alternate-exchange")
    if alternate is not None and alternate.type != "longstr":
        place = label("exchange", method.exchange, vhost.name)
        fault = f"invalid type '{alternate.type}' for arg 'alternate-exchange' in {place}"
        raise Refusal("PRECONDITION_FAILED", fault)


def _compare_exchange(exchange: Exchange, method: ExchangeMethods.Declare) -> None:
    pairs = {
        "type": (method.exchange_type, exchange.type),
        "durable": (method.durable, exchange.durable),
        "auto_delete": (method.auto_delete, exchange.auto_delete),
        "internal": (method.internal, exchange.internal),
    }
    _compare_flags(pairs, exchange.label)
    name = "alternate-exchange"
    declared, current = arguments(method).get(name), exchange.arguments.get(name)
    compare_argument(name, declared, current, exchange.label)


def _compare_flags(pairs: dict[str, tuple[object, object]], place: str) -> None:
    for name, (received, current) in pairs.items():
        if received != current:
            words = (f"'{each}'".lower() for each in (received, current))
            raise inequivalent(name, place, *words)


# Queues


def declare_queue(channel: Channel, method: QueueMethods.Declare) -> Reply:
    """Handle queue.declare."""
    name = method.queue
    if method.passive and name.startswith(REPLY_TO):
        return _declare_replies(channel, name)
    if method.passive:
        queue = channel.vhost.queue(name)
        usable_queue(channel, name)
    elif name in channel.vhost.queues:
        queue = channel.vhost.queues[name]
        _compare_queue(channel, queue, method)
    else:
        queue = _new_queue(channel, method)
    queue.touch()
    queue.drop_expired()
    channel.last_queue = queue.name
    return methods.queue_declare_ok(queue.name, len(queue.waiting), len(queue.consumers))


def bind_queue(channel: Channel, method: QueueMethods.Bind) -> Reply:
    """Handle queue.bind."""
    if not method.exchange:
        raise default_exchange()
    exchange = channel.vhost.exchange(method.exchange)
    queue = usable_queue(channel, method.queue)
    exchange.bind(Binding(queue, _key(queue, method), arguments(method)))
    return methods.QUEUE_BIND_OK


def unbind_queue(channel: Channel, method: QueueMethods.Unbind) -> Reply:
    """Handle queue.unbind."""
    if not method.exchange:
        raise default_exchange()
    name = method.queue or channel.last_queue
    exchange = channel.vhost.exchanges.get(method.exchange)
    if name in channel.vhost.queues and exchange is not None:
        queue = usable_queue(channel, name)
        binding = Binding(queue, _key(queue, method), arguments(method))
        channel.vhost.unbind(exchange, binding)
    return methods.QUEUE_UNBIND_OK


def purge_queue(channel: Channel, method: QueueMethods.Purge) -> Reply:
    """Handle queue.purge."""
    return methods.queue_purge_ok(usable_queue(channel, method.queue).purge())


def delete_queue(channel: Channel, method: QueueMethods.Delete) -> Reply | None:
    """Handle queue.delete; send the reply here: RabbitMQ sends it before it cancels consumers."""
    name = method.queue or channel.last_queue
    if name and name not in channel.vhost.queues:
        return methods.queue_delete_ok(0)
    queue = usable_queue(channel, name)
    if method.if_unused and queue.consumers:
        raise Refusal("PRECONDITION_FAILED", f"{queue.label} in use")
    if method.if_empty and len(queue.waiting):
        raise Refusal("PRECONDITION_FAILED", f"{queue.label} not empty")
    if not method.nowait:
        channel.send(methods.queue_delete_ok(len(queue.waiting)))
    channel.vhost.delete_queue(queue)
    return None


def _key(queue: Queue, method: QueueMethods.Bind | QueueMethods.Unbind) -> str:
    """Return the routing key: the queue's name if both the queue and the key are empty."""
    return queue.name if not method.queue and not method.routing_key else method.routing_key


def _declare_replies(channel: Channel, name: str) -> Reply:
    """Reply to a passive declare of a direct reply-to name, which is not a queue."""
    own = name == REPLY_TO and channel.reply_tag is not None
    if not own and name != REPLY_TO and name not in channel.vhost.replies:
        raise not_found("queue", name, channel.vhost.name)
    return methods.queue_declare_ok(name, 0, 1)


def _new_queue(channel: Channel, method: QueueMethods.Declare) -> Queue:
    name, vhost = method.queue, channel.vhost
    if name.startswith(_RESERVED):
        raise reserved("queue", name)
    name = name or f"amq.gen-{token_urlsafe(16)}"
    complete = _with_queue_type(vhost, method)
    queue_arguments.check(complete, name, vhost.name, vhost.behaviour)
    parsed = QueueArguments.of(arguments(method), vhost.behaviour, complete)
    if parsed.quorum:
        _check_quorum(name, vhost.name, method)
    return vhost.add_queue(
        name,
        parsed,
        durable=method.durable,
        auto_delete=method.auto_delete,
        owner=channel.session if method.exclusive else None,
    )


def _with_queue_type(vhost: VirtualHost, method: QueueMethods.Declare) -> Table:
    """Return the arguments with the queue type that RabbitMQ adds.

    Only durable queues that are not exclusive and not auto-delete get the default of the virtual
    host. RabbitMQ 4 adds `classic` to others.
    """
    table, kind = arguments(method), vhost.default_queue_type
    if "x-queue-type" in table:
        return table
    if method.exclusive or method.auto_delete or not method.durable:
        kind = None
    if kind is None and vhost.behaviour.reports_queue_type:
        kind = "classic"
    return table if kind is None else table | {"x-queue-type": text(kind)}


def _check_quorum(name: str, vhost: str, method: QueueMethods.Declare) -> None:
    faults = {
        "auto-delete": method.auto_delete,
        "exclusive-owner": method.exclusive,
        "non-durable": not method.durable,
    }
    for fault, wrong in faults.items():
        if wrong:
            place = label("queue", name, vhost)
            raise Refusal("PRECONDITION_FAILED", f"invalid property '{fault}' for {place}")


def _compare_queue(channel: Channel, queue: Queue, method: QueueMethods.Declare) -> None:
    usable_queue(channel, queue.name)
    if method.exclusive != (queue.owner is not None):
        raise locked(queue.name, channel.vhost.name)
    flags: dict[str, tuple[object, object]] = {
        "durable": (method.durable, queue.durable),
        "auto_delete": (method.auto_delete, queue.auto_delete),
    }
    _compare_flags(flags, queue.label)
    declared = _with_queue_type(channel.vhost, method)
    queue_arguments.compare(declared, queue.arguments.complete, queue.label)
