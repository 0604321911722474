"""Traces of a whole application on the embedded broker."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dependency_injector import providers
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from tests.application import package_of
from tests.tracing import Spans, ids, links_of, parent_of, recorded
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    PeriodicTask,
    Publisher,
    Reject,
    Retry,
    RetryPolicy,
    SimpleConsumer,
    SimpleDelivery,
    SimpleOptions,
    SimpleTransport,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
    current_call,
)
from workerkit.logs import ContextFilter
from workerkit.options import Options
from workerkit.testing import override, running, sse_server

TRACE, PRODUCER = "a1" * 16, "b2" * 8
SAMPLED = {"traceparent": f"00-{TRACE}-{PRODUCER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PRODUCER}-00"}
PARENT = int(TRACE, 16), int(PRODUCER, 16)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class Orders(AMQPConsumer):
    """Publishes what it gets, or fails, as the body says."""

    queues = ["orders"]
    retry = RetryPolicy(delays=(60.0,), jitter=0)

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def handle(self, body: str, message: AMQPMessage) -> None:
        if body == "retry" and message.attempt == 1:
            raise Retry
        if body == "reject":
            raise Reject("no")
        if body == "fail":
            raise KeyError("x")
        await self.publisher.publish("from orders", "billing", correlation_id="c1")


class Billing(AMQPConsumer):
    """Gets what Orders publishes."""

    queues = ["billing"]
    seen: list[dict[str, Any]]

    def __init__(self) -> None:
        self.seen = Billing.seen = []

    async def handle(self, message: AMQPMessage[str]) -> None:
        self.seen.append(message.headers)
        logging.getLogger("tests.billing").warning("billed")


SHOP = package_of(Orders, Billing)


async def trace_of(
    body: str, headers: dict[str, Any] | None = None, sampler: Any = None, **settings: Any
) -> Spans:
    """Return the spans of one message to Orders, and of everything that it causes."""
    container = WorkerContainer()
    if settings:
        container.settings.override(providers.Object(WorkerSettings(**settings)))
    with recorded(sampler) as spans:
        async with running(container, packages=[SHOP]) as app:
            await app.publish(body, "orders", headers=headers, message_id="m1")
            await app.idle()
    return spans


async def test_a_call_a_publish_and_the_next_call_are_one_trace() -> None:
    """Each span is a child of the one before, across the broker."""
    spans = await trace_of("ok", SAMPLED)

    first, publish, second = (
        spans.one(name) for name in ("process orders", "publish billing", "process billing")
    )
    assert parent_of(first) == PARENT
    assert parent_of(publish) == ids(first)
    assert parent_of(second) == ids(publish)
    assert [each.kind for each in (first, publish, second)] == [
        SpanKind.CONSUMER,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
    ]
    assert first.status.status_code is StatusCode.UNSET


async def test_the_attributes_follow_the_conventions() -> None:
    """Names and values are those of OpenTelemetry's conventions for messaging."""
    spans = await trace_of("ok")

    processed, published = (
        attributes(spans.one(name)) for name in ("process orders", "publish billing")
    )
    for found in (processed, published):
        assert found.pop("server.address") == "127.0.0.1"
        assert found.pop("server.port")
    assert processed == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "orders",
        "messaging.destination.template": "orders",
        "messaging.rabbitmq.destination.routing_key": "orders",
        "messaging.message.id": "m1",
        "messaging.message.body.size": 2,
        "workerkit.consumer": "Orders",
        "workerkit.attempt": 1,
        "workerkit.outcome": "ack",
    }
    assert published.pop("messaging.message.id")
    assert published == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "billing",
        "messaging.destination.template": "billing",
        "messaging.rabbitmq.destination.routing_key": "billing",
        "messaging.message.conversation_id": "c1",
        "messaging.message.body.size": 11,
    }


async def test_attempts_are_one_trace_across_their_wait() -> None:
    """The retry is a child of the attempt, and the next attempt a child of the retry."""
    spans = await trace_of("retry", SAMPLED | {"tracestate": "vendor=1"})

    first, second = spans.named("process orders")
    retry = spans.one("retry orders")
    assert parent_of(first) == PARENT
    assert parent_of(retry) == ids(first)
    assert parent_of(second) == ids(retry)
    assert attributes(first)["workerkit.outcome"] == "retry"
    assert attributes(second)["workerkit.attempt"] == 2
    assert attributes(retry)["messaging.operation.type"] == "settle"
    assert attributes(retry)["server.address"] == "127.0.0.1"
    assert attributes(retry)["server.port"] == attributes(first)["server.port"]
    assert first.status.status_code is StatusCode.UNSET
    assert second.context is not None
    assert second.context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize(
    ("body", "kind"), [("reject", "workerkit.errors.Reject"), ("fail", "KeyError")]
)
async def test_a_dead_letter_explains_itself(body: str, kind: str) -> None:
    """The span of the last attempt has the error, and the dead letter is its child."""
    spans = await trace_of(body)

    last, letter = spans.named("process orders")[-1], spans.one("dead_letter orders")
    assert parent_of(letter) == ids(last)
    assert attributes(last)["error.type"] == kind
    assert attributes(last)["workerkit.outcome"] == "dead_letter"
    assert last.status.status_code is StatusCode.ERROR
    assert last.events[0].name == "exception"
    assert ids(letter)[0] == ids(spans.named("process orders")[0])[0]


async def test_an_invalid_body_explains_itself() -> None:
    """The call has a span although `handle` was not called, and its dead letter is a child."""

    class Numbers(AMQPConsumer):
        queues = ["numbers"]

        async def handle(self, body: int) -> None:
            pytest.fail("called")

    with recorded() as spans:
        async with running(WorkerContainer(), packages=[package_of(Numbers)]) as app:
            await app.publish("x", "numbers", headers=SAMPLED)
            await app.idle()
            (letter,) = app.dead_letters("numbers")

    call, move = spans.one("process numbers"), spans.one("dead_letter numbers")
    assert parent_of(call) == PARENT
    assert attributes(call)["error.type"] == "workerkit.errors.InvalidBody"
    assert parent_of(move) == ids(call)
    assert letter.headers["traceparent"] == f"00-{TRACE}-{ids(move)[1]:016x}-01"


async def test_an_unsampled_producer_is_followed_everywhere() -> None:
    """Nothing is recorded, and the flag reaches what the handler publishes, with its trace."""
    spans = await trace_of("ok", UNSAMPLED)

    assert spans.names == []
    header = Billing.seen[0]["traceparent"]
    assert (header[:36], header[-3:]) == (f"00-{TRACE}-", "-00")


async def test_an_unsampled_root_is_followed_everywhere() -> None:
    """What the handler publishes is not sampled again, elsewhere with another sampler."""
    spans = await trace_of("ok", sampler=ParentBased(ALWAYS_OFF))

    assert spans.names == []
    assert Billing.seen[0]["traceparent"].endswith("-00")


async def test_off() -> None:
    """Nothing is recorded, and nothing is added to messages."""
    spans = await trace_of("ok", SAMPLED, tracing="off")

    assert spans.names == []
    assert "traceparent" not in Billing.seen[0]


@pytest.mark.parametrize("headers", [SAMPLED, UNSAMPLED])
async def test_log_records_have_the_ids_of_the_span(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Those inside a call have the ids of its span; so has the record of the settlement."""
    caplog.handler.addFilter(context := ContextFilter())
    spans = await trace_of("ok", headers)
    await trace_of("reject", headers)
    caplog.handler.removeFilter(context)

    (billed,) = [vars(each) for each in caplog.records if each.getMessage() == "billed"]
    (failed,) = [vars(each) for each in caplog.records if each.getMessage() == "not handled"]
    assert billed["trace_id"] == failed["trace_id"] == TRACE
    assert len(failed["span_id"]) == 16
    if headers is SAMPLED:
        assert billed["span_id"] == f"{ids(spans.one('process billing'))[1]:016x}"
    assert current_call.trace_fields is None


async def test_baggage_is_handed_on() -> None:
    """A handler reads the producer's baggage, and what it publishes has it, too."""
    await trace_of("ok", SAMPLED | {"baggage": "tenant=acme"})

    assert Billing.seen[0]["baggage"] == "tenant=acme"


async def test_a_trace_context_of_the_caller_stays() -> None:
    """The publish has a span with a link to it, and its header is not replaced."""

    class Forwarding(AMQPConsumer):
        queues = ["forwarding"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: str) -> None:
            await self.publisher.publish(body, "billing", headers=SAMPLED)

    with recorded() as spans:
        package = package_of(Forwarding)
        async with running(WorkerContainer(), packages=[package, SHOP]) as app:
            await app.publish("x", "forwarding")
            await app.idle()

    assert Billing.seen[0]["traceparent"] == SAMPLED["traceparent"]
    assert links_of(spans.one("publish billing")) == [PARENT]
    assert parent_of(spans.one("process billing")) == PARENT


async def test_threads_and_child_tasks_publish_in_the_trace() -> None:
    """The context goes with `publish_threadsafe`, and with tasks that the handler starts."""

    class Threaded(AMQPConsumer):
        queues = ["threaded"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        def handle(self, body: str) -> None:
            self.publisher.publish_threadsafe(body, "billing")

    class Tasks(AMQPConsumer):
        queues = ["tasks"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: str) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.publisher.publish(body, "billing"))

    with recorded() as spans:
        package = package_of(Threaded, Tasks)
        async with running(WorkerContainer(), packages=[package, SHOP]) as app:
            for queue in ("threaded", "tasks"):
                await app.publish("x", queue)
            await app.idle()

    parents = {parent_of(each) for each in spans.named("publish billing")}
    assert parents == {ids(spans.one("process threaded")), ids(spans.one("process tasks"))}


async def test_interceptors_and_other_variables_run_inside_the_span() -> None:
    """A call in a context of its own is inside its span, and the next one in another."""
    from contextlib import asynccontextmanager

    current: list[int] = []

    @asynccontextmanager
    async def noted(call: Any) -> Any:
        current.append(trace.get_current_span().get_span_context().span_id)
        token = attach(baggage.set_baggage("leaked", "yes"))
        yield
        if call.attempt > 9:
            detach(token)

    class Noted(AMQPConsumer):
        queues = ["noted"]
        interceptors = [noted]

        async def handle(self, body: str) -> None:
            current.append(trace.get_current_span().get_span_context().span_id)
            assert baggage.get_baggage("leaked") == "yes"

    with recorded() as spans:
        async with running(WorkerContainer(), packages=[package_of(Noted)]) as app:
            await app.publish("x", "noted")
            await app.publish("y", "noted")
            await app.idle()

    first, second = (ids(each)[1] for each in spans.named("process noted"))
    assert current == [first, first, second, second]
    assert spans.names == ["process noted"] * 2


async def test_a_batch_links_to_each_message_and_its_dead_letters_stay_in_their_traces() -> None:
    """The call is a root of its own; each message that fails continues its producer's trace."""

    class Batches(AMQPConsumer):
        queues = ["batches"]
        batch_size, batch_interval = 3, 60.0

        async def handle(self, messages: list[AMQPMessage[int]]) -> None:
            messages[0].reject(requeue=False)
            raise Reject("all others")

    other = "c3" * 16
    with recorded() as spans:
        async with running(WorkerContainer(), packages=[package_of(Batches)]) as app:
            await app.publish(1, "batches", headers=SAMPLED)
            await app.publish(2, "batches", headers={"traceparent": f"00-{other}-{PRODUCER}-01"})
            await app.publish(3, "batches")
            await app.idle()

    call = spans.one("process batches")
    letters = spans.named("dead_letter batches")
    assert call.parent is None
    assert links_of(call) == [PARENT, (int(other, 16), int(PRODUCER, 16))]
    assert attributes(call)["messaging.batch.message_count"] == 3
    assert attributes(call)["workerkit.outcome"] == "mixed"
    assert all(links_of(each) == [ids(call)] for each in letters)
    assert int(other, 16) in {ids(each)[0] for each in letters}


async def test_periodic_tasks_are_roots_and_their_retries_are_linked() -> None:
    """The span has the time at which the run was due, and the number of the attempt."""

    class Cleanup(PeriodicTask):
        every = 3600.0
        retry = RetryPolicy(delays=(0.0,))
        failed = False

        async def handle(self) -> None:
            if not self.failed:
                self.failed = True
                raise KeyError

    with recorded() as spans:
        async with running(WorkerContainer(), packages=[package_of(Cleanup)]) as app:
            await app.tick("Cleanup")

    first, second = spans.named("run Cleanup")
    assert (first.parent, second.parent) == (None, None)
    assert first.kind is SpanKind.INTERNAL
    assert links_of(second) == [ids(first)]
    assert attributes(second)["workerkit.attempt"] == 2
    assert attributes(second)["workerkit.scheduled"]
    assert "messaging.system" not in attributes(second)


async def test_a_stream() -> None:
    """The request carries the context of its span; events link to it, or follow their own."""

    class Prices(SSEConsumer):
        connection = "prices"
        routes = ["/prices"]

        async def handle(self, body: dict[str, Any]) -> None: ...

    with recorded() as spans:
        async with sse_server() as server:
            settings = WorkerSettings(sse={"prices": {"url": server.url}})
            container = WorkerContainer()
            with override(container, settings=settings):
                async with running(container, packages=[package_of(Prices)]) as app:
                    await server.send({"price": 1}, id="e1")
                    await server.send(SAMPLED)
                    await app.idle()
            request = server.opened[0]

    connection = spans.one("GET /prices")
    plain, traced = spans.named("process /prices")
    assert connection.kind is SpanKind.CLIENT
    assert attributes(connection)["http.response.status_code"] == 200
    trace_id, span_id = ids(connection)
    assert request.headers["traceparent"][:-3] == f"00-{trace_id:032x}-{span_id:016x}"
    assert plain.parent is None
    assert links_of(plain) == [ids(connection)]
    assert attributes(plain)["messaging.message.id"] == "e1"
    assert parent_of(traced) == PARENT


async def test_a_stream_that_is_refused() -> None:
    """Each attempt to connect has a span, with the status of the response."""

    class Prices(SSEConsumer):
        connection = "prices"
        routes = ["/prices"]

        async def handle(self, body: dict[str, Any]) -> None: ...

    with recorded() as spans:
        async with sse_server() as server:
            server.refuse(503, times=1)
            settings = WorkerSettings(sse={"prices": {"url": f"{server.url}?token=secret"}})
            container = WorkerContainer()
            with override(container, settings=settings):
                async with running(container, packages=[package_of(Prices)]):
                    await server.client()

    refused, opened = spans.named("GET /prices")
    assert attributes(refused)["http.response.status_code"] == 503
    assert attributes(refused)["error.type"] == "workerkit.errors.StreamRefused"
    assert attributes(opened)["url.full"] == f"{server_url(attributes(opened))}/prices"
    assert opened.parent is None


def server_url(found: dict[str, Any]) -> str:
    return f"http://{found['server.address']}:{found['server.port']}"


class Record(SimpleDelivery):
    """A delivery with headers."""

    __slots__ = ("headers",)

    def __init__(self, raw: bytes, headers: dict[str, Any]) -> None:
        super().__init__(raw)
        self.headers = headers

    def trace_carrier(self) -> dict[str, Any]:
        return self.headers


class Log(SimpleConsumer, abstract=True):
    """Consumes a log."""


class LogTransport(SimpleTransport[SimpleOptions, Record]):
    """Reads two records."""

    kind = "log"
    delivery = Record

    async def receive(self, options: SimpleOptions) -> AsyncIterator[Record]:
        yield Record(b"1", SAMPLED)
        yield Record(b"x", {})

    async def settle(self, delivery: Record, outcome: Any) -> None: ...

    def source(self, options: Options) -> str:
        return "topic"


async def test_a_transport_of_ones_own() -> None:
    """Its deliveries hand over their headers; the span has its kind and its source."""

    class Read(Log):
        async def handle(self, body: int) -> None: ...

    class Container(WorkerContainer):
        extra_transports = providers.Dict({Log: providers.Singleton(LogTransport)})

    with recorded() as spans:
        async with running(Container(), packages=[package_of(Read)]) as app:
            await app.idle()

    first, second = spans.named("process topic")
    assert parent_of(first) == PARENT
    assert first.kind is SpanKind.CONSUMER
    assert attributes(first)["messaging.system"] == "log"
    assert second.parent is None
    assert attributes(second)["workerkit.outcome"] == "dead_letter"


async def test_the_setting_of_a_process_that_stops_leaves_nothing_behind() -> None:
    """The publisher of a later run without tracing has none."""
    container = WorkerContainer()
    with recorded():
        async with running(container, packages=[SHOP]):
            while_running = current_call.trace_fields

    async with running(container, packages=[SHOP]) as app:
        await app.publish("ok", "orders", headers=SAMPLED)
        await app.idle()

    assert while_running is not None
    assert current_call.trace_fields is None
    assert "traceparent" not in Billing.seen[0]
