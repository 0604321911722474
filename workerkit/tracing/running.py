"""The tracing of a running process."""

from collections.abc import Mapping

from opentelemetry.context import get_current
from opentelemetry.trace import (
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    TracerProvider,
    get_current_span,
    get_tracer_provider,
)
from opentelemetry.trace.span import Span

from workerkit import current_call
from workerkit.delivery import Delivery
from workerkit.endpoint import Endpoint
from workerkit.safe_text import Redact
from workerkit.trace import RequestDetails
from workerkit.tracing import names
from workerkit.tracing.calls import TracedCalls
from workerkit.tracing.contexts import TraceIds, UnsampledContext, fields_of
from workerkit.tracing.recorder import Recorder
from workerkit.tracing.served import ServedRequest
from workerkit.tracing.spans import OpenTelemetryTracing
from workerkit.version import __version__

_AMQP = "amqp"


class RunningTracing(OpenTelemetryTracing):
    """Traces one process, from its start to its stop."""

    def start(self) -> None:
        """Add the trace and the span to each log record of a span."""
        current_call.trace_fields = _log_fields

    def stop(self) -> None:
        """Add them no more."""
        if current_call.trace_fields is _log_fields:
            current_call.trace_fields = None

    def trace_calls(self, endpoint: Endpoint, system: str, source: str) -> None:
        """Trace the calls of an endpoint; see `TracedCalls`."""
        connection = getattr(endpoint.options, "connection", "") if system == _AMQP else ""
        server = self.servers.get(connection.casefold())
        TracedCalls(self.recorder, endpoint, system, source, server)

    def serve(self, headers: Mapping[str, str], details: RequestDetails | None) -> ServedRequest:
        """Trace one request of a client."""
        return ServedRequest(self.recorder, headers, details)

    def sampled(self, delivery: Delivery) -> Mapping[str, str] | None:
        """Return `trace_id` and `span_id` of the call for a delivery; None if it is not sampled."""
        ids = getattr(delivery, "trace", None)
        if not isinstance(ids, TraceIds) or type(ids.context) is UnsampledContext:
            return None
        return _fields_if_sampled(ids.span)

    def current(self) -> Mapping[str, str] | None:
        """Return the same of the current span."""
        if type(get_current()) is UnsampledContext:
            return None
        return _fields_if_sampled(get_current_span())


def running_tracing(
    redact: Redact | None,
    provider: TracerProvider | None = None,
    servers: Mapping[str, tuple[str, int]] | None = None,
) -> RunningTracing | None:
    """Return tracing with the configured SDK; None if there is none.

    Args:
        provider: The global one by default.
        servers: Host and port of each connection to a broker that has only one.
    """
    provider = get_tracer_provider() if provider is None else provider
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    tracer = provider.get_tracer("workerkit", __version__, names.SCHEMA)
    if isinstance(tracer, NoOpTracer):
        # OTEL_SDK_DISABLED is set.
        return None
    return RunningTracing(Recorder(tracer, redact), servers)


def _log_fields() -> dict[str, str]:
    return fields_of(get_current_span())


def _fields_if_sampled(span: Span) -> dict[str, str] | None:
    return fields_of(span) if span.get_span_context().trace_flags.sampled else None
