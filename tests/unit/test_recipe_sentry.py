"""The recipe of docs/interceptors.md: what arrives at Sentry, with the real SDK."""

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentry_sdk
from aiohttp import web
from dependency_injector import providers
from pydantic import BaseModel
from sentry_sdk.envelope import Envelope
from sentry_sdk.scope import use_isolation_scope
from sentry_sdk.transport import Transport

from tests.application import package_of
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    Consumer,
    HTTPView,
    PeriodicTask,
    Reject,
    Retry,
    RetryPolicy,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.testing import running, sse_server

PAGE = Path(__file__).parents[2] / "docs" / "interceptors.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

Event = dict[str, Any]


class Envelopes(Transport):
    """A transport of Sentry that keeps the events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep an event."""
        if (event := envelope.get_event()) is not None:
            self.events.append(dict(event))


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The block of the page, as a module."""
    _, _, section = PAGE.read_text().partition("\n## Sentry\n")
    section, _, _ = section.partition("\n## ")
    [block] = BLOCK.findall(section)
    module = ModuleType("shop")
    exec(compile(block, str(PAGE), "exec"), vars(module))
    return module


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture, recipe: ModuleType) -> Iterator[list[Event]]:
    """The events that Sentry gets, without a network."""
    yield from started(caplog, recipe.start_sentry)


@pytest.fixture
def plain_events(caplog: pytest.LogCaptureFixture) -> Iterator[list[Event]]:
    """... where nothing of the page is used."""
    yield from started(caplog, sentry_sdk.init)


def started(caplog: pytest.LogCaptureFixture, start: Any) -> Iterator[list[Event]]:
    """Start the SDK, and stop it after the test."""
    caplog.set_level(logging.INFO, "workerkit")
    transport = Envelopes()
    scope = sentry_sdk.get_isolation_scope().fork()
    with use_isolation_scope(scope):
        start("https://key@sentry.invalid/1", transport=transport)
        yield transport.events
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


class Order(BaseModel):
    id: int


def run(recipe: ModuleType, *consumers: type[Consumer], **settings: Any) -> Any:
    """Run an application with the container of the page."""
    container = recipe.Container()
    container.settings.override(providers.Object(WorkerSettings(**settings)))
    return running(container, packages=[package_of(*consumers)])


def summary(event: Event) -> tuple[str, dict[str, str]]:
    """Return the class of the exception, or the message, and the tags."""
    exceptions = event.get("exception", {}).get("values", [])
    what = exceptions[-1]["type"] if exceptions else event["logentry"]["message"]
    return what, event.get("tags", {})


def crumbs(event: Event) -> list[str]:
    """Return the messages of the breadcrumbs that handlers of this module have left."""
    values = event["breadcrumbs"]["values"]
    return [each["message"] for each in values if each["category"] == "here"]


async def test_a_dead_letter_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """It has consumer, queue and message id as tags, and what the handler added to its scope."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None:
            sentry_sdk.add_breadcrumb(category="here", message=f"order {order.id}")
            if order.id:
                sentry_sdk.set_tag("order", order.id)
                raise Reject("sold out")

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="one")
        await app.idle()
        await app.publish(Order(id=0), "orders")
        await app.publish(Order(id=2), "orders", message_id="two", correlation_id="c")
        await app.idle()

    ours = {"consumer": "Orders", "source": "orders"}
    first = {**ours, "message_id": "one", "order": 1}
    second = {**ours, "message_id": "two", "correlation_id": "c", "order": 2}
    assert [summary(each) for each in events] == [("Reject", first), ("Reject", second)]
    assert [crumbs(each) for each in events] == [["order 1"], ["order 2"]]
    assert sentry_sdk.get_isolation_scope()._tags == {}


async def test_calls_at_the_same_time(events: list[Event], recipe: ModuleType) -> None:
    """Each event has what its own call has added, although all of them run at once."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 5
        all_in = asyncio.Barrier(5)

        async def handle(self, order: Order) -> None:
            sentry_sdk.set_tag(f"order-{order.id}", "yes")
            await self.all_in.wait()
            sentry_sdk.add_breadcrumb(category="here", message=f"order {order.id}")
            raise Reject("sold out")

    async with run(recipe, Orders) as app:
        for number in range(5):
            await app.publish(Order(id=number), "orders", message_id=str(number))
        await app.idle()

    found = {each["tags"]["message_id"]: each for each in events}
    assert sorted(found) == list("01234")
    for number, event in found.items():
        assert [each for each in event["tags"] if each.startswith("order-")] == [f"order-{number}"]
        assert crumbs(event) == [f"order {number}"]


async def test_a_retry_is_no_event(events: list[Event], recipe: ModuleType) -> None:
    """Only the dead letter after the last attempt is, whether `retry` or `Retry` asked."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0, 5))

        async def handle(self, order: Order, message: AMQPMessage[Order]) -> None:
            if order.id == 1:
                raise KeyError("customer")
            if message.attempt < 3:
                raise Retry(after=1)

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="one")
        await app.publish(Order(id=2), "orders", message_id="two")
        await app.idle()
        settled = sorted(each.action for each in app.settled("Orders"))

    assert settled == ["ack", "dead_letter", *["retry"] * 4]
    tags = {"consumer": "Orders", "source": "orders", "message_id": "one"}
    assert [summary(each) for each in events] == [("KeyError", tags)]


async def test_a_requeue_is_no_event(events: list[Event], recipe: ModuleType) -> None:
    """The message comes again."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.REQUEUE

        async def handle(self, order: Order, message: AMQPMessage[Order]) -> None:
            if not message.redelivered:
                raise KeyError("customer")

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders")
        await app.idle()
        settled = [each.action for each in app.settled("Orders")]

    assert settled == ["requeue", "ack"]
    assert events == []


async def test_an_invalid_body_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """No handler was called, but somebody has to look at the dead letter."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None: ...

    async with run(recipe, Orders) as app:
        await app.publish(b"no order", "orders", message_id="one")
        await app.idle()

    tags = {"consumer": "Orders", "source": "orders", "message_id": "one"}
    assert [summary(each) for each in events] == [("InvalidBody", tags)]


async def test_a_decision_without_an_exception(events: list[Event], recipe: ModuleType) -> None:
    """A message that a handler rejects by itself is one event with the scope of its call."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order, message: AMQPMessage[Order]) -> None:
            sentry_sdk.set_tag("order", order.id)
            message.reject(requeue=False)

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="one")
        await app.idle()

    tags = {"consumer": "Orders", "source": "orders", "message_id": "one", "order": 1}
    assert [summary(each) for each in events] == [("not handled", tags)]


async def test_a_handler_that_takes_too_long(events: list[Event], recipe: ModuleType) -> None:
    """It is one event, with what it did before."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        timeout = 0.05
        on_exception = Action.DEAD_LETTER

        async def handle(self, order: Order) -> None:
            sentry_sdk.add_breadcrumb(category="here", message="begun")
            await asyncio.Event().wait()

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="one")
        await app.idle()

    tags = {"consumer": "Orders", "source": "orders", "message_id": "one"}
    assert [summary(each) for each in events] == [("HandlerTimeout", tags)]
    assert crumbs(events[0]) == ["begun"]


async def test_a_batch_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """However many deliveries its call had; those that it decided about do not count."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        on_exception = Action.DEAD_LETTER

        async def handle(self, orders: list[Order]) -> None:
            sentry_sdk.set_tag("orders", len(orders))
            raise KeyError("customer")

    async with run(recipe, Orders) as app:
        for number in range(3):
            await app.publish(Order(id=number), "orders", message_id=f"m{number}")
        await app.idle()
        assert len(app.dead_letters("orders")) == 3

    [(what, tags)] = [summary(each) for each in events]
    message_id = tags.pop("message_id")
    assert (what, tags) == ("KeyError", {"consumer": "Orders", "source": "orders", "orders": 3})
    assert message_id in {"m0", "m1", "m2"}
    assert events[0]["extra"]["batch"] == 3


async def test_a_handler_in_a_thread(events: list[Event], recipe: ModuleType) -> None:
    """Its thread has the scope of the call."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        def handle(self, order: Order) -> None:
            sentry_sdk.set_tag("order", order.id)
            raise KeyError("customer")

    async with run(recipe, Orders) as app:
        await app.publish(Order(id=1), "orders", message_id="one")
        await app.idle()

    tags = {"consumer": "Orders", "source": "orders", "message_id": "one", "order": 1}
    assert [summary(each) for each in events] == [("KeyError", tags)]


class ByNumber(HTTPView):
    """A view with a parameter, which aiohttp's router finds."""

    routes = ["/orders/{number}"]

    async def get(self, number: int) -> Order:
        sentry_sdk.set_tag("order", number)
        if number == 1:
            raise KeyError("customer")
        if number == 2:
            raise web.HTTPBadGateway
        if number == 3:
            raise Retry(after=1)
        if number == 4:
            raise Reject("sold out")
        return Order(id=number)


class All(HTTPView):
    """A view without one, which a dictionary finds."""

    routes = ["/orders"]

    async def get(self) -> Order:
        raise KeyError("customer")


async def test_a_500_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """A request that the client has to answer for is none, and neither is a 503."""
    async with run(recipe, ByNumber, All) as app:
        paths = ["/orders/1", "/orders/2", "/orders", "/orders/3", "/orders/4", "/orders/x", "/x"]
        paths += ["/orders/5"]
        statuses = [
            (await app.http.get(path, headers={"X-Request-ID": f"r{path}"})).status
            for path in paths
        ]

    assert statuses == [500, 502, 500, 503, 422, 422, 404, 200]
    numbered = {"consumer": "ByNumber", "source": "/orders/{number}"}
    assert [summary(each) for each in events] == [
        ("KeyError", {**numbered, "request_id": "r/orders/1", "order": 1}),
        ("HTTPBadGateway", {**numbered, "request_id": "r/orders/2", "order": 2}),
        ("KeyError", {"consumer": "All", "source": "/orders", "request_id": "r/orders"}),
    ]


async def test_a_middleware_that_raises(events: list[Event], recipe: ModuleType) -> None:
    """No view was called: one event without a consumer. A view behind it is one event."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path == "/orders":
            raise ValueError("tenant")
        response: web.StreamResponse = await handler(request)
        return response

    container = recipe.Container()
    container.settings.override(providers.Object(WorkerSettings()))
    container.middlewares.override(providers.Object([check]))
    async with running(container, packages=[package_of(ByNumber, All)]) as app:
        statuses = [(await app.http.get(path)).status for path in ("/orders", "/orders/1")]

    assert statuses == [500, 500]
    assert [what for what, _ in map(summary, events)] == ["ValueError", "KeyError"]
    assert summary(events[1])[1]["consumer"] == "ByNumber"


async def test_a_failed_run_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """A run that will be repeated is none."""

    class Report(PeriodicTask):
        every = 60.0
        retry = RetryPolicy(delays=(0,))

        async def handle(self) -> None:
            raise KeyError("customer")

    async with run(recipe, Report) as app:
        await app.tick("Report")
        actions = [each.action for each in app.settled("Report")]

    assert actions[0] == "retry"
    assert len(actions) == 2
    [(what, tags)] = [summary(each) for each in events]
    assert (what, tags["consumer"]) == ("KeyError", "Report")


async def test_a_dropped_event_is_one_event(events: list[Event], recipe: ModuleType) -> None:
    """The cursor moves past it, so it is lost; one that is handled again is none."""

    class Moves(SSEConsumer):
        server = "bus"
        connection = "bus"
        routes = ["/moves"]
        on_exception = Action.REJECT
        timeout = 5.0

        async def handle(self, order: Order) -> None:
            sentry_sdk.set_tag("order", order.id)
            raise KeyError("customer")

    async with (
        sse_server() as server,
        run(recipe, Moves, sse={"bus": {"url": server.url}}) as app,
    ):
        await server.send(Order(id=1), id="e1")
        await app.idle()

    tags = {"consumer": "Moves", "source": "/moves", "event_id": "e1", "order": 1}
    assert [summary(each) for each in events] == [("KeyError", tags)]


async def test_without_the_recipe(plain_events: list[Event]) -> None:
    """A plain `init` gives the same number of events, without tags."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0,))

        async def handle(self, order: Order) -> None:
            raise KeyError("customer")

    container = WorkerContainer()
    async with running(container, packages=[package_of(Orders, All)]) as app:
        await app.publish(Order(id=1), "orders")
        await app.publish(b"no order", "orders")
        await app.idle()
        await app.http.get("/orders")

    found = sorted(map(summary, plain_events))
    assert found == [("InvalidBody", {}), ("KeyError", {}), ("KeyError", {})]
