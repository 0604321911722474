"""Start spans, describe failures in them, and keep faults of tracing away from the work."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import getrandbits
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.span import Span

from workerkit.describe import error_text, format_traceback
from workerkit.errors import Signal
from workerkit.safe_text import Redact, cleaner, excerpt
from workerkit.tracing import names
from workerkit.tracing.contexts import Propagation
from workerkit.tracing.sampling import known_decisions

log = logging.getLogger(__name__)

_LONGEST_TEXT = 255
_LONGEST_MESSAGE = 2_000
_LONGEST_TRACEBACK = 16_000
_MOST_LINKS = 128
"""The default limit of the SDK, which keeps the last ones."""

_MOST_KINDS = 100


class Recorder:
    """The tracer of the application, used with care.

    Args:
        tracer: Nothing else uses it.
        redact: Called with the texts of exceptions before they are recorded.

    Attributes:
        propagation: Reads and writes headers.
        known: What the sampler decides without being asked.
        new_trace_id: Returns a trace id for a root, in the form of the SDK's id generator.
    """

    new_trace_id: Callable[[], int]

    def __init__(self, tracer: Tracer, redact: Redact | None = None) -> None:
        self.propagation = Propagation(self.report)
        self.known = known_decisions(tracer)
        self._tracer = tracer
        ids: Any = getattr(tracer, "id_generator", None)
        self.new_trace_id = partial(getrandbits, 128) if ids is None else ids.generate_trace_id
        self._ids = _ChosenIds(tracer) if self.known.bound else None
        self._clean = cleaner(redact)
        self._reported: set[str] = set()

    def start(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        *,
        links: Sequence[Link] = (),
        trace_id: int = 0,
    ) -> Span:
        """Start a span.

        Args:
            context: That of its parent.
            attributes: Those that a sampler may use.
            trace_id: That of a root, if it was compared with the bound of the sampler.
        """
        if trace_id and self._ids is not None:
            self._ids.choose(trace_id)
        return self._tracer.start_span(
            name, context, kind, attributes=dict(attributes), links=links[-_MOST_LINKS:]
        )

    def end(
        self,
        span: Span,
        attributes: Callable[[], Mapping[str, Any]],
        error: BaseException | None,
    ) -> None:
        """End a span.

        Args:
            attributes: Called if the span is recorded, for those that are known only now.
            error: Why what it stands for has failed.
        """
        try:
            if span.is_recording():
                if error is not None:
                    self.describe_failure(span, error)
                span.set_attributes(dict(attributes()))
        except Exception as failure:
            self.report(failure)
        try:
            span.end()
        except Exception as failure:
            self.report(failure)

    def describe_failure(self, span: Span, error: BaseException) -> None:
        """Set error type and status of a span, and record the exception."""
        kind = _kind(error)
        text = excerpt(self._clean(error_text(error)), _LONGEST_MESSAGE)
        event = {names.EXCEPTION_TYPE: kind, names.EXCEPTION_MESSAGE: text}
        if not isinstance(error, Signal):
            trace = self._clean(format_traceback(error, limit=-20))
            event[names.EXCEPTION_STACKTRACE] = excerpt(trace, _LONGEST_TRACEBACK)
        span.set_attribute(names.ERROR_TYPE, kind)
        span.add_event(names.EXCEPTION, event)
        span.set_status(Status(StatusCode.ERROR, text))

    def report(self, error: Exception) -> None:
        """Log that tracing failed: once for each class of exceptions."""
        kind = type(error).__qualname__
        if kind not in self._reported and len(self._reported) < _MOST_KINDS:
            self._reported.add(kind)
            log.warning(
                "tracing failed: the work goes on; this is logged once",
                exc_info=error,
                extra={"error": kind},
            )


def text_attribute(text: str | None) -> str | None:
    """Return a text from outside for an attribute: None stays None, a long one is truncated.

    A lone surrogate, which would make an exporter refuse the whole batch of spans, is replaced.
    """
    if text is None:
        return None
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()


def _kind(error: BaseException) -> str:
    """Return the name of an exception's class as the conventions require it: with its module."""
    class_ = type(error)
    module = class_.__module__
    return class_.__qualname__ if module == "builtins" else f"{module}.{class_.__qualname__}"


class _ChosenIds:
    """An id generator of the SDK, whose next trace id can be chosen.

    So the trace id can be compared with the bound of a sampler before a span is created, and the
    sampler decides about the same id.
    """

    def __init__(self, tracer: Tracer) -> None:
        owner: Any = tracer
        self._inner = owner.id_generator
        self._chosen = threading.local()
        owner.id_generator = self

    def choose(self, trace_id: int) -> None:
        """Set the next trace id of this thread."""
        self._chosen.id = trace_id

    def generate_trace_id(self) -> int:
        """Return the chosen id, or a new one."""
        chosen, self._chosen.id = getattr(self._chosen, "id", None), None
        found: int = self._inner.generate_trace_id() if chosen is None else chosen
        return found

    def generate_span_id(self) -> int:
        """Return a new span id."""
        found: int = self._inner.generate_span_id()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
