"""A span for each publish, and its trace context in the headers of the message."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.properties import Properties, RawHeaders
from workerkit.delivery import TraceDetails
from workerkit.trace import Tracing

_EMPTY = table.encode({})


@contextmanager
def traced_publish(
    tracing: Tracing,
    exchange: str,
    routing_key: str,
    connection: str,
    size: int,
    properties: Properties,
) -> Iterator[None]:
    """Trace the publish in this block, and add the trace context to its properties.

    A trace context that the caller has given does not change.

    Args:
        size: Bytes of the body.
    """
    message_id = properties.message_id = properties.message_id or uuid4().hex
    details = TraceDetails(
        exchange=exchange,
        routing_key=routing_key,
        message_id=message_id,
        conversation_id=properties.correlation_id,
        size=size,
        connection=connection.casefold(),
    )
    given = RawHeaders(properties.table or _EMPTY)
    with tracing.publish(details, given) as carrier:
        if carrier:
            properties.table = table.merge(properties.table or _EMPTY, carrier)
        yield
