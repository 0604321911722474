"""E. Publishing: refusals, unknown outcomes, and a broker that blocks publishers."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from uuid import UUID

import pytest

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.consumers import collector
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit, QueueState, missing
from tests.records import errors
from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    BrokerBlocked,
    ConfigurationError,
    Exchange,
    MessageTooLarge,
    Publisher,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    WorkerkitError,
)

LARGEST = 1_000_000
"""Bytes of the largest body that the node of these tests takes."""


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A separate node, which accepts only small messages, and can be blocked."""
    assert missing() is None
    with PrivateRabbit(f"max_message_size = {LARGEST}") as node:
        yield node


@pytest.fixture
async def there(node: PrivateRabbit) -> AsyncIterator[Client]:
    """Another client of that node; its queues are deleted afterwards."""
    async with connected(node.url()) as client:
        yield client
        node.memory_alarm(on=False)
        for queue in node.queues():
            await client.delete(queue)


async def blocked(publisher: Publisher, vhost: str | None = None) -> None:
    """Publish until the broker blocks: an alarm reaches its connections a moment later."""

    async def is_blocked() -> bool:
        try:
            await publisher.publish(b"x", "nobody", vhost=vhost, mandatory=False, timeout=0.2)
        except BrokerBlocked:
            return True
        except (PublishTimeout, PublishOutcomeUnknown):  # no connection yet, or a late confirm
            return False
        return False

    await eventually(is_blocked)


async def turns(number: int = 5) -> None:
    """Run this number of iterations of the event loop."""
    for _ in range(number):
        await asyncio.sleep(0)


# E1: the broker refuses


async def test_e1_a_full_queue_refuses_by_a_negative_confirm(url: str, client: Client) -> None:
    """`PublishRefused` for the messages that do not fit, and only for them."""
    await client.declare("full", x_max_length=2, x_overflow="reject-publish")
    await client.declare("orders")
    async with publishing(url) as publisher:
        keys = ["full", "orders"] * 5
        results = await asyncio.gather(
            *(publisher.publish(b"x", key) for key in keys), return_exceptions=True
        )
        refused = [each for each in results if isinstance(each, PublishRefused)]
        again = await publisher.publish(b"y", "orders")

    assert [isinstance(each, str) for each in results[1::2]] == [True] * 5
    assert len(refused) == 3
    assert all("'full'" in str(each) for each in refused)
    assert again


async def test_e1_a_body_that_is_too_large_is_named(
    node: PrivateRabbit, there: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """`MessageTooLarge` for it; every other publish arrived, or its outcome is unknown."""
    await there.declare("orders")
    bodies = [b"small %d" % number for number in range(30)]
    bodies[15] = bytes(LARGEST + 1)
    async with publishing(node.url()) as publisher:
        await publisher.publish(b"first", "orders")
        results = await asyncio.gather(
            *(publisher.publish(body, "orders") for body in bodies), return_exceptions=True
        )
        unknown = [each for each in results if isinstance(each, PublishOutcomeUnknown)]
        confirmed = [each for each in results if isinstance(each, str)]
        largest = await publisher.publish(bytes(LARGEST), "orders")
        for each in unknown:
            await publisher.publish(b"again", "orders", message_id=each.message_id)

    too_large = results.pop(15)
    assert isinstance(too_large, MessageTooLarge)
    assert str(LARGEST) in str(too_large)
    assert len(confirmed) + len(unknown) == 29
    assert largest
    assert node.queues()["orders"].ready >= 31
    assert errors(caplog) == []


async def test_e1_headers_that_do_not_fit_a_frame_affect_no_other_publish(
    url: str, client: Client
) -> None:
    """`MessageTooLarge`, nothing is sent, and all other publishes of that moment arrive."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        await publisher.publish(b"first", "orders")
        results = await asyncio.gather(
            *(publisher.publish(b"x", "orders") for _ in range(10)),
            publisher.publish(b"x", "orders", headers={"large": "x" * 131_072}),
            *(publisher.publish(b"x", "orders") for _ in range(10)),
            return_exceptions=True,
        )

    too_large = results.pop(10)
    assert isinstance(too_large, MessageTooLarge)
    assert "131064" in str(too_large) or "131,064" in str(too_large)
    assert [type(each) for each in results] == [str] * 20


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"expiration": timedelta(5)},
            "expiration is of type timedelta: write seconds, such as 2.5",
        ),
        ({"expiration": "5"}, "expiration is of type str: write seconds, such as 2.5"),
        ({"correlation_id": UUID(int=1)}, "correlation_id is of type UUID: write a str"),
        ({"message_id": 5}, "message_id is of type int: write a str"),
        ({"routing_key": None}, "routing_key is None: write a str"),
        ({"exchange": 5}, "exchange is of type int: write a str or an Exchange"),
        ({"headers": {1: 2}}, "headers has a name of type int: write a str"),
        ({"headers": {"h": {1: 2}}}, "headers has a name of type int: write a str"),
        ({"headers": "abc"}, "headers is of type str: write a dict"),
        ({"priority": 1.5}, "priority is of type float: write an int"),
        ({"connection": None}, "connection is None: write a str"),
        ({"timeout": "1"}, "timeout is of type str: write seconds, such as 2.5"),
        ({"body": object()}, "a value of type object cannot be written as JSON"),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
async def test_e1_a_parameter_of_the_wrong_type_is_named(
    url: str, client: Client, wrong: dict[str, object], sentence: str
) -> None:
    """A `TypeError` names it, with its type and the right one; other publishes arrive."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        bad: dict[str, object] = {"body": b"x", "routing_key": "orders", **wrong}
        with pytest.raises(TypeError, match=f"^{re.escape(sentence)}"):
            await publisher.publish(**bad)  # type: ignore[arg-type]
        await publisher.publish(b"x", "orders")


@pytest.mark.parametrize(
    "wrong",
    [
        {"expiration": -1.0},
        {"expiration": 2.0**32},
        {"priority": -1},
        {"priority": 256},
        {"routing_key": "k" * 256},
        {"exchange": "x" * 256},
        {"message_id": "m" * 256},
        {"correlation_id": "c" * 256},
        {"headers": {"h" * 256: 1}},
        {"headers": {"h": 2**63}},
    ],
    ids=lambda wrong: ", ".join(f"{name}={value!r:.9}" for name, value in wrong.items()),
)
async def test_e1_values_that_amqp_cannot_encode_affect_no_other_publish(
    url: str, client: Client, caplog: pytest.LogCaptureFixture, wrong: dict[str, object]
) -> None:
    """A `ValueError` or `PublishError` for it; all other publishes of that moment arrive."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        await publisher.publish(b"first", "orders")
        bad: dict[str, object] = {"routing_key": "orders", **wrong}
        results = await asyncio.gather(
            publisher.publish(b"x", "orders"),
            publisher.publish(b"x", **bad),  # type: ignore[arg-type]
            publisher.publish(b"x", "orders"),
            return_exceptions=True,
        )

    assert [type(results[0]), type(results[2])] == [str, str]
    assert isinstance(results[1], ValueError | PublishError)
    assert errors(caplog) == []


async def test_e1_a_body_that_cannot_be_encoded_is_a_type_error(url: str) -> None:
    """Before anything is sent."""
    async with publishing(url) as publisher:
        with pytest.raises(TypeError, match="object cannot be written as JSON"):
            await publisher.publish(object(), "orders")


# E2: the outcome is unknown


async def test_e2_a_connection_that_is_lost_before_the_confirm(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """`PublishOutcomeUnknown` with the message id; publishing again with that id works."""
    await client.declare("orders")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        publishes = [
            asyncio.create_task(publisher.publish(b"x", "orders", message_id=given))
            for given in (None, "mine")
        ]
        await turns()
        proxy.drop()
        results = await asyncio.gather(*publishes, return_exceptions=True)
        proxy.thaw()
        ids = [each.message_id for each in results if isinstance(each, PublishOutcomeUnknown)]
        again = [await publisher.publish(b"again", "orders", message_id=each) for each in ids]
    letters = [await client.take("orders") for _ in range(3)]

    assert len(ids) == 2
    assert ids[1] == "mine"
    assert again == ids
    assert [each.properties.message_id for each in letters[1:]] == ids
    assert ids[0] in str(results[0])
    assert rabbit.queues(vhost)["orders"].ready == 0


async def test_e2_a_late_confirm(rabbit: PrivateRabbit, url: str, client: Client) -> None:
    """The same error at the deadline; the late confirm affects no other publish."""
    loop = asyncio.get_running_loop()
    await client.declare("orders")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        began = loop.time()
        with pytest.raises(PublishOutcomeUnknown, match=r"no confirm within 0\.3 s") as caught:
            await publisher.publish(b"late", "orders", timeout=0.3)
        seconds = loop.time() - began
        proxy.thaw()
        again = await publisher.publish(b"late", "orders", message_id=caught.value.message_id)
        await publisher.publish(b"last", "orders")
    ids = [(await client.take("orders")).properties.message_id for _ in range(4)]

    assert 0.3 <= seconds < 5.0
    assert not isinstance(caught.value, BrokerBlocked)
    assert ids[1:3] == [again, again]


async def test_e2_a_cancelled_publish_affects_no_other(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """Its confirm arrives when no caller waits any more."""
    await client.declare("orders")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        publishes = [asyncio.create_task(publisher.publish(b"x", "orders")) for _ in range(4)]
        await turns()
        publishes[1].cancel()
        await turns()
        proxy.thaw()
        results = await asyncio.gather(*publishes, return_exceptions=True)

    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert [type(each) for each in results] == [str] * 3


async def test_e2_publishes_wait_for_a_reconnect(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """A message that was not sent yet is not in doubt: it is sent after the reconnect."""
    await client.declare("orders")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.refuse()
        proxy.drop()
        await eventually(lambda: proxy.connections == 0)
        publishes = [asyncio.create_task(publisher.publish(b"x", "orders")) for _ in range(10)]
        await turns()
        await proxy.accept()
        results = await asyncio.gather(*publishes)

    assert len(set(results)) == 10


async def test_e2_closing_a_publisher_fails_its_publishes(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """The outcome of sent messages is unknown; none waits for its deadline."""
    loop = asyncio.get_running_loop()
    await client.declare("orders")
    async with Proxy("127.0.0.1", rabbit.port) as proxy, AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(publishing(proxy.url(url)))
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        sent = asyncio.create_task(publisher.publish(b"x", "orders"))
        await turns()
        proxy.refuse()
        proxy.drop()
        await eventually(lambda: proxy.connections == 0)
        await eventually(sent.done)
        unsent = asyncio.create_task(publisher.publish(b"x", "orders", timeout=60.0))
        await turns()
        began = loop.time()
        await stack.aclose()
        results = await asyncio.gather(sent, unsent, return_exceptions=True)
        seconds = loop.time() - began

    assert isinstance(results[0], PublishOutcomeUnknown)
    assert isinstance(results[1], PublishError)
    assert not isinstance(results[1], PublishOutcomeUnknown)
    assert seconds < 20.0


async def test_e2_a_closed_publisher_opens_no_connection(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """It would never be closed."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        await publisher.publish(b"first", "orders")
    before = len(asyncio.all_tasks())
    with pytest.raises(WorkerkitError):
        await publisher.publish(b"late", "orders", timeout=1.0)

    assert len(asyncio.all_tasks()) == before
    await eventually(lambda: rabbit.connections(vhost) == 1)  # the client's own


# E3: the broker blocks publishers


async def test_e3_under_a_memory_alarm_publishes_fail_at_their_deadline(
    node: PrivateRabbit, there: Client
) -> None:
    """`BrokerBlocked` with the message id; after the alarm the next publish works."""
    loop = asyncio.get_running_loop()
    await there.declare("orders")
    async with publishing(node.url()) as publisher:
        await publisher.publish(b"before", "orders")
        node.memory_alarm(on=True)
        await blocked(publisher)
        seconds = []
        ids = []
        for number in range(3):
            began = loop.time()
            with pytest.raises(BrokerBlocked, match="out of memory or disk") as caught:
                await publisher.publish(b"x", "orders", message_id=f"m{number}", timeout=0.4)
            seconds.append(loop.time() - began)
            ids.append(caught.value.message_id)
        node.memory_alarm(on=False)
        after = await publisher.publish(b"after", "orders", timeout=30.0)

    assert ids == ["m0", "m1", "m2"]
    assert all(0.4 <= each < 5.0 for each in seconds)
    assert after


async def test_e3_a_publish_that_waits_when_the_alarm_ends_succeeds(
    node: PrivateRabbit, there: Client
) -> None:
    """Within its deadline an alarm is only a delay, also on a connection opened during it."""
    await there.declare("orders")
    node.memory_alarm(on=True)
    async with publishing(node.url()) as publisher:
        await blocked(publisher)
        publishes = [asyncio.create_task(publisher.publish(b"x", "orders")) for _ in range(3)]
        await turns()
        waiting = [each.done() for each in publishes]
        node.memory_alarm(on=False)
        ids = await asyncio.gather(*publishes)

    assert waiting == [False] * 3
    assert len(set(ids)) == 3


async def test_e3_consumers_keep_acking_under_an_alarm(node: PrivateRabbit, there: Client) -> None:
    """Handlers run, acks arrive; only publishes are delayed."""
    recorder = Recorder()
    gate = asyncio.Event()
    publishers: list[Publisher] = []
    caught: list[Exception] = []

    class Forwarding(AMQPConsumer):
        queues = ["orders"]
        concurrency = 4

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher
            publishers.append(publisher)

        async def handle(self, body: bytes) -> None:
            await gate.wait()
            if body == b"forward":
                try:
                    await self.publisher.publish(body, "others", timeout=0.5)
                except BrokerBlocked as error:
                    caught.append(error)

    await there.declare("others")
    async with running(node.url(), Forwarding, recorder=recorder) as runner:
        await there.send("orders", b"forward", *[b"x"] * 50)
        node.memory_alarm(on=True)
        await blocked(publishers[0])
        gate.set()
        await eventually(lambda: recorder.actions == ["ack"] * 51)
        await eventually(lambda: node.queues()["orders"] == QueueState(0, 0, 1))
        ready = runner.ready
        node.memory_alarm(on=False)

    assert len(caught) == 1
    assert ready


async def test_e3_a_process_that_starts_under_an_alarm_consumes(
    node: PrivateRabbit, there: Client
) -> None:
    """Consuming ends an alarm: it does not wait for publishes of the start."""
    loop = asyncio.get_running_loop()
    consumer, bodies = collector("orders")
    await there.declare("orders", "orders.dlq")
    await there.send("orders", b"a")
    node.memory_alarm(on=True)
    async with publishing(node.url()) as publisher:
        await blocked(publisher)
    began = loop.time()
    async with running(node.url(), consumer, ready=False):
        await eventually(lambda: bodies == [b"a"])
        seconds = loop.time() - began

    assert seconds < 9.0  # requests to the broker wait for up to ten


@pytest.mark.parametrize("vhosts", [["/"], ["/", "second", "third"]], ids=["one", "several"])
async def test_e3_a_stop_under_an_alarm_is_not_delayed(
    node: PrivateRabbit, there: Client, caplog: pytest.LogCaptureFixture, vhosts: list[str]
) -> None:
    """The process stops cleanly and immediately, with any number of blocked connections."""
    loop = asyncio.get_running_loop()
    publishers: list[Publisher] = []

    class Forwarding(AMQPConsumer):
        queues = ["orders"]

        def __init__(self, publisher: Publisher) -> None:
            publishers.append(publisher)

        async def handle(self, body: bytes) -> None:
            """Never called."""

    for vhost in vhosts[1:]:
        node.add_vhost(vhost)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running(node.url(), Forwarding))
            node.memory_alarm(on=True)
            await asyncio.gather(*(blocked(publishers[0], vhost) for vhost in vhosts))
            began = loop.time()
            await stack.aclose()
            seconds = loop.time() - began
    finally:
        node.memory_alarm(on=False)
        for vhost in vhosts[1:]:
            node.delete_vhost(vhost)

    assert seconds < 10.0
    assert errors(caplog) == []


# Many


async def test_e1_publish_many_returns_the_ids_in_order(url: str, client: Client) -> None:
    """The first id is that of the first body, in any order of the confirms."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        ids = await publisher.publish_many(
            (b"%d" % number for number in range(500)), "orders", window=30, priority=3
        )
    found = {}
    for _ in range(500):
        letter = await client.take("orders")
        found[letter.properties.message_id] = int(letter.body)
        assert letter.properties.priority == 3

    assert [found[each] for each in ids] == list(range(500))


async def test_e1_publish_many_takes_no_more_than_its_window(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """An infinite iterator is read as confirms arrive, and no further."""
    await client.declare("orders")
    taken = 0

    def bodies() -> Iterator[bytes]:
        nonlocal taken
        for taken in count(1):
            yield b"%d" % taken

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        with pytest.raises(ExceptionGroup, match="7 of 7 failed") as caught:
            await publisher.publish_many(bodies(), "orders", window=7, timeout=0.3)

    assert taken == 7
    assert [type(each) for each in caught.value.exceptions] == [PublishOutcomeUnknown] * 7


async def test_e1_publish_many_stops_at_the_first_error(url: str, client: Client) -> None:
    """No other publish starts, those in progress have ended, and one group has all errors."""
    await client.declare("full", x_max_length=25, x_overflow="reject-publish")
    taken = 0

    def bodies() -> Iterator[bytes]:
        nonlocal taken
        for taken in count(1):
            yield b"%d" % taken

    async with publishing(url) as publisher:
        with pytest.raises(ExceptionGroup) as caught:
            await publisher.publish_many(bodies(), "full", window=10)
        tasks = len(asyncio.all_tasks())
        await turns()
        later = len(asyncio.all_tasks())

    kinds = {type(each) for each in caught.value.exceptions}
    assert kinds == {PublishRefused}
    assert 26 <= taken <= 50
    assert 1 <= len(caught.value.exceptions) <= 10
    assert tasks == later


@pytest.mark.parametrize("window", [1, 3, 1_000])
async def test_e1_publish_many_of_few_or_none(url: str, client: Client, window: int) -> None:
    """Fewer than the window, exactly the window, and none at all."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        none = await publisher.publish_many([], "orders", window=window)
        some = await publisher.publish_many([b"a", b"b", b"c"], "orders", window=window)

    assert none == []
    assert len(set(some)) == 3


@pytest.mark.parametrize("window", [0, -1])
async def test_e1_publish_many_refuses_a_window_of_zero(
    url: str, client: Client, window: int
) -> None:
    """It would return without an error and lose messages."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        with pytest.raises(ValueError, match="window"):
            await publisher.publish_many([b"a"], "orders", window=window)


async def test_e1_publish_many_of_an_iterator_that_raises(url: str, client: Client) -> None:
    """The group contains its error, and no publish is in progress afterwards."""
    await client.declare("orders")

    def bodies() -> Iterator[bytes]:
        yield b"a"
        raise LookupError("no more rows")

    async with publishing(url) as publisher:
        with pytest.raises(ExceptionGroup) as caught:
            await publisher.publish_many(bodies(), "orders", window=3)

    assert [type(each) for each in caught.value.exceptions] == [LookupError]


# Other threads


async def test_e1_a_sync_handler_publishes_from_its_thread(url: str, client: Client) -> None:
    """`publish_threadsafe` blocks until confirmed, returns the id, and raises as `publish` does."""
    await client.declare("copies")
    ids: list[str] = []
    caught: list[Exception] = []
    threads: set[str] = set()

    class Copying(AMQPConsumer):
        queues = ["orders"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        def handle(self, body: bytes) -> None:
            threads.add(threading.current_thread().name)
            ids.append(self.publisher.publish_threadsafe(body, "copies", headers={"of": "orders"}))
            try:
                self.publisher.publish_threadsafe(body, "nobody")
            except Unroutable as error:
                caught.append(error)

    recorder = Recorder()
    async with running(url, Copying, recorder=recorder):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.actions == ["ack"])
        letter = await client.take("copies")

    assert letter.body == b"a"
    assert letter.headers == {"of": "orders"}
    assert ids == [letter.properties.message_id]
    assert len(caught) == 1
    assert threading.current_thread().name not in threads


async def test_e1_publish_threadsafe_does_not_block_the_loop(url: str) -> None:
    """In the loop's own thread it raises an error that states what to do."""
    async with publishing(url) as publisher:
        with pytest.raises(RuntimeError, match="await publish instead"):
            publisher.publish_threadsafe(b"a", "orders")


async def test_e1_a_publisher_that_is_not_open_is_an_error() -> None:
    """For each of its methods."""
    publisher = Publisher()

    with pytest.raises(ConfigurationError, match="before the Runner has started"):
        await publisher.publish(b"a", "orders")
    with pytest.raises(ConfigurationError, match="before the Runner has started"):
        publisher.publish_threadsafe(b"a", "orders")


# Where to


async def test_e1_one_publisher_reaches_several_virtual_hosts(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """`vhost` selects one, and there is one connection for each."""
    other = f"{vhost}/other"
    rabbit.add_vhost(other)
    try:
        async with connected(rabbit.url(other)) as client_there, publishing(url) as publisher:
            await client.declare("orders")
            await client_there.declare("orders")
            await asyncio.gather(
                *(publisher.publish(b"here", "orders") for _ in range(5)),
                *(publisher.publish(b"there", "orders", vhost=other) for _ in range(5)),
            )
            here, there = await client.take("orders"), await client_there.take("orders")
            connections = rabbit.connections(vhost), rabbit.connections(other)
    finally:
        rabbit.delete_vhost(other)

    assert (here.body, there.body) == (b"here", b"there")
    assert connections == (2, 2)


async def test_e1_a_connection_that_the_settings_do_not_have(url: str) -> None:
    """The error names it, and the connections that exist."""
    async with publishing(url) as publisher:
        with pytest.raises(ConfigurationError, match=r"no connection 'other', only default"):
            await publisher.publish(b"a", "orders", connection="other")


async def test_e1_an_exchange_is_declared_with_the_first_publish(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """If it is missing, and again after it was deleted."""
    shop = Exchange("shop", type="direct", alternate="amq.fanout")
    async with publishing(url) as publisher:
        await publisher.publish(b"nobody", "orders", exchange=shop, mandatory=False)
        await client.declare("orders")
        await client.bind("orders", "shop", "orders")
        await publisher.publish(b"a", "orders", exchange=shop)
        await client.delete_exchange("shop")
        with pytest.raises(Unroutable):
            await publisher.publish(b"b", "orders", exchange=shop)
        await publisher.publish(b"c", "orders", exchange=shop, mandatory=False)
        await publisher.publish(b"d", "orders", exchange="shop", mandatory=False)

    assert (await client.take("orders")).body == b"a"


async def test_e1_headers_and_properties_arrive(url: str, client: Client) -> None:
    """Headers of every kind, and every property."""
    await client.declare("orders")
    headers = {"text": "grün", "number": 2**40, "yes": True, "none": None, "list": [1, {"a": "b"}]}
    async with publishing(url) as publisher:
        await publisher.publish(
            {"id": 1},
            "orders",
            headers=headers,
            message_id="m",
            correlation_id="c",
            priority=255,
            expiration=90.5,
        )
    letter = await client.take("orders")

    assert letter.body == b'{"id":1}'
    assert letter.headers == headers
    assert letter.properties.message_id == "m"
    assert letter.properties.correlation_id == "c"
    assert letter.properties.priority == 255
    assert letter.properties.expiration == "90500"
    assert letter.properties.content_type == "application/json"
