"""Faults of the options of one consumer that only RabbitMQ or the settings decide on."""

from collections.abc import Iterator
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message_types import type_warnings
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, retry_suffix
from workerkit.config.settings import WorkerSettings
from workerkit.delivery import Action
from workerkit.describe import describe_class
from workerkit.named_types import type_faults
from workerkit.transport import Declared

_LONGEST_NAME = 255


def option_faults(declared: Declared, options: AMQPOptions, settings: WorkerSettings) -> list[str]:
    """Return the faults that depend on the settings or on RabbitMQ's limits."""
    where = describe_class(declared.consumer)
    errors = []
    if options.connection.casefold() not in settings.amqp:
        known = ", ".join(sorted(settings.amqp))
        stated_by = options.origins.get("connection", where)
        errors.append(
            f"{stated_by}: the settings have no connection {options.connection!r}, only {known}"
        )
    names = [queue.name for queue in options.queues]
    errors += [
        f"{where}: queue {name!r} is listed twice in queues"
        for name in names
        if names.count(name) > 1
    ][:1]
    errors += [
        f"{where}: the name of queue {queue.name!r} is too long to append {suffix!r}"
        for queue in options.queues
        for suffix in _suffixes(options)
        if len((queue.name + suffix).encode()) > _LONGEST_NAME
    ][:1]
    types = type_faults("types", declared.consumer.body_types(), declared.signature)
    errors += [f"{where}: {each}" for each in types]
    return errors


def option_warnings(declared: Declared, options: AMQPOptions) -> list[str]:
    """Return what is allowed in `types` and `replies` but probably not intended."""
    signature = declared.signature
    found = list(type_warnings(options, signature.body))
    if signature.answers and signature.returns is not Any:
        if options.replies == "off":
            found.append("replies is 'off': nothing reads what handle returns")
        elif options.retry is None and options.on_exception is Action.REQUEUE:
            found.append(
                "a request whose handle raises is requeued again and again, and its sender gets"
                " no reply: set retry, or on_exception = 'dead_letter'"
            )
    return [f"{describe_class(declared.consumer)}: {each}" for each in found]


def _suffixes(options: AMQPOptions) -> Iterator[str]:
    """Yield the suffixes of the queues for retries and dead letters."""
    yield DEAD_LETTER_SUFFIX
    if options.retry is not None:
        yield from map(retry_suffix, options.retry.steps)
