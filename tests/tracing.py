"""Record spans in memory, as the SDK of an application would export them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.util._once import Once


class Spans:
    """The spans that have ended, in the order of their ends.

    Attributes:
        provider: The provider that records them.
    """

    def __init__(
        self, sampler: Sampler | None = None, id_generator: IdGenerator | None = None
    ) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler, id_generator=id_generator, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> Sequence[ReadableSpan]:
        """All spans."""
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        """The names of all spans."""
        return [each.name for each in self.all]

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans with a name."""
        return [each for each in self.all if each.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span with a name."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} spans {name!r} in {self.names}"
        return found[0]


@contextmanager
def recorded(sampler: Sampler | None = None) -> Iterator[Spans]:
    """Configure the SDK for this block, as an application does once at its start."""
    spans = Spans(sampler)
    with configured(spans.provider):
        yield spans


@contextmanager
def configured(provider: trace.TracerProvider | None) -> Iterator[None]:
    """Set the global provider for this block; None for an application without an SDK.

    The API allows to set it once, so this resets what the API remembers.
    """
    api: Any = trace
    before = api._TRACER_PROVIDER, api._TRACER_PROVIDER_SET_ONCE
    api._TRACER_PROVIDER, api._TRACER_PROVIDER_SET_ONCE = None, Once()
    try:
        if provider is not None:
            trace.set_tracer_provider(provider)
        yield
    finally:
        api._TRACER_PROVIDER, api._TRACER_PROVIDER_SET_ONCE = before


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Return the ids of a span's trace, and of the span."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    """Return the ids of its parent; None for a root."""
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    """Return the ids of the spans that it links to."""
    return [(each.context.trace_id, each.context.span_id) for each in span.links]
