"""The test kit: what it makes, replaces, runs and waits for."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest
from aiohttp import ClientSession, web
from dependency_injector import providers
from pydantic import BaseModel

from tests.application import package_of
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    DeclarationError,
    HTTPView,
    PeriodicTask,
    Publisher,
    Reject,
    RetryPolicy,
    SSEConsumer,
    SSEEvent,
    Unroutable,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.config.sections import HTTPSettings
from workerkit.errors import ConfigurationError
from workerkit.testing import (
    FakePublisher,
    build,
    embedded_broker,
    fake_event,
    fake_message,
    override,
    running,
    sse_server,
)


class Order(BaseModel):
    id: int


class Book:
    """Remembers what was booked."""

    def __init__(self) -> None:
        self.ids: list[int] = []


class Booking(AMQPConsumer):
    """Books orders, and asks for the money."""

    queues = ["orders"]

    def __init__(self, book: Book, publisher: Publisher) -> None:
        self.book = book
        self.publisher = publisher

    async def handle(self, order: Order, message: AMQPMessage) -> None:
        if order.id < 0:
            raise Reject("negative")
        self.book.ids.append(order.id)
        await self.publisher.publish(order, "billing")


class Billing(AMQPConsumer):
    """Bills in batches that would take an hour to fill."""

    queues = ["billing"]
    batch_size, batch_interval = 100, 3600.0

    async def handle(self, orders: list[Order]) -> None: ...


async def opened() -> AsyncIterator[Book]:
    yield Book()


class Container(WorkerContainer):
    book = providers.Singleton(Book)


class Asynchronous(WorkerContainer):
    book = providers.Resource(opened)


def test_a_consumer_out_of_a_container() -> None:
    """It has what the container has."""
    container = Container()

    assert build(Booking, container).book is container.book()


async def test_an_asynchronous_resource_has_to_be_ready() -> None:
    """Before, the error names the provider; afterwards the consumer is made without waiting."""
    container = Asynchronous()

    with pytest.raises(DeclarationError, match="book comes from an asynchronous resource"):
        build(Booking, container)
    opening = container.book.init()
    assert opening is not None
    await opening
    made = build(Booking, container)
    closing = container.book.shutdown()
    assert closing is not None
    await closing

    assert isinstance(made.book, Book)


async def test_an_overridden_asynchronous_resource() -> None:
    """Replaced by a value, it needs no waiting."""
    container = Asynchronous()
    book = Book()

    with override(container, book=book, publisher=FakePublisher()):
        assert build(Booking, container).book is book


def test_overrides_nest_and_end_with_their_block() -> None:
    """Also after an exception, and no singleton made inside is left."""
    container = Container()
    before, outer, inner = container.book(), Book(), Book()

    with override(container, book=outer):
        with suppress(KeyError), override(container, book=inner):
            assert container.book() is inner
            raise KeyError
        assert container.book() is outer

    assert isinstance(container.book(), Book)
    assert container.book() not in (before, outer, inner)


def test_a_provider_that_is_not_there() -> None:
    """The error names those that are."""
    with (
        pytest.raises(
            DeclarationError,
            match=r"no provider .books., only book, codecs, cursors, extra_transports, interc",
        ),
        override(Container(), books=1),
    ):
        pass


async def test_a_fake_message() -> None:
    """It has a body, properties, and the fate that the handler chose."""
    message = fake_message(
        Order(id=1), headers={"a": 1}, attempt=3, exchange="shop", routing_key="k", redelivered=True
    )

    before = message.fate
    message.reject(requeue=False)

    assert (before, message.fate) == (None, Action.REJECT)
    assert (message.body, message.raw) == (Order(id=1), b'{"id":1}')
    assert (message.headers["a"], message.attempt, message.exchange) == (1, 3, "shop")
    assert (message.routing_key, message.redelivered, message.queue) == ("k", True, "test")


def test_fr16_a_fake_message_has_every_property() -> None:
    """As a real one; `raw` is compressed where its properties say so."""
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    message = fake_message(
        "grün",
        content_type="text/plain; charset=latin-1",
        content_encoding="gzip",
        type="t",
        reply_to="answers",
        app_id="shop",
        user_id="guest",
        expiration=2.5,
        timestamp=moment,
    )

    assert gzip.decompress(message.raw) == "grün".encode("latin-1")
    assert (message.body, message.content(text=True)) == ("grün", "grün".encode())
    assert message.content_type == "text/plain; charset=latin-1"
    assert (message.content_encoding, message.type, message.reply_to) == ("gzip", "t", "answers")
    assert (message.app_id, message.user_id, message.expiration) == ("shop", "guest", 2.5)
    assert message.timestamp == moment
    assert fake_message("x").timestamp is None


async def test_fr16_a_fake_publisher_takes_what_a_publisher_takes() -> None:
    """All options are recorded; what a real one refuses, it refuses too."""
    publisher = FakePublisher()
    given: dict[str, Any] = {
        "content_type": "a/b",
        "content_encoding": "gzip",
        "type": "t",
        "reply_to": "r",
    }
    given |= {"app_id": "shop", "user_id": "guest", "timestamp": datetime(2026, 1, 2, tzinfo=UTC)}
    given |= {"connection": "other", "vhost": "v", "mandatory": False, "timeout": 1.0}
    await publisher.publish("x", "q", **given)
    for wrong in (
        {"content_typ": "a/b"},
        {"type": 5},
        {"app_id": "a" * 256},
        {"headers": {"CC": "q"}},
        {"expiration": -1},
        {"timeout": "1"},
    ):
        with pytest.raises((TypeError, ValueError)):
            await publisher.publish("x", "q", **wrong)

    assert [each.options for each in publisher.published] == [given]


def test_a_fake_event() -> None:
    """It has a name, a body, and the fate that the handler chose."""
    event = fake_event({"id": 1}, name="deployed", id="7", attempt=2)

    before = event.fate
    event.accept()
    event.reject()

    assert (before, event.fate) == (None, Action.ACK)
    assert (event.name, event.body, event.raw) == ("deployed", {"id": 1}, '{"id":1}')
    assert (event.id, event.route, event.attempt) == ("7", "/", 2)


async def test_a_fake_publisher() -> None:
    """It records what was published, and raises the error that is set."""
    publisher = FakePublisher()

    await publisher.publish({"a": 1}, "q", exchange="x", headers={"h": 1}, priority=3)
    ids = await publisher.publish_many([1, 2], "q")
    publisher.error = Unroutable("nobody")
    with pytest.raises(Unroutable):
        await publisher.publish(1, "q")
    with pytest.raises(TypeError):
        await publisher.publish(object(), "q")

    assert [each.body for each in publisher.published] == [{"a": 1}, 1, 2]
    assert (publisher.published[0].exchange, publisher.published[0].options) == (
        "x",
        {"priority": 3},
    )
    assert len(set(ids)) == 2


async def test_the_whole_application() -> None:
    """Idle means that everything is settled that a message caused, batches included."""
    container = Container()
    async with running(container, packages=[package_of(Booking, Billing)]) as app:
        for number in (1, 2, -1):
            await app.publish(Order(id=number), "orders")
        await app.idle()
        booked = {each.body.id: each.action for each in app.settled("booking")}
        billed = [each.body.id for each in app.settled("Billing")]
        [letter] = app.dead_letters("orders")
        queue = app.queue("orders")
        ids = container.book().ids

    assert booked == {1: "ack", 2: "ack", -1: "dead_letter"}
    assert sorted(billed) == sorted(ids) == [1, 2]
    assert letter.headers["x-workerkit-reason"] == "negative"
    assert (queue.ready, queue.unacked, queue.consumers) == (0, 0, 1)


async def test_names_that_nothing_has() -> None:
    """A slip of the pen is an error that says what there is, and not an empty list."""
    async with running(Container(), packages=[package_of(Booking, Billing)]) as app:
        with pytest.raises(KeyError, match="no consumer 'Bookin' runs, only Booking, Billing"):
            app.settled("Bookin")
        with pytest.raises(KeyError, match=r"no queue 'ordes' .*, only .*\borders\b"):
            app.queue("ordes")
        with pytest.raises(
            KeyError, match="no consumer reads queue 'ordes' in vhost '/', only billing, orders"
        ):
            app.dead_letters("ordes")
        with pytest.raises(KeyError, match="no vhost 'log', only /"):
            app.dead_letters("orders", "log")
        with pytest.raises(KeyError, match="no periodic task 'other' runs; there is none"):
            await app.tick("other")


async def test_a_queue_without_a_queue_for_its_dead_letters() -> None:
    """It has none, which is no error."""
    async with running(Container(), packages=[package_of(Booking, Billing)]) as app:
        async with await aio_pika.connect(app.broker.url) as connection:
            channel = await connection.channel()
            await channel.queue_delete("orders.dlq")
        letters = app.dead_letters("orders")

    assert letters == []


async def test_what_is_no_list() -> None:
    """A name alone is refused before anything starts; a class will do as well as its name."""
    package = package_of(Booking, Billing)

    with pytest.raises(TypeError, match=r"packages is a list, such as \['payments'\]"):
        async with running(Container(), packages="payments"):
            pass
    with pytest.raises(TypeError, match=r"only is a list, such as \['Billing'\]"):
        async with running(Container(), packages=[package], only="Billing"):
            pass
    async with running(Container(), packages=[package], only=[Billing]) as app:
        names = [each.consumer for each in app.runner.health]

    assert names == ["Billing"]


async def test_a_message_that_fails_again_and_again() -> None:
    """Pauses before a requeue are skipped, and each attempt has a record."""

    class Third(AMQPConsumer):
        queues = ["orders"]
        tries = 0

        async def handle(self, order: Order) -> None:
            Third.tries += 1
            if Third.tries < 5:
                raise KeyError(Third.tries)

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running(Container(), packages=[package_of(Third)]) as app:
        await app.publish(Order(id=1), "orders")
        await app.idle()
        actions = [each.action for each in app.settled("Third")]
        reasons = [each.reason for each in app.settled("Third")]

    assert actions == ["requeue"] * 4 + ["ack"]
    assert reasons == ["1", "2", "3", "4", ""]
    assert loop.time() - began < 6.0


async def test_time_passes_for_retries() -> None:
    """A test does not wait for the next try: the broker's clock moves on to it."""

    class Stubborn(AMQPConsumer):
        queues = ["stubborn"]
        retry = RetryPolicy(delays=(0, 5, 3600), fatal=(ZeroDivisionError,))

        async def handle(self, order: Order, message: AMQPMessage) -> None:
            if message.attempt <= order.id:
                raise KeyError(order.id)
            if order.id == 0:
                raise ZeroDivisionError
            if order.id < 0:
                message.retry(after=60)

    async with running(WorkerContainer(), packages=[package_of(Stubborn)]) as app:
        for number in (3, 9, 0, -1):
            await app.publish(Order(id=number), "stubborn")
            await app.idle()
        actions = [record.action for record in app.settled("Stubborn")]
        letters = app.dead_letters("stubborn")

    again = ["retry", "retry", "retry"]
    assert actions == [*again, "ack", *again, "dead_letter", "dead_letter", *again, "dead_letter"]
    assert [each.headers["x-workerkit-attempt"] for each in letters] == [4, 1, 4]
    assert [each.headers["x-workerkit-reason"] for each in letters] == [
        "9",
        "ZeroDivisionError",
        "the handler requested another attempt",
    ]


async def test_what_is_pending_is_told() -> None:
    """A test that waits in vain says for what."""
    gate = asyncio.Event()

    class Hanging(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None:
            await gate.wait()

    async with running(Container(), packages=[package_of(Hanging)]) as app:
        await app.publish(Order(id=1), "orders")
        with pytest.raises(
            AssertionError, match=r"queue 'orders' has 0 ready, 1 unacknowledged; .* Hanging runs"
        ):
            await app.idle(deadline=0.1)
        gate.set()
        await app.idle()


@pytest.mark.parametrize("vhost", ["/", "logs"])
async def test_idle_waits_for_a_consumer_that_reconnects(vhost: str) -> None:
    """A message is pending while the consumer of its queue is not connected."""

    class Booked(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None: ...

    Booked.vhost = vhost
    async with running(Container(), packages=[package_of(Booked)]) as app:
        app.broker.drop_connections()
        await app.publish(Order(id=1), "orders", vhost=vhost)
        await app.idle()
        app.broker.close_channel("orders", vhost)
        await app.publish(Order(id=2), "orders", vhost=vhost)
        await app.idle()
        settled = [each.body.id for each in app.settled("Booked")]

    assert settled == [1, 2]


async def test_periodic_tasks_run_when_told() -> None:
    """None runs by itself in a test."""
    ran: list[int] = []

    class Cleanup(PeriodicTask):
        every = 0.01

        async def handle(self) -> None:
            ran.append(1)

    async with running(Container(), packages=[package_of(Cleanup)]) as app:
        await asyncio.sleep(0.05)
        before = len(ran)
        await app.tick("cleanup")
        with pytest.raises(KeyError, match="no periodic task 'other' runs, only Cleanup"):
            await app.tick("other")

    assert (before, ran) == (0, [1])


async def test_virtual_hosts_and_fake_publishers() -> None:
    """Every virtual host leads to the same broker, and a fake publisher stays what it is."""

    class Audit(AMQPConsumer):
        queues = ["audit"]
        vhost = "logs"

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, line: str) -> None:
            await self.publisher.publish(line, "nobody")
            raise Reject("kept")

    container = Container()
    fake = FakePublisher()
    with override(container, publisher=fake):
        async with running(container, packages=[package_of(Audit)]) as app:
            await app.publish("line", "audit", vhost="logs")
            await app.idle()
            letters = app.dead_letters("audit", "logs")

    assert [each.body for each in fake.published] == ["line"]
    assert [each.body for each in letters] == [b"line"]


async def test_a_broker_alone() -> None:
    """Its address is there at once."""
    async with embedded_broker() as broker:
        assert broker.url == f"amqp://guest:guest@127.0.0.1:{broker.port}/"
        assert broker.behaves_as == "4.3"


async def test_fr24_a_version_for_the_broker_of_a_test() -> None:
    """Both ways to a broker take the version of RabbitMQ that it copies, and refuse others."""
    container, packages = Container(), [package_of(Booking, Billing)]
    async with embedded_broker(behaves_as="3.10") as broker:
        assert broker.behaves_as == "3.10"
    async with running(container, packages=packages, behaves_as="4.0") as app:
        await app.publish(Order(id=1), "orders")
        await app.idle()

        assert app.broker.behaves_as == "4.0"
        assert [each.action for each in app.settled("booking")] == ["ack"]
    with pytest.raises(ConfigurationError, match=r"'3\.9'"):
        async with running(container, packages=packages, behaves_as="3.9"):
            pass


class Failing(SSEConsumer):
    """Fails once for each event, and waits a minute before it tries again."""

    connection = "server"
    retry = RetryPolicy(delays=(60,))

    async def handle(self, event: SSEEvent[int]) -> None:
        if event.attempt == 1:
            raise ValueError("not yet")


class Gathering(SSEConsumer):
    """Handles batches that would take an hour to fill."""

    connection = "server"
    batch_interval = 3600.0

    async def handle(self, numbers: list[int]) -> None: ...


async def test_running_streams() -> None:
    """`idle` waits for events, for nothing but them, and for a stream that was cut."""
    container = WorkerContainer()
    async with sse_server() as server:
        settings = WorkerSettings(sse={"server": {"url": server.url}})
        with override(container, settings=settings):
            async with running(container, packages=[package_of(Failing, Gathering)]) as app:
                await server.send(1)
                await app.idle()
                server.cut()
                await server.send(2)
                await app.idle()

                found = [(each.action, each.body) for each in app.settled("Failing")]
                gathered = [(each.action, each.body) for each in app.settled("Gathering")]

    assert found == [("retry", 1), ("ack", 1), ("retry", 2), ("ack", 2)]
    assert gathered == [("ack", 1), ("ack", 2)]


async def test_idle_says_which_stream_is_pending() -> None:
    """A handler that hangs is named."""

    class Hanging(SSEConsumer):
        connection = "server"

        async def handle(self, data: str) -> None:
            await asyncio.sleep(3600)

    container = WorkerContainer()
    async with sse_server() as server:
        settings = WorkerSettings(sse={"server": {"url": server.url}}, shutdown_grace=0)
        with override(container, settings=settings):
            async with running(container, packages=[package_of(Hanging)]) as app:
                await server.send("x")
                with pytest.raises(AssertionError, match="1 events of Hanging are not settled"):
                    await app.idle(deadline=0.1)


async def test_the_scripted_server() -> None:
    """Events have ids, clients are resumed behind theirs, requests are there to look at."""
    async with sse_server() as server:
        assert await server.send("a") == "1"
        await server.send("b\nc", name="x", route="/one")
        async with ClientSession() as session:
            headers = {"Last-Event-ID": "1"}
            response = await session.get(f"{server.url}/one?a=1", headers=headers)
            request = await server.client()
            await server.comment("hello")
            server.end()
            text = await response.text()
            server.refuse(503, times=1, headers={"Retry-After": "7"})
            refused = await session.get(server.url)

    assert text == "retry: 10\n\nid: 2\nevent: x\ndata: b\ndata: c\n\n: hello\n"
    assert (request.method, request.path, request.query) == ("GET", "/one", {"a": "1"})
    assert (request.last_event_id, request.body) == ("1", b"")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "7")
    assert (len(server.requests), len(server.opened)) == (2, 1)


async def test_the_scripted_server_waits_for_a_client() -> None:
    """And says what has come instead."""
    async with sse_server() as server:
        with pytest.raises(AssertionError, match="0 of 1 streams, 0 requests"):
            await server.client(deadline=0.01)


async def test_views_of_a_running_application() -> None:
    """`app.http` asks them, on a free port whatever the settings say; without views it says so."""

    class Shown(HTTPView):
        routes = ["/orders/{order_id}"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def get(self, order_id: int) -> Order:
            await self.publisher.publish(Order(id=order_id), "billing")
            return Order(id=order_id)

    container = Container()
    settings = WorkerSettings(http=HTTPSettings(host="192.0.2.1", port=1))

    with override(container, settings=settings):
        async with running(container, packages=[package_of(Shown, Billing)]) as app:
            answer = await app.http.get("/orders/7")
            await app.idle()
            billed = [each.body for each in app.settled("Billing")]
            shown = [each.action for each in app.settled("Shown")]
        async with running(container, packages=[package_of(Billing)]) as app:
            with pytest.raises(RuntimeError, match="no view runs"):
                await app.http.get("/")

    assert (answer.status, answer.json()) == (200, {"id": 7})
    assert (billed, shown) == ([Order(id=7)], ["ack"])


class Announced(HTTPView):
    """A stream without an end, of one event."""

    routes = ["/news"]
    timeout = None

    async def get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'id: 1\ndata: {"id": 1}\n\n')
        await asyncio.Event().wait()
        return response


class Heard(SSEConsumer):
    """Follows it."""

    connection = "own"
    routes = ["/news"]

    async def handle(self, order: Order) -> None: ...


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "shop"])
async def test_a_stream_of_its_own(host: str) -> None:
    """A connection to where the views would be served leads to where they are, and no further."""
    url = "http://shop:8123" if host == "shop" else "http://localhost:8123"
    settings = WorkerSettings(http=HTTPSettings(host=host, port=8123), sse={"own": {"url": url}})
    container = Container()
    with override(container, settings=settings):
        async with running(container, packages=[package_of(Announced, Heard)]) as app:
            await app.idle()
            heard = [each.body for each in app.settled("Heard")]
            served = app.http.url

    assert heard == [Order(id=1)]
    assert served.startswith("http://127.0.0.1:")
