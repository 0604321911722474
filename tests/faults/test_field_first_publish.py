"""FP12: the queues of a process are declared before a component of it publishes."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from aiohttp import ClientSession

from tests.application import Recorder, container_of, package_of, running
from tests.client import Client
from tests.consumers import collector
from tests.ports import free_port
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    Binding,
    Exchange,
    HTTPView,
    PeriodicTask,
    Publisher,
    PublishTimeout,
    Queue,
    RetryPolicy,
    Runner,
    Unroutable,
)
from workerkit.embedded import EmbeddedBroker

MANY = 50
LAST = f"queue-{MANY - 1}"


@pytest.fixture(params=["rabbitmq", "embedded"])
async def fresh(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Address of a broker without declarations."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("url")
        return
    async with EmbeddedBroker() as broker:
        yield broker.url


def many(count: int = MANY) -> tuple[list[type[AMQPConsumer]], list[bytes]]:
    """Consumers with a queue each, with retries, and the messages that the last one received."""
    made = [
        collector(f"queue-{number}", name=f"Consumer{number}", retry=RetryPolicy(delays=(1,)))
        for number in range(count)
    ]
    return [consumer for consumer, _ in made], made[-1][1]


async def test_fp12_a_periodic_task_publishes_in_its_first_run(fresh: str) -> None:
    """Each of the process's own queues receives the messages of the first run."""
    consumers, bodies = many()

    class First(PeriodicTask):
        every = 3600.0

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            await self.publisher.publish_many([LAST.encode()], LAST)
            for number in range(MANY):
                await self.publisher.publish(b"", f"queue-{number}.dlq")

    recorder = Recorder()
    async with running(fresh, First, *consumers, recorder=recorder):
        await eventually(lambda: bodies == [LAST.encode()])
        await eventually(lambda: "First" in [each.consumer for each in recorder.settled])

    [run] = [each for each in recorder.settled if each.consumer == "First"]
    assert run.outcome.error is None


async def test_fp12_a_view_publishes_in_its_first_request(fresh: str) -> None:
    """When its port is open, a request may publish to any of the process's own queues."""
    consumers, bodies = many()
    port = free_port()

    class Order(HTTPView):
        routes = ["/orders"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def post(self) -> None:
            await self.publisher.publish(b"order", LAST)

    statuses: list[int] = []

    async def ask() -> bool:
        async with ClientSession() as client:
            try:
                async with client.post(f"http://127.0.0.1:{port}/orders") as response:
                    statuses.append(response.status)
            except OSError:
                return False
        return True

    asking = asyncio.create_task(eventually(ask))
    async with running(fresh, Order, *consumers, ready=False, http={"port": port}):
        await asking
        await eventually(lambda: bodies)

    assert statuses == [204]


async def test_fp12_a_hook_publishes_at_the_start(fresh: str) -> None:
    """Even `on_start` of the first consumer reaches the queue of the last."""
    consumers, bodies = many()

    class Eager(AMQPConsumer):
        queues = ["eager"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def on_start(self) -> None:
            await self.publisher.publish(b"hook", LAST)

        async def handle(self, body: bytes) -> None: ...

    async with running(fresh, Eager, *consumers):
        await eventually(lambda: bodies == [b"hook"])


async def test_fp12_a_consumer_publishes_to_queues_of_other_consumers(
    fresh: str,
) -> None:
    """Messages in an existing queue are handled only when all other queues exist."""
    consumers, bodies = many()
    shop = Exchange("shop", type="topic")
    bound, routed = collector(Queue("bound", bindings=[Binding(shop, "order.*")]), name="Bound")
    own, copies = collector(
        Queue("own", per_process=True, bindings=[Binding(shop, "order.*")]), name="Own"
    )

    class Forwards(AMQPConsumer):
        queues = ["incoming"]
        concurrency = 8

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: bytes) -> None:
            await self.publisher.publish(body, LAST)
            await self.publisher.publish(body, "order.placed", exchange="shop")

    async with running(fresh, Forwards):
        pass
    publisher = Publisher()
    publisher.open(container_of(fresh).settings())
    sent = [str(number).encode() for number in range(8)]
    await publisher.publish_many(sent, "incoming")
    await publisher.close()
    recorder = Recorder()
    async with running(fresh, Forwards, bound, own, *consumers, recorder=recorder):
        await eventually(lambda: len(bodies) >= 8 and len(routed) >= 8 and len(copies) >= 8)

    assert sorted(bodies) == sorted(routed) == sorted(copies) == sent
    assert set(recorder.actions) == {"ack"}


@pytest.mark.parametrize("kind", ["rabbitmq", "embedded"])
async def test_fp12_a_broker_that_starts_late(kind: str, request: pytest.FixtureRequest) -> None:
    """Views are served; their publishes wait for the connection and for the queues."""
    consumers, bodies = many(20)
    answered: list[str] = []

    class Order(HTTPView):
        routes = ["/orders"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def get(self) -> str:
            return "served"

        async def post(self) -> None:
            await self.publisher.publish(b"order", "queue-19", timeout=60.0)

    url, start, stop = _late(kind, request)
    http = free_port()
    async with (
        running(url, Order, *consumers, ready=False, http={"port": http}) as runner,
        ClientSession(f"http://127.0.0.1:{http}") as client,
    ):
        async with client.get("/orders") as response:
            answered.append(await response.json())
        posting = asyncio.create_task(_post(client))
        assert not runner.ready
        await start()
        try:
            assert await posting == 204
            await eventually(lambda: bodies == [b"order"])
        finally:
            await stop()

    assert answered == ["served"]


async def _post(client: ClientSession) -> int:
    async with client.post("/orders") as response:
        return response.status


Call = Callable[[], Awaitable[None]]


def _late(kind: str, request: pytest.FixtureRequest) -> tuple[str, Call, Call]:
    """Address of a broker that is not running, and functions to start and stop it."""
    if kind == "embedded":
        broker = EmbeddedBroker(free_port())
        port = broker.port
        return f"amqp://127.0.0.1:{port}/", broker.start, broker.stop
    node: PrivateRabbit = request.getfixturevalue("broker")
    node.stop()

    async def start() -> None:
        await asyncio.to_thread(node.start)

    async def stop() -> None: ...

    return node.url(), start, stop


async def test_fp12_a_publish_waits_no_longer_than_its_deadline() -> None:
    """While the broker is not available it fails with the reason."""
    consumer, _ = collector("orders")
    publisher = Publisher()
    container = container_of(f"amqp://127.0.0.1:{free_port()}/")
    container.publisher.override(publisher)
    runner = Runner(container, packages=[package_of(consumer)])
    async with runner.running():
        with pytest.raises(PublishTimeout, match=r"message 'm' .* not sent within 0.7 s: .*refuse"):
            await publisher.publish(b"", "orders", message_id="m", timeout=0.7)


async def test_fp12_a_queue_that_cannot_be_declared_delays_nothing(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused, or missing with `never`: the reason is logged, and the others work."""
    caplog.set_level(logging.INFO)
    await client.declare("other", x_max_length=10)
    refused, _ = collector(Queue("other", max_length=11), name="Refused")
    missing, _ = collector("nobody's", name="Missing", declare="never")
    consumers, bodies = many(5)

    class First(PeriodicTask):
        every = 3600.0

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            with pytest.raises(Unroutable):
                await self.publisher.publish(b"lost", "nobody's")
            await self.publisher.publish(b"fine", "queue-4")

    recorder = Recorder()
    async with running(
        url, First, refused, missing, *consumers, recorder=recorder, ready=False
    ) as runner:
        await eventually(lambda: bodies == [b"fine"])
        reasons = await eventually(lambda: _reasons(runner, ["Refused", "Missing"]))

    assert "differs in 'x-max-length'" in reasons[0]
    assert reasons[1] == 'queue "nobody\'s" is missing'
    assert [each.outcome.error for each in recorder.settled if each.consumer == "First"] == [None]
    assert "consumer is not ready" in errors(caplog)
    assert fields(caplog, "queue is missing")


def _reasons(runner: Runner, names: Sequence[str]) -> list[str]:
    found = {each.consumer: each.reason for each in runner.health}
    return [found[name] for name in names] if all(found[name] for name in names) else []


async def test_fp12_each_connection_is_independent(url: str) -> None:
    """A broker that is not available does not delay a publish to another one."""
    consumers, bodies = many(3)
    elsewhere, _ = collector("far", name="Far", connection="far")

    class First(PeriodicTask):
        every = 3600.0

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            await self.publisher.publish(b"near", "queue-2")

    amqp = {"far": {"url": f"amqp://127.0.0.1:{free_port()}/"}}
    async with running(url, First, elsewhere, *consumers, ready=False, amqp=amqp):
        await eventually(lambda: bodies == [b"near"])


async def test_fp12_a_silent_broker_does_not_delay_views() -> None:
    """It accepts connections and sends nothing; the port opens long before that is a failure."""
    consumer, _ = collector("orders")
    http = free_port()

    class Hello(HTTPView):
        routes = ["/"]

        async def get(self) -> str:
            return "hello"

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
        amqp = {"default": {"url": url, "connect_timeout": 60.0}}
        async with (
            running(url, Hello, consumer, ready=False, amqp=amqp, http={"port": http}) as runner,
            ClientSession(f"http://127.0.0.1:{http}") as client,
            client.get("/") as response,
        ):
            answer = await response.json()
            reasons = [each.reason for each in runner.health]

    assert answer == "hello"
    assert reasons == ["", ""]


async def test_fp12_a_declaration_without_a_reply_delays_nothing() -> None:
    """The other queues are consumed and published to before its deadline has passed."""
    consumers, bodies = many(20)

    class First(PeriodicTask):
        every = 3600.0

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            await self.publisher.publish(b"fine", "queue-19")

    async with EmbeddedBroker() as broker:
        broker.swallow_next("queue.declare-ok")
        async with running(broker.url, First, *consumers, ready=False) as runner:
            await eventually(lambda: bodies == [b"fine"])
            ready_then = runner.ready
            await eventually(lambda: runner.ready)

    assert not ready_then


async def test_fp12_a_publish_to_a_queue_without_a_reply_waits() -> None:
    """It waits within its deadline, also after the other queues have been tried."""
    late, bodies = collector("late")
    others, _ = many(3)

    class First(PeriodicTask):
        every = 3600.0

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            await self.publisher.publish(b"order", "late", timeout=60.0)

    async with EmbeddedBroker() as broker:
        # It says that a queue is missing, which therefore is not declared.
        broker.swallow_next("channel.close")
        async with running(broker.url, First, late, *others, ready=False):
            await eventually(lambda: bodies == [b"order"], 60.0)


async def test_fp12_failed_attempts_are_counted_from_the_first() -> None:
    """Consumers start after the first attempt, and their hooks are notified of it."""
    attempts: list[int] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def on_connection_error(self, error: Exception, attempt: int) -> None:
            attempts.append(attempt)

        async def handle(self, body: bytes) -> None: ...

    async with running(f"amqp://127.0.0.1:{free_port()}/", Orders, ready=False) as runner:
        await eventually(lambda: len(attempts) >= 3)
        reason = runner.health[0].reason

    assert attempts[:3] == [1, 2, 3]
    assert "refused" in reason.lower()
