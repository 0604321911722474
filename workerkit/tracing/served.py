"""The span of a request to our HTTP server."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.span import Span

from workerkit.errors import Retry
from workerkit.trace import RequestDetails
from workerkit.tracing import names
from workerkit.tracing.contexts import TRACEPARENT, TraceIds, UnsampledContext, is_unsampled
from workerkit.tracing.recorder import Recorder, text_attribute

_METHODS = frozenset("CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT QUERY TRACE".split())
_SERVER_ERROR = 500


class ServedRequest:
    """A block in which a request is answered. It implements `workerkit.trace.Served`.

    Args:
        headers: Those of the request, with the names in lower case.
        details: None if the head of the request never arrived.

    Attributes:
        trace: The fields `trace_id` and `span_id`; None if the span could not be started.
    """

    def __init__(
        self, recorder: Recorder, headers: Mapping[str, str], details: RequestDetails | None
    ) -> None:
        self._recorder = recorder
        self._headers = headers
        self._details = details
        self._method = "HTTP"
        self._context: Context | None = None
        self._token: Any = None
        self.trace: Mapping[str, str] | None = None

    def __enter__(self) -> Self:
        try:
            self._context = self._begin()
            self.trace = TraceIds(self._context)
            self._token = attach(self._context)
        except Exception as error:
            self._recorder.report(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end("", None, error)
        if self._token is not None:
            detach(self._token)

    def end(self, route: str, status: int | None, error: BaseException | None) -> None:
        """End the span; a second call has no effect."""
        context, self._context = self._context, None
        if context is None or type(context) is UnsampledContext:
            return
        span = get_current_span(context)
        try:
            if span.is_recording():
                self._describe(span, route, status, error)
        except Exception as failure:
            self._recorder.report(failure)
        try:
            span.end()
        except Exception as failure:
            self._recorder.report(failure)

    def _describe(
        self, span: Span, route: str, status: int | None, error: BaseException | None
    ) -> None:
        """Set the name and attributes that are known at the end.

        A status below 500 is no failure of the server.
        """
        if route:
            span.set_attribute(names.HTTP_ROUTE, route)
            span.update_name(f"{self._method} {route}")
        if status is not None:
            span.set_attribute(names.HTTP_STATUS, status)
        elif error is not None:
            span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
        if status is not None and status >= _SERVER_ERROR:
            span.set_attribute(names.ERROR_TYPE, str(status))
            span.set_status(Status(StatusCode.ERROR))
            if error is not None and not isinstance(error, Retry):
                self._recorder.describe_failure(span, error)

    def _begin(self) -> Context:
        """Return the context of the request; start its span if that may be recorded."""
        recorder = self._recorder
        known, propagation = recorder.known, recorder.propagation
        trace_id = 0
        if known.follows_unsampled and propagation.is_w3c:
            parent_header = self._headers.get(TRACEPARENT)
            if parent_header is None:
                trace_id = recorder.new_trace_id()
                drops = known.drops_root(trace_id)
            else:
                drops = is_unsampled(parent_header) is not None
            if drops:
                return UnsampledContext(propagation, self._headers, trace_id)
        parent = propagation.extract(self._headers)
        attributes = self._attributes()
        span = recorder.start(self._method, parent, SpanKind.SERVER, attributes, trace_id=trace_id)
        return set_span_in_context(span, parent)

    def _attributes(self) -> dict[str, Any]:
        """Return the attributes that a sampler may use. The query may have secrets."""
        details = self._details
        found: dict[str, Any] = {names.HTTP_METHOD: "_OTHER"}
        if details is None:
            return found
        if details.method in _METHODS:
            found[names.HTTP_METHOD] = self._method = details.method
        elif details.method:
            found[names.HTTP_METHOD_ORIGINAL] = details.method
        host, port = _host(details.host)
        found |= {
            names.URL_SCHEME: "http",
            names.URL_PATH: details.path,
            names.SERVER_ADDRESS: host,
            names.SERVER_PORT: port,
            names.CLIENT_ADDRESS: details.client,
            names.USER_AGENT: details.user_agent,
        }
        return {
            name: text_attribute(value) if isinstance(value, str) else value
            for name, value in found.items()
            if value
        }


def _host(header: str) -> tuple[str, int | None]:
    """Return the host and the port of a `Host` header."""
    host, colon, port = header.rpartition(":")
    if not colon or port.endswith("]"):
        return header.strip("[]"), None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else None
    return host.strip("[]"), number
