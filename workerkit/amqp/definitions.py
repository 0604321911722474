"""Definitions that RabbitMQ imports, of all that consumers need. Pure: no I/O."""

from collections.abc import Iterable
from typing import Any

from workerkit.amqp.needs import Needs
from workerkit.amqp.queue import Exchange, Queue

_LIMIT, _TYPE = "x-delivery-limit", "x-queue-type"


def definitions(
    every: Iterable[Needs], version: tuple[int, ...], *, vhosts: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Return what `rabbitmqctl import_definitions` takes, without queues of processes.

    Args:
        version: The version of the broker that will import them.
        vhosts: Whether to define the virtual hosts as well, for a broker that has none yet. The
            import may replace the description of one that exists.
    """
    found: dict[str, list[dict[str, Any]]] = {"vhosts": []} if vhosts else {}
    exchanges: list[dict[str, Any]] = []
    queues: list[dict[str, Any]] = []
    bindings: list[dict[str, Any]] = []
    for needs in every:
        if vhosts and {"name": needs.vhost} not in found["vhosts"]:
            found["vhosts"].append({"name": needs.vhost})
        exchanges += [
            _exchange(each, needs.vhost)
            for each in needs.exchanges.values()
            if isinstance(each, Exchange) and not each.is_built_in
        ]
        queues += [
            _queue(each.queue, needs.vhost, version)
            for each in needs.queues
            if not each.at_run_time
        ]
        bindings += [
            {
                "source": str(binding.exchange),
                "vhost": needs.vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": binding.routing_key,
                "arguments": dict(binding.arguments),
            }
            for queue, binding in needs.bindings
            if queue.is_permanent
        ]
    lists = {"exchanges": exchanges, "queues": queues, "bindings": bindings}
    return found | {name: _once(each) for name, each in lists.items()}


def without_type(every: Iterable[Needs]) -> list[str]:
    """Return the queues whose type the virtual host decides."""
    return [
        each.queue.name
        for needs in every
        for each in needs.queues
        if not each.at_run_time and _TYPE not in each.queue.declared_arguments
    ]


def _exchange(exchange: Exchange, vhost: str) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": vhost,
        "type": str(exchange.type),
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": exchange.declared_arguments,
    }


def _queue(queue: Queue, vhost: str, version: tuple[int, ...]) -> dict[str, Any]:
    arguments = queue.arguments_for(version)
    if queue.has_no_limit and _TYPE not in arguments:
        # A classic queue has no limit, and RabbitMQ refuses one. A worker tries both.
        arguments.pop(_LIMIT, None)
    return {
        "name": queue.name,
        "vhost": vhost,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": arguments,
    }


def _once(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each definition once: two connections may be to the same virtual host."""
    return list({repr(each): each for each in found}.values())
