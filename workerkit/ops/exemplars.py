"""Exemplars: for each bucket of a histogram, the trace of the last value that was sampled."""

from collections.abc import Mapping
from typing import Any

from workerkit.observe import Published, Settled, Unhandled
from workerkit.ops.metrics import Metrics, known_method
from workerkit.trace import Tracing

Trace = Mapping[str, str]


class Exemplars:
    """An observer that adds exemplars to the histograms of handlers, publishes and requests.

    There is none while tracing is off, so that exemplars cost nothing then.

    Args:
        metrics: An observer that is notified before this one.
        tracing: Knows the spans.
    """

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._current = tracing.current
        self._sampled = tracing.sampled

    def __call__(self, record: Settled) -> None:
        """Add the exemplars of a delivery, or of a request."""
        trace = self._sampled(record.delivery)
        if trace is None:
            return
        handling = self._metrics.handler_seconds.of(record.consumer, record.source)
        handling.exemplify(record.seconds, trace)
        request: Any = record.delivery
        if hasattr(request, "status"):
            self._request(record.source, request.method, request.status, request.seconds, trace)

    def published(self, record: Published) -> None:
        """Add the exemplar of a publish."""
        if (trace := self._current()) is not None:
            publishing = self._metrics.publish_seconds.of(record.connection)
            publishing.exemplify(record.seconds, trace)

    def unhandled(self, record: Unhandled) -> None:
        """Add the exemplar of a request that reached no view."""
        if (trace := self._current()) is not None:
            self._request(record.route, record.method, record.status, record.seconds, trace)

    def _request(self, route: str, method: str, status: int, seconds: float, trace: Trace) -> None:
        labels = route, known_method(method), str(status)
        self._metrics.request_seconds.of(*labels).exemplify(seconds, trace)
