"""One trace through HTTP, AMQP, a retry, a dead letter, its replay and an event stream."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from tests.collector import CollectedSpan, collecting
from tests.one_trace import CLIENT, TRACE, TREE, one_order, tree
from tests.ports import free_port
from tests.tracing import configured, ids, links_of, parent_of, recorded
from workerkit.testing import embedded_broker


async def test_one_trace() -> None:
    """Each span is the child of what caused it; only the connection to the stream is a root."""
    with recorded() as spans:
        async with embedded_broker() as broker:
            await one_order(broker.url)

    assert tree(spans.all) == TREE
    assert parent_of(spans.one("POST /orders")) == (TRACE, CLIENT)
    [connection] = [each for each in spans.all if ids(each)[0] != TRACE]
    assert (connection.name, connection.kind) == ("GET /moves", SpanKind.CLIENT)
    assert parent_of(connection) is None
    assert links_of(spans.one("process /moves")) == [ids(connection)]


@asynccontextmanager
async def exporting(url: str, timeout: float = 10.0) -> AsyncIterator[None]:
    """Export to a collector inside the block, as applications do: in batches, from a thread."""
    resource = Resource.create({"service.name": "shop", "service.version": "1.2"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=url, timeout=timeout)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=20))
    with configured(provider):
        try:
            yield
        finally:
            # The collector runs in the event loop of this test.
            await asyncio.to_thread(provider.shutdown)


async def test_one_trace_through_a_collector() -> None:
    """Names, attributes, parents and the resource arrive by OTLP."""
    async with collecting() as collector, embedded_broker() as broker, exporting(collector.url):
        await one_order(broker.url)

    ours = [each for each in collector.spans if each.trace_id == f"{TRACE:032x}"]
    assert {each.resource["service.name"] for each in collector.spans} == {"shop"}
    assert len(ours) == len(TREE)
    assert collected_tree(ours) == TREE
    [request] = [each for each in ours if each.name == "POST /orders"]
    assert request.parent_id == f"{CLIENT:016x}"
    assert request.attributes["http.response.status_code"] == 204
    assert request.schema.startswith("https://opentelemetry.io/schemas/")
    [publish] = [each for each in ours if each.name == "publish orders"]
    assert publish.attributes["messaging.system"] == "rabbitmq"
    assert publish.resource["service.version"] == "1.2"


def collected_tree(spans: list[CollectedSpan]) -> dict[str, str | None]:
    """Return the parent of each span, as `tree` does."""
    names: dict[str, str] = {}
    for span in sorted(spans, key=lambda each: each.start):
        number = 1 + sum(each.startswith(f"{span.name} ") for each in names.values())
        names[span.span_id] = (
            f"{span.name} {number}" if span.name == "process orders" else span.name
        )
    return {names[each.span_id]: names.get(each.parent_id) for each in spans}


async def test_a_collector_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the work depends on it, and workerkit logs nothing about it."""
    caplog.set_level(logging.WARNING, "workerkit")
    async with (
        embedded_broker() as broker,
        exporting(f"http://127.0.0.1:{free_port()}/v1/traces", timeout=0.1),
    ):
        await one_order(broker.url)

    ours = [each for each in caplog.records if each.name.startswith("workerkit")]
    # The failures of the handler that the application has.
    assert {each.message for each in ours} == {"not handled"}
    assert len(ours) == 2
