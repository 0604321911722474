"""Log records inside a call say which call it is: of a handler's own logger, too."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web
from dependency_injector import providers
from opentelemetry.trace import format_span_id, format_trace_id
from pydantic import BaseModel

from tests.application import package_of
from tests.tracing import Spans, recorded
from workerkit import (
    Action,
    AMQPConsumer,
    Consumer,
    HTTPView,
    PeriodicTask,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.logs import ContextFilter, JSONFormatter
from workerkit.testing import running, sse_server

own = logging.getLogger("shop.orders")

Line = dict[str, Any]

HOSTILE = 'x\n2026-01-01 ERROR forged\r\x1b[31m\u202e\u2028"\\'


class Order(BaseModel):
    id: int


class Output(io.StringIO):
    """What a handler has written."""

    def lines(self, message: str) -> list[Line]:
        """Return the JSON lines with this message."""
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        return [each for each in found if each["message"] == message]


@pytest.fixture
def output() -> Iterator[Output]:
    """The lines of `shop` as JSON, and of a handler of the user's own as text."""
    stream = Output()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    with added(handler):
        yield stream


@pytest.fixture
def foreign() -> Iterator[io.StringIO]:
    """The lines of a handler that is none of ours."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(ContextFilter())
    fields = "%(consumer)s|%(message_id)s|%(correlation_id)s|%(trace_id)s|%(span_id)s"
    handler.setFormatter(logging.Formatter(f"%(message)s|{fields}"))
    handler.addFilter(lambda record: record.name == own.name)
    with added(handler):
        yield stream


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of the test."""
    with recorded() as found:
        yield found


@contextmanager
def added(handler: logging.Handler) -> Iterator[None]:
    """Add a handler to the root logger inside the block."""
    root, level = logging.getLogger(), own.level
    own.setLevel(logging.INFO)
    root.addHandler(handler)
    yield
    root.removeHandler(handler)
    own.setLevel(level)


def run(*consumers: type[Consumer], **settings: Any) -> Any:
    """Run an application."""
    container = WorkerContainer()
    container.settings.override(providers.Object(WorkerSettings(**settings)))
    return running(container, packages=[package_of(*consumers)])


def ids(spans: Spans, name: str) -> Line:
    """Return the fields of a span."""
    context = spans.one(name).get_span_context()
    assert context is not None
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
    }


def fields(line: Line) -> Line:
    """Return the fields of a line that name its call."""
    names = ["consumer", "message_id", "correlation_id", "event_id", "request_id", "batch"]
    return {name: line[name] for name in [*names, "trace_id", "span_id"] if name in line}


async def test_a_message(output: Output, foreign: io.StringIO, spans: Spans) -> None:
    """The handler, its child tasks and threads, and callbacks: all have the ids."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None:
            own.info("in the handler")
            await asyncio.create_task(self.child())
            await asyncio.to_thread(own.info, "in a thread")
            called = asyncio.Event()
            asyncio.get_running_loop().call_soon(self.callback, called)
            await called.wait()
            own.info("with a field", extra={"consumer": "mine"})

        async def child(self) -> None:
            own.info("in a task")

        def callback(self, called: asyncio.Event) -> None:
            own.info("in a callback")
            called.set()

    async with run(Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="m", correlation_id="c")
        await app.idle()
        own.info("outside")

    span = ids(spans, "process orders")
    expected = {"consumer": "Orders", "message_id": "m", "correlation_id": "c", **span}
    for message in ("in the handler", "in a task", "in a thread", "in a callback"):
        assert [fields(each) for each in output.lines(message)] == [expected]
    assert fields(output.lines("with a field")[0]) == {**expected, "consumer": "mine"}
    assert fields(output.lines("outside")[0]) == {}
    assert foreign.getvalue().splitlines()[0] == "|".join(["in the handler", *expected.values()])


async def test_a_message_without_ids(output: Output, spans: Spans) -> None:
    """What it does not have is no field; the span has its own ids."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None:
            own.info("in the handler")

    async with run(Orders) as app:
        message_id = await app.publish(Order(id=1), "orders")
        await app.idle()

    [line] = output.lines("in the handler")
    found = fields(line)
    found.pop("correlation_id", None)
    span = ids(spans, "process orders")
    assert found == {"consumer": "Orders", "message_id": message_id, **span}


async def test_a_handler_in_a_thread(output: Output, spans: Spans) -> None:
    """A handler that is not asynchronous has them as well, and what it calls."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        def handle(self, order: Order) -> None:
            assert threading.current_thread() is not threading.main_thread()
            own.info("in a thread")

    async with run(Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="m", correlation_id="c")
        await app.idle()

    [line] = output.lines("in a thread")
    span = ids(spans, "process orders")
    expected = {"consumer": "Orders", "message_id": "m", "correlation_id": "c"}
    assert fields(line) == {**expected, **span}


async def test_a_failure(output: Output, spans: Spans) -> None:
    """The record of the delivery, which is written after the call, names the same span."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, order: Order) -> None:
            raise KeyError("customer")

    async with run(Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="m", correlation_id="c")
        await app.idle()

    [line] = output.lines("not handled")
    expected = {"consumer": "Orders", "message_id": "m", "correlation_id": "c"}
    assert fields(line) == {**expected, **ids(spans, "process orders")}


async def test_a_batch(output: Output, spans: Spans) -> None:
    """It has no ids of one message, but their number, and its own span."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2

        async def handle(self, orders: list[Order]) -> None:
            own.info("in the handler")

    async with run(Orders) as app:
        for number in range(2):
            await app.publish(Order(id=number), "orders", message_id=f"m{number}")
        await app.idle()

    [line] = output.lines("in the handler")
    assert fields(line) == {"consumer": "Orders", "batch": 2, **ids(spans, "process orders")}


async def test_a_view(output: Output, spans: Spans) -> None:
    """Records of middlewares have the request id and the span, too."""

    class ByNumber(HTTPView):
        routes = ["/orders/{number}"]

        async def get(self, number: int) -> Order:
            own.info("in the view")
            return Order(id=number)

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        own.info("in the middleware")
        response: web.StreamResponse = await handler(request)
        return response

    container = WorkerContainer()
    container.settings.override(providers.Object(WorkerSettings()))
    container.middlewares.override(providers.Object([check]))
    async with running(container, packages=[package_of(ByNumber)]) as app:
        await app.http.get("/orders/1", headers={"X-Request-ID": "r-1"})
        own.info("outside")

    span = ids(spans, "GET /orders/{number}")
    expected = {"request_id": "r-1", **span}
    assert fields(output.lines("in the middleware")[0]) == expected
    assert fields(output.lines("in the view")[0]) == {"consumer": "ByNumber", **expected}
    assert fields(output.lines("outside")[0]) == {}


async def test_an_event(output: Output, spans: Spans) -> None:
    """It has the id of the event."""

    class Moves(SSEConsumer):
        connection = "bus"
        routes = ["/moves"]

        async def handle(self, order: Order) -> None:
            own.info("in the handler")

    async with (
        sse_server() as server,
        run(Moves, sse={"bus": {"url": server.url}}) as app,
    ):
        await server.send(Order(id=1), id="e1")
        await app.idle()

    [line] = output.lines("in the handler")
    expected = {"consumer": "Moves", "event_id": "e1", **ids(spans, "process /moves")}
    assert fields(line) == expected


async def test_a_run(output: Output, spans: Spans) -> None:
    """It has the name of the task."""

    class Report(PeriodicTask):
        every = 60.0

        async def handle(self) -> None:
            own.info("in the handler")

    async with run(Report) as app:
        await app.tick("Report")

    [line] = output.lines("in the handler")
    [span] = {each for each in spans.names if "Report" in each or "run" in each}
    assert fields(line) == {"consumer": "Report", **ids(spans, span)}


async def test_hostile_ids(output: Output, foreign: io.StringIO, spans: Spans) -> None:
    """An id from outside is data: it ends no line, and colours no terminal."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None:
            own.info("in the handler")

    async with run(Orders) as app:
        await app.publish(Order(id=1), "orders", message_id=HOSTILE, correlation_id=HOSTILE)
        await app.idle()

    raw = next(each for each in output.getvalue().split("\n") if "in the handler" in each)
    assert raw.isprintable()
    assert json.loads(raw)["message_id"] == json.loads(raw)["correlation_id"] == HOSTILE
    [line] = foreign.getvalue().split("\n")[:-1]
    assert line.isprintable()
    assert line.startswith(r"in the handler|Orders|x\n2026-01-01 ERROR forged\r\x1b[31m\u202e")


async def test_a_hostile_event(output: Output, foreign: io.StringIO, spans: Spans) -> None:
    """The id of an event has no control characters, but what changes the order of text."""

    class Moves(SSEConsumer):
        connection = "bus"
        routes = ["/moves"]

        async def handle(self, order: Order) -> None:
            own.info("in the handler", extra={"message_id": "-", "correlation_id": "-"})

    hostile = '\u202edegrof\u2028"\\'
    async with (
        sse_server() as server,
        run(Moves, sse={"bus": {"url": server.url}}) as app,
    ):
        await server.send(Order(id=1), id=hostile)
        await app.idle()

    raw = next(each for each in output.getvalue().split("\n") if "in the handler" in each)
    assert raw.isprintable()
    assert json.loads(raw)["event_id"] == hostile
