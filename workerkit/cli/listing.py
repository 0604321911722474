"""List the consumers of an application with their options, for people and for programs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretStr

from workerkit.amqp.queue import Queue
from workerkit.app.assembly import Assembly
from workerkit.describe import describe_class
from workerkit.retry import RetryPolicy
from workerkit.safe_text import HIDDEN
from workerkit.signature import shown_type


def rows_of(assembly: Assembly) -> Iterator[dict[str, Any]]:
    """Yield one row for each consumer, of values that JSON has."""
    for transport, consumers in assembly.transports:
        for each in consumers:
            options = each.options
            values = {
                field.name: _plain(getattr(options, field.name))
                for field in dataclasses.fields(options)
                if field.name != "name" and field.name in options.sources
            }
            yield {
                "name": options.name,
                "kind": transport.kind,
                "class": f"{each.consumer.__module__}.{each.consumer.__qualname__}",
                "source": transport.source(options),
                "connection": getattr(options, "connection", None),
                "options": values,
                "sources": {name: str(options.sources[name]) for name in values},
                "place": describe_class(each.consumer),
            }


def _plain(value: Any) -> Any:
    """Return the value of an option for JSON."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Queue):
        return value.name
    if isinstance(value, RetryPolicy):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, str | int | float | list):
        return value
    return shown_type(value)
