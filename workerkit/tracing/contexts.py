"""Trace contexts: from headers, into headers, and those of calls that are not recorded."""

import re
from collections.abc import Callable, Iterable, Mapping
from random import getrandbits
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.span import Span

TRACEPARENT = "traceparent"
_W3C = frozenset({TRACEPARENT, "tracestate", "baggage"})
_LONGEST = 8192
"""Bytes of one header: W3C Baggage, section 3.3.2, allows no more."""

is_unsampled = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][02468ace]").fullmatch
"""Whether a text is a valid `traceparent` without the flag `sampled`."""

_ROOT = Context()

_KEY = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
# The form of one member of a list, the most members, and the most bytes of one. The API logs each
# invalid member, with its text: one message could cause 180 log records.
_LISTS: dict[str, tuple[re.Pattern[str], int, int]] = {
    "baggage": (
        re.compile(rf"({_KEY})[ \t]*=[ \t]*{_VALUE}(?:[ \t]*;[ \t]*{_KEY}(?:={_VALUE})?)*"),
        180,
        4096,
    ),
    "tracestate": (
        re.compile(
            r"([a-z][_0-9a-z*/\-]{0,255}|[a-z0-9][_0-9a-z*/\-]{0,240}@[a-z][_0-9a-z*/\-]{0,13})"
            r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
        ),
        32,
        513,
    ),
}
_LONGEST_TRACEPARENT = 512


def _is_list(name: str, text: str) -> bool:
    """Return whether a header is a valid list, if it has to be one; an invalid one is ignored."""
    if name not in _LISTS:
        return name != TRACEPARENT or len(text) <= _LONGEST_TRACEPARENT
    form, most, longest = _LISTS[name]
    members = [each.strip(" \t") for each in text.split(",")]
    if len(members) > most or max(map(len, members)) > longest:
        return False
    found = [form.fullmatch(each) for each in members if each]
    keys = {each[1] for each in found if each is not None}
    return len(keys) == len(found)


class _Headers(Getter[Mapping[str, Any]]):
    """Reads headers whose values may be of any type and size."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not value.isascii():
            return None
        if not _is_list(key, value):
            return None
        # Older versions of the API log spaces in baggage, which no key or value contains.
        return [re.sub("[ \t]", "", value) if key == "baggage" else value]

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()


class Propagation:
    """Reads and writes headers with the propagator that the application has configured.

    Args:
        report: Called with each exception of the propagator, which goes no further.

    Attributes:
        fields: The names of the headers that it writes.
        is_w3c: It knows no other headers than those of W3C.
    """

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report
        self._propagator = get_global_textmap()
        self.fields = frozenset(self._propagator.fields)
        self.is_w3c = TRACEPARENT in self.fields <= _W3C

    def extract(self, carrier: Mapping[str, Any]) -> Context:
        """Return the context in some headers; that of a root without a valid one."""
        try:
            return self._propagator.extract(carrier, _ROOT, _HEADERS)
        except Exception as error:
            self._report(error)
            return _ROOT

    def inject(self, context: Context) -> dict[str, str]:
        """Return the headers for a context."""
        carrier: dict[str, str] = {}
        try:
            self._propagator.inject(carrier, context)
        except Exception as error:
            self._report(error)
            return {}
        return {name: text for name, text in carrier.items() if len(text) <= _LONGEST}

    def span_contexts(self, carriers: Iterable[Mapping[str, Any]]) -> list[SpanContext]:
        """Return the valid contexts of spans in several headers."""
        found = [get_current_span(self.extract(each)).get_span_context() for each in carriers]
        return [each for each in found if each.is_valid]


class UnsampledContext(Context):
    """The context of a call that is not recorded; its span is created when it is first needed.

    It carries trace id, flags, trace state and baggage to what the call publishes. Most calls
    need none of it, and to create it would take 2 to 10 µs.

    Args:
        carrier: The headers of the delivery.
        trace_id: That of a root.
    """

    __slots__ = ("_carrier", "_full", "_propagation", "_trace_id")

    def __init__(self, propagation: Propagation, carrier: Mapping[str, Any], trace_id: int) -> None:
        self._propagation = propagation
        self._carrier = carrier
        self._trace_id = trace_id
        self._full: Context | None = None

    @property
    def full(self) -> Context:
        """The context with its span."""
        if self._full is None:
            parent = self._propagation.extract(self._carrier)
            found = get_current_span(parent).get_span_context()
            trace_id = found.trace_id if found.is_valid else self._trace_id or 1
            state = found.trace_state if found.is_valid else None
            flags = TraceFlags(found.trace_flags & ~TraceFlags.SAMPLED)
            span = SpanContext(trace_id, getrandbits(64) or 1, False, flags, state)
            self._full = set_span_in_context(NonRecordingSpan(span), parent)
        return self._full

    def get(self, key: str, default: Any = None) -> Any:
        return self.full.get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self.full[key]

    def __contains__(self, key: object) -> bool:
        return key in self.full

    def __iter__(self) -> Any:
        return iter(self.full)

    def __len__(self) -> int:
        return len(self.full)

    def copy(self) -> dict[str, Any]:
        """Return its entries, as `set_value` needs them."""
        return self.full.copy()

    def keys(self) -> Any:
        return self.full.keys()

    def values(self) -> Any:
        return self.full.values()

    def items(self) -> Any:
        return self.full.items()


class TraceIds(Mapping[str, str]):
    """The fields `trace_id` and `span_id` of a call, formatted when they are read.

    Attributes:
        context: Has the span of the call.
        is_batch: The call is for several deliveries, so it is not a part of the delivery's trace.
    """

    __slots__ = ("context", "is_batch")

    def __init__(self, context: Context, *, is_batch: bool = False) -> None:
        self.context = context
        self.is_batch = is_batch

    @property
    def span(self) -> Span:
        """The span of the call."""
        return get_current_span(self.context)

    def __getitem__(self, name: str) -> str:
        return fields_of(self.span)[name]

    def __iter__(self) -> Any:
        return iter(fields_of(self.span))

    def __len__(self) -> int:
        return len(fields_of(self.span))


def fields_of(span: Span) -> dict[str, str]:
    """Return the fields of a log record; none if there is no span."""
    found = span.get_span_context()
    if not found.is_valid:
        return {}
    return {
        "trace_id": format_trace_id(found.trace_id),
        "span_id": format_span_id(found.span_id),
    }
