"""Exemplars: a slow bucket of a histogram leads to a trace."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from dependency_injector import providers
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client.openmetrics import parser
from prometheus_client.samples import Exemplar
from pydantic import BaseModel

from tests.application import package_of
from tests.tracing import Spans, recorded
from workerkit import AMQPConsumer, HTTPView, Publisher, WorkerContainer, WorkerSettings
from workerkit.config.sections import OpsSettings
from workerkit.health import Readiness
from workerkit.ops.counting import Distribution
from workerkit.ops.server import OpsServer, metrics
from workerkit.runner import Runner
from workerkit.testing import running

OPENMETRICS = "application/openmetrics-text"
PROMETHEUS = "text/plain"

read: Any = parser.text_string_to_metric_families  # It has no annotations.


class Order(BaseModel):
    id: int


class Orders(AMQPConsumer):
    """Publishes."""

    queues = ["orders"]

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def handle(self, order: Order) -> None:
        await self.publisher.publish(order, "paid")


class Paid(AMQPConsumer):
    """Takes all of a batch."""

    queues = ["paid"]

    async def handle(self, orders: list[Order]) -> None: ...


class All(HTTPView):
    """A view."""

    routes = ["/orders"]

    async def get(self) -> Order:
        return Order(id=1)


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of the test."""
    with recorded() as found:
        yield found


def exemplars(page: str, name: str, **labels: str) -> dict[str, Exemplar]:
    """Return the exemplars of a histogram by the bounds of their buckets."""
    samples = [each for family in read(page) for each in family.samples]
    return {
        each.labels["le"]: each.exemplar
        for each in samples
        if each.exemplar is not None
        and each.name == f"workerkit_{name}_bucket"
        and labels.items() <= each.labels.items()
    }


def page_of(runner: Runner, accept: str = OPENMETRICS) -> str:
    """Return the page of the metrics."""
    assert runner.metrics is not None
    return metrics(runner.metrics.registry, accept)[0].decode()


def ids(spans: Spans, name: str) -> dict[str, str]:
    """Return the labels for a span."""
    context = spans.one(name).get_span_context()
    assert context is not None
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
    }


async def work(app: Any) -> None:
    """Have a bit of everything handled."""
    await app.publish(Order(id=1), "orders")
    await app.idle()
    await app.http.get("/orders")
    await app.http.get("/nowhere")


async def test_each_kind_of_histogram(spans: Spans) -> None:
    """Calls, batches, publishes, requests, and those that reach no view."""
    async with running(WorkerContainer(), packages=[package_of(Orders, Paid, All)]) as app:
        await work(app)
        page, plain = page_of(app.runner), page_of(app.runner, PROMETHEUS)

    expected = {
        ("handler_seconds", "consumer", "Orders"): "process orders",
        ("handler_seconds", "consumer", "Paid"): "process paid",
        ("handler_seconds", "consumer", "All"): "GET /orders",
        ("publish_seconds", "connection", "default"): "process orders",
        ("http_request_seconds", "route", "/orders"): "GET /orders",
        ("http_request_seconds", "status", "404"): "GET",
    }
    for (histogram, label, value), name in expected.items():
        [(bound, found)] = exemplars(page, histogram, **{label: value}).items()
        assert found.labels == ids(spans, name)
        assert found.value <= float(bound)
        assert found.timestamp is not None
        assert sum(len(each) for item in found.labels.items() for each in item) < 128
    assert " # {" not in plain
    assert "trace_id" not in plain


async def test_what_is_not_sampled_has_none() -> None:
    """A trace that nobody can open is no help."""
    with recorded(ALWAYS_OFF):
        async with running(WorkerContainer(), packages=[package_of(Orders, Paid, All)]) as app:
            await work(app)
            page = page_of(app.runner)

    assert "workerkit_handler_seconds_bucket" in page
    assert " # {" not in page


async def test_without_tracing() -> None:
    """There is no observer for it then."""
    container = WorkerContainer()
    settings = WorkerSettings(tracing="off")
    container.settings.override(providers.Object(settings))
    with recorded():
        async with running(container, packages=[package_of(Orders, Paid, All)]) as app:
            await work(app)
            page = page_of(app.runner)

    assert " # {" not in page


async def test_the_page_itself_is_not_traced(spans: Spans) -> None:
    """Prometheus and Kubernetes ask all the time; they would only be noise."""
    async with running(WorkerContainer(), packages=[package_of(All)]) as app:
        await app.http.get("/orders")
        settings = WorkerSettings(ops=OpsSettings(port=0))
        assert app.runner.metrics is not None
        ops = OpsServer(settings, Readiness(), app.runner.metrics)
        await ops.open()
        async with ClientSession() as session:
            for path in ("/metrics", "/health/live", "/health/ready", "/nowhere"):
                headers = {"Accept": OPENMETRICS}
                async with session.get(f"{ops.url}{path}", headers=headers) as response:
                    text = await response.text()
                    if path == "/metrics":
                        assert exemplars(text, "http_request_seconds")
        await ops.close()

    assert spans.names == ["GET /orders"]


@pytest.mark.parametrize(
    ("value", "bucket"), [(0.05, 0), (0.1, 0), (0.11, 1), (1.0, 1), (1.01, 2), (99.0, 2)]
)
def test_the_bucket_of_a_value(value: float, bucket: int) -> None:
    """It is the one that counts the value and that no smaller one does."""
    distribution = Distribution((0.1, 1.0))

    distribution.observe(value)
    distribution.exemplify(value, {"trace_id": "a"})

    counts, _ = distribution.read()
    marked = [number for number, each in enumerate(distribution.exemplars) if each is not None]
    assert marked == [bucket]
    assert next(number for number, count in enumerate(counts) if count) == bucket


def test_the_last_one_of_a_bucket_counts() -> None:
    """There is one for each bucket, so they do not accumulate."""
    distribution = Distribution((0.1, 1.0))

    for number in range(1000):
        distribution.exemplify(number / 1000, {"trace_id": str(number)})

    found = [each.trace["trace_id"] for each in distribution.exemplars if each is not None]
    assert found == ["100", "999"]
