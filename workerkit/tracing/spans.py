"""Spans around what transports do: publish, move a message, open a stream."""

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    SpanKind,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.span import Span

from workerkit.delivery import Delivery, TraceDetails
from workerkit.trace import Carrier
from workerkit.tracing import names
from workerkit.tracing.calls import detail_attributes, server_attributes
from workerkit.tracing.contexts import TraceIds
from workerkit.tracing.recorder import Recorder, text_attribute

_RABBITMQ = "rabbitmq"
_ROOT = Context()
# Names of queues for one client or one conversation: the broker's, and those with a random part.
_ONE_OF_MANY = re.compile(r"amq\.(gen-|rabbitmq\.reply-to)|[0-9a-f]{16}|[0-9a-f]{8}-[0-9a-f]{4}-")


class SpanBlock:
    """A block of code with a span.

    Args:
        start: Returns the context with the span, and the headers of the block. If it raises, the
            block has neither.
        attributes: Called when the block has ended, if the span is recorded.
        is_current: Spans that the block starts are children of this one.

    Attributes:
        carrier: The headers with the context of the span.
    """

    def __init__(
        self,
        recorder: Recorder,
        start: Callable[[], tuple[Context, Carrier]],
        attributes: Callable[[], Mapping[str, Any]] = dict,
        *,
        is_current: bool = False,
    ) -> None:
        self._recorder = recorder
        self._start = start
        self._attributes = attributes
        self._is_current = is_current
        self._span: Span | None = None
        self._token: Any = None
        self._status = 0
        self.carrier: Carrier = {}

    def begin(self) -> None:
        """Start the span."""
        try:
            context, self.carrier = self._start()
            self._span = get_current_span(context)
            if self._is_current:
                self._token = attach(context)
        except Exception as error:
            self._recorder.report(error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            detach(self._token)
        if self._span is not None:
            self._recorder.end(self._span, self._known, error)

    def _known(self) -> dict[str, Any]:
        status = {names.HTTP_STATUS: self._status} if self._status else {}
        return {**self._attributes(), **status}

    def responded(self, status: int) -> None:
        """Note the status of the response."""
        self._status = status


class MessageSpan(SpanBlock):
    """A block that gets the headers for a message."""

    def __enter__(self) -> Carrier:
        self.begin()
        return self.carrier


class RequestSpan(SpanBlock):
    """A block that gets the span itself, to note the response."""

    def __enter__(self) -> Self:
        self.begin()
        return self


class OpenTelemetryTracing:
    """Implements `workerkit.trace.Tracing`.

    Attributes:
        servers: Host and port of each connection to a broker that has only one.
        fields: The names of the headers that hold the trace context.
    """

    def __init__(
        self, recorder: Recorder, servers: Mapping[str, tuple[str, int]] | None = None
    ) -> None:
        self.recorder = recorder
        self.servers = servers or {}
        self.fields = recorder.propagation.fields

    def publish(self, details: TraceDetails, given: Mapping[str, Any]) -> MessageSpan:
        """Trace one publish, as a child of the current span."""
        propagation = self.recorder.propagation

        def start() -> tuple[Context, Carrier]:
            current = get_current()
            has_own = any(name in given for name in self.fields if name != "baggage")
            caller = get_current_span(current)
            found = caller.get_span_context()
            drops = self.recorder.known.follows_unsampled and not found.trace_flags.sampled
            if found.is_valid and drops and not caller.is_recording():
                return current, {} if has_own else propagation.inject(current)
            links = [Link(each) for each in propagation.span_contexts([given] if has_own else [])]
            name, attributes = _publish_name(details)
            attributes |= server_attributes(self.servers.get(details.connection))
            span = self.recorder.start(name, current, SpanKind.PRODUCER, attributes, links=links)
            context = set_span_in_context(span, current)
            return context, {} if has_own else propagation.inject(context)

        return MessageSpan(self.recorder, start, lambda: _publish_attributes(details))

    def settle(self, delivery: Delivery, operation: str, connection: str = "") -> MessageSpan:
        """Trace the publishing of a copy.

        It is a child of the call that failed, so that the next attempt is a part of the same trace.
        After a call for a batch, or without a call, it is a child of what the headers name.
        """

        def start() -> tuple[Context, Carrier]:
            propagation = self.recorder.propagation
            parent, links = propagation.extract(delivery.trace_carrier()), []
            ids = getattr(delivery, "trace", None)
            if isinstance(ids, TraceIds):
                if ids.is_batch:
                    links.append(Link(ids.span.get_span_context()))
                else:
                    parent = set_span_in_context(ids.span, parent)
            elif operation == names.REPLY and get_current_span(parent) is INVALID_SPAN:
                # The call was a root that is not sampled.
                return parent, {}
            source = delivery.trace_source()
            attributes = {
                names.SYSTEM: delivery.trace_system,
                names.OPERATION_TYPE: names.SETTLE,
                names.OPERATION_NAME: operation,
                names.TEMPLATE: source,
                **server_attributes(self.servers.get(connection.casefold())),
            }
            name = f"{operation} {source}".strip()
            span = self.recorder.start(name, parent, SpanKind.PRODUCER, attributes, links=links)
            context = set_span_in_context(span, parent)
            return context, propagation.inject(context)

        def attributes() -> Mapping[str, Any]:
            details = detail_attributes(delivery.trace_details())
            return details | {names.ATTEMPT: delivery.attempt}

        return MessageSpan(self.recorder, start, attributes)

    def connect(
        self, source: str, method: str, url: str, server: tuple[str, int] | None
    ) -> RequestSpan:
        """Trace one request that opens a stream: a root, which the events link to."""

        def start() -> tuple[Context, Carrier]:
            attributes: dict[str, Any] = {names.HTTP_METHOD: method, names.URL: url}
            attributes |= server_attributes(server)
            name = f"{method} {source}".strip()
            span = self.recorder.start(name, _ROOT, SpanKind.CLIENT, attributes)
            context = set_span_in_context(span, _ROOT)
            return context, self.recorder.propagation.inject(context)

        return RequestSpan(self.recorder, start, is_current=True)


def _publish_name(details: TraceDetails) -> tuple[str, dict[str, Any]]:
    """Return the name of a span, and the attributes that a sampler may use."""
    attributes: dict[str, Any] = {
        names.SYSTEM: _RABBITMQ,
        names.OPERATION_TYPE: names.SEND,
        names.OPERATION_NAME: names.PUBLISH,
        names.DESTINATION: _publish_destination(details),
    }
    if not details.exchange and _ONE_OF_MANY.search(details.routing_key):
        return names.PUBLISH, attributes | {names.TEMPORARY: True}
    place = text_attribute(details.exchange or details.routing_key)
    template = place or names.DEFAULT_EXCHANGE
    return f"{names.PUBLISH} {template}", attributes | {names.TEMPLATE: template}


def _publish_destination(details: TraceDetails) -> str:
    place = ":".join(filter(None, (details.exchange, details.routing_key)))
    return text_attribute(place) or names.DEFAULT_EXCHANGE


def _publish_attributes(details: TraceDetails) -> dict[str, Any]:
    return detail_attributes(details) | {names.DESTINATION: _publish_destination(details)}
