"""An OpenTelemetry SDK for one test, which keeps its spans in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler


class Spans:
    """The spans that have ended."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def ended(self) -> list[ReadableSpan]:
        """All, in the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [each.name for each in self.ended]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of that name."""
        [found] = [each for each in self.ended if each.name == name]
        return found


@contextmanager
def sdk(sampler: Sampler | None = None, **options: Any) -> Iterator[Spans]:
    """Configure the SDK inside the block; afterwards there is none, as before."""
    provider = TracerProvider(sampler=sampler, **options)
    with pytest.MonkeyPatch.context() as patch:
        # The public function sets one provider for the life of the process.
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield Spans(provider)
        provider.shutdown()
