"""B3 to B8: the broker is silent, freezes, restarts, is killed; no message is lost."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
from dependency_injector import providers
from pydantic_settings import SettingsConfigDict

from tests.application import Recorder, container_of, package_of, running
from tests.client import connected
from tests.consumers import collector
from tests.footprint import Footprint
from tests.ports import free_port
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit, QueueState, missing
from tests.records import errors, everything, fields
from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    BrokerRefused,
    ConnectionLost,
    Publisher,
    PublishError,
    PublishOutcomeUnknown,
    ReplyLost,
    Runner,
    WorkerSettings,
)
from workerkit.tasks import Backoff

HEARTBEAT = 1
# Three of them, and what a busy machine takes; aiormq's own monitor would need more than six.
LIMIT = 3 * HEARTBEAT + 3.0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, as there is an outage every few seconds."""
    monkeypatch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=0.2, cap=0.5))


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A separate node, which tests may freeze, restart and kill."""
    assert missing() is None
    with PrivateRabbit() as node:
        yield node


def with_heartbeat(url: str, seconds: int = HEARTBEAT) -> dict[str, dict[str, object]]:
    """Return the settings of a connection that detects silence soon."""
    return {"default": {"url": url, "heartbeat": seconds, "connect_timeout": 2.0}}


# B3: black-holed


async def test_b3_a_connection_on_which_nothing_arrives_is_dropped(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Detected within three heartbeats; the state is as before when packets pass again."""
    caplog.set_level(logging.INFO, "workerkit")
    loop = asyncio.get_running_loop()
    consumer, bodies = collector("a", "b", concurrency=3)
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        amqp = with_heartbeat(proxy.url(url))
        async with running("", consumer, amqp=amqp) as runner, connected(url) as client:
            before = Footprint.of(rabbit, vhost)
            proxy.freeze()
            began = loop.time()
            await client.send("a", b"meanwhile")
            await eventually(lambda: not runner.ready, what="noticed")
            noticed = loop.time() - began
            failed = await eventually(lambda: fields(caplog, "connection failed"))
            proxy.thaw()
            await eventually(lambda: runner.ready and bodies)
            await eventually(lambda: Footprint.of(rabbit, vhost).at_most(before), 20.0)

    lost = [each for each in fields(caplog, "connection lost") if each["role"] == "consumers"]
    assert noticed < LIMIT
    assert bodies == [b"meanwhile"]
    assert lost
    assert set(errors(caplog)) == {"connection failed"}
    assert failed[0]["error"] == str(failed[0]["exc_info"][1])


async def test_b3_a_publish_whose_packets_are_lost_is_in_doubt_and_the_next_arrives(
    rabbit: PrivateRabbit, url: str
) -> None:
    """The connection of the publisher is monitored in the same way."""
    loop = asyncio.get_running_loop()
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        connected(url) as client,
        AsyncExitStack() as stack,
    ):
        await client.declare("orders")
        publisher = Publisher()
        publisher.open(WorkerSettings.model_validate({"amqp": with_heartbeat(proxy.url(url))}))
        stack.push_async_callback(publisher.close)
        await publisher.publish(b"first", "orders")
        proxy.freeze()
        began = loop.time()
        with pytest.raises(PublishError) as caught:
            await publisher.publish(b"lost", "orders")
        seconds = loop.time() - began
        proxy.thaw()
        await publisher.publish(b"again", "orders")

    assert seconds < LIMIT
    assert "nothing heard" in str(caught.value) or "lost before the confirm" in str(caught.value)


async def test_b3_a_blocked_event_loop_is_not_silence(
    rabbit: PrivateRabbit,
    url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler that blocks the loop for longer than the limit does not close the connection."""
    # The broker's own limit, twice the heartbeat, must be far behind ours.
    heartbeat, limit = 4, 1.4
    monkeypatch.setattr("workerkit.amqp.connection._SILENT_HEARTBEATS", limit)
    loop = asyncio.get_running_loop()
    blocked: list[float] = []

    class Blocking(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            began = loop.time()
            while loop.time() < began + 1.5 * heartbeat:
                pass
            blocked.append(loop.time() - began)

    recorder = Recorder()
    async with (
        running("", Blocking, recorder=recorder, amqp=with_heartbeat(url, heartbeat)),
        connected(url) as client,
    ):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.settled)
        after = loop.time()
        await eventually(lambda: loop.time() > after + 0.5)

    assert len(blocked) == 1
    assert recorder.actions == ["ack"]
    assert fields(caplog, "connection lost") == []


# B4: frozen


async def test_b4_a_frozen_broker_is_detected_and_has_each_consumer_once(
    node: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """Within five heartbeats; after it resumes, each consumer exists once, and nothing is lost."""
    caplog.set_level(logging.INFO, "workerkit")
    loop = asyncio.get_running_loop()
    one, bodies = collector("a", "b", name="One", concurrency=3)
    two, _ = collector("c", name="Two")
    async with (
        running("", one, two, amqp=with_heartbeat(node.url())) as runner,
        connected(node.url()) as client,
    ):
        before = Footprint.of(node, "/")
        await client.send("a", b"before")
        await eventually(lambda: bodies == [b"before"] and node.queues()["a"].unacked == 0)
        node.pause()
        try:
            began = loop.time()
            await eventually(lambda: not runner.ready, what="noticed")
            noticed = loop.time() - began
            await eventually(lambda: fields(caplog, "connection failed"), what="tried again")
        finally:
            node.resume()
        await eventually(lambda: runner.ready)
        await client.send("a", b"after")
        await eventually(lambda: bodies == [b"before", b"after"])
        # What the broker still holds of the connections that we gave up goes with its heartbeat.
        await eventually(lambda: Footprint.of(node, "/").at_most(before), 20.0)

    assert noticed < 6 * HEARTBEAT
    assert set(errors(caplog)) == {"connection failed"}


async def test_b4_a_stop_while_the_broker_is_frozen(node: PrivateRabbit) -> None:
    """No request to the broker delays the stop for longer than its deadlines."""
    loop = asyncio.get_running_loop()
    consumer, _ = collector("a")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(node.url(), consumer))
        node.pause()
        try:
            began = loop.time()
            await stack.aclose()
            seconds = loop.time() - began
        finally:
            node.resume()
    await eventually(lambda: node.connections() == 0)

    assert seconds < 15.0


# B5: restarted, killed


@pytest.mark.usefixtures("soon")
async def test_b5_restarts_and_kills_under_load_lose_nothing(
    node: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """Each twice in a row: every confirmed id is handled at least once, and no message is left."""
    confirmed: set[str] = set()
    handled: Counter[str] = Counter()
    again: set[str] = set()
    stopping = asyncio.Event()

    class Counting(AMQPConsumer):
        queues = ["load"]

        async def handle(self, body: bytes, message: AMQPMessage[bytes]) -> None:
            await asyncio.sleep(0.002)
            handled[str(message.message_id)] += 1
            if message.redelivered:
                again.add(str(message.message_id))

    async def publish(publisher: Publisher) -> None:
        while not stopping.is_set():
            with suppress(PublishError):
                confirmed.add(await publisher.publish(b"x" * 100, "load", timeout=2.0))
            await asyncio.sleep(0.002)

    async def more() -> None:
        enough = len(confirmed) + 300
        await eventually(lambda: len(confirmed) > enough, 30.0)

    async with (
        running(node.url(), Counting, recorder=Recorder()) as runner,
        publishing(node.url()) as publisher,
    ):
        publishers = [asyncio.create_task(publish(publisher)) for _ in range(8)]
        for interrupt in (node.stop, node.stop, node.kill, node.kill):
            await more()
            await asyncio.to_thread(interrupt)
            await asyncio.to_thread(node.start)
        await more()
        stopping.set()
        await asyncio.gather(*publishers)
        await eventually(lambda: runner.ready)
        await eventually(lambda: node.queues()["load"] == QueueState(0, 0, 1), 30.0)
        dead = node.queues()["load.dlq"].ready

    twice = [name for name, times in handled.items() if times > 1]
    assert confirmed - set(handled) == set()
    assert len(confirmed) > 1_500
    assert dead == 0
    # A message may come twice only because it was delivered again, or its confirm was lost.
    assert set(twice) <= again
    assert set(errors(caplog)) <= {"connection failed"}


@pytest.mark.usefixtures("soon")
async def test_r4_the_broker_restarts_while_requests_wait(node: PrivateRabbit) -> None:
    """None hangs; afterwards requests are answered again."""
    started: list[bytes] = []
    allowed = asyncio.Event()

    class Held(AMQPConsumer):
        queues = ["held"]
        concurrency = 20

        async def handle(self, body: bytes) -> bytes:
            started.append(body)
            await allowed.wait()
            return body

    async with running(node.url(), Held), publishing(node.url()) as publisher:
        requests = [asyncio.create_task(publisher.request(b"x", "held")) for _ in range(20)]
        await eventually(lambda: len(started) == 20)
        await asyncio.to_thread(node.restart)
        failed = await asyncio.gather(*requests, return_exceptions=True)
        allowed.set()

        assert {type(each) for each in failed} <= {ReplyLost, PublishOutcomeUnknown}
        assert await publisher.request(b"y", "held", timeout=60.0) == b"y"


# B7: stopped while reconnecting


@pytest.mark.parametrize("how", ["refused", "silent", "reset at once"])
async def test_b7_a_stop_while_reconnecting(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """It returns immediately, there is no attempt afterwards, and no task is left."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    consumer, _ = collector("orders")
    async with Proxy("127.0.0.1", rabbit.port) as proxy, AsyncExitStack() as stack:
        runner = await stack.enter_async_context(running(proxy.url(url), consumer))
        if how == "refused":
            proxy.refuse()
        elif how == "silent":
            proxy.freeze()
        accepted = proxy.accepted
        proxy.drop()
        await eventually(lambda: not runner.ready)
        if how == "silent":
            await eventually(lambda: proxy.accepted > accepted)
        elif how == "refused":
            await eventually(
                lambda: any(each["attempt"] == 5 for each in fields(caplog, "connection failed"))
            )
        began = loop.time()
        await stack.aclose()
        seconds = loop.time() - began
        failures, accepted = len(fields(caplog, "connection failed")), proxy.accepted
        proxy.thaw()
        await proxy.accept()
        until = loop.time() + 1.0
        await eventually(lambda: loop.time() > until)
        failures_later, accepted_later = len(fields(caplog, "connection failed")), proxy.accepted

    assert seconds < 3.9  # the pauses are longer, or made by the time
    assert (failures_later, accepted_later) == (failures, accepted)
    assert asyncio.all_tasks() == before


# B8: secrets that change


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ["amqp__default__password", "workerkit_amqp__default__password"])
async def test_b8_a_password_that_changes_while_the_broker_is_down(
    rabbit: PrivateRabbit,
    vhost: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The secret file is read again at each attempt, and no password is logged."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secrets" / name
    secret.parent.mkdir()
    secret.write_text("hunter22\n")
    user = f"worker-{vhost}"
    rabbit.add_user(user, "hunter22", vhost)

    class Settings(WorkerSettings):
        model_config = SettingsConfigDict(secrets_dir=secret.parent)

    class Copying(AMQPConsumer):
        queues = ["orders"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: bytes) -> None:
            await self.publisher.publish(body, "copies")

    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        url = proxy.url(rabbit.url(vhost, user, "x"))
        container = container_of(url)
        settings = Settings.model_validate({"amqp": {"default": {"url": url}}})
        container.settings.override(providers.Object(settings))
        async with (
            Runner(container, packages=[package_of(Copying)]).running() as runner,
            connected(rabbit.url(vhost)) as client,
        ):
            await eventually(lambda: runner.ready)
            await client.declare("copies")
            await client.send("orders", b"before")
            before = (await client.take("copies")).body
            await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
            proxy.refuse()
            proxy.drop()
            await eventually(lambda: not runner.ready)
            # A loop that waits for it might have its stack logged, with the password in it.
            await asyncio.to_thread(rabbit.ctl, "change_password", user, "swordfish")
            secret.write_text("swordfish\n")
            await proxy.accept()
            await eventually(lambda: runner.ready)
            await client.send("orders", b"after")
            after = (await client.take("copies")).body

    assert (before, after) == (b"before", b"after")
    assert not any(
        "ACCESS_REFUSED" in str(each["exc_info"]) for each in fields(caplog, "connection failed")
    )
    assert "hunter22" not in everything(caplog)
    assert "swordfish" not in everything(caplog)


# The hook


@pytest.mark.usefixtures("soon")
async def test_b1_each_consumer_is_notified_of_each_failed_attempt(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`on_connection_error` gets the error and the attempt, which starts at 1 in each outage."""
    calls: dict[str, list[tuple[int, bool]]] = {"One": [], "Two": []}

    def telling(name: str, *queues: str) -> type[AMQPConsumer]:
        async def on_connection_error(self: AMQPConsumer, error: Exception, attempt: int) -> None:
            calls[name].append((attempt, isinstance(error, ConnectionLost)))

        consumer, _ = collector(*queues, name=name, on_connection_error=on_connection_error)
        return consumer

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), telling("One", "a", "b"), telling("Two", "c")) as runner,
    ):
        for outage in (1, 2):
            proxy.refuse()
            proxy.drop()
            # One failed attempt in the first outage, two more in the second.
            enough = outage * (outage + 1) // 2
            await eventually(partial(_failed, caplog, enough))
            await proxy.accept()
            await eventually(lambda: runner.ready)

    attempts = [(each["attempt"], True) for each in _of_consumers(caplog)]
    assert calls == {"One": attempts, "Two": attempts}
    assert [attempt for attempt, _ in attempts].count(1) == 2


async def test_b1_a_hook_that_raises_or_hangs_stops_nothing(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged or ignored; the connection is opened again, and the stop does not wait."""
    loop = asyncio.get_running_loop()
    called: list[str] = []

    async def raising(self: AMQPConsumer, error: Exception, attempt: int) -> None:
        called.append("raising")
        raise LookupError("no pager")

    async def leaving(self: AMQPConsumer, error: Exception, attempt: int) -> None:
        called.append("leaving")
        raise SystemExit(3)

    async def hanging(self: AMQPConsumer, error: Exception, attempt: int) -> None:
        called.append("hanging")
        await asyncio.Event().wait()

    one, bodies = collector("a", name="Raising", on_connection_error=raising)
    two, others = collector("b", name="Hanging", on_connection_error=hanging)
    three, _ = collector("c", name="Leaving", on_connection_error=leaving)
    async with Proxy("127.0.0.1", rabbit.port) as proxy, AsyncExitStack() as stack:
        runner = await stack.enter_async_context(running(proxy.url(url), one, two, three))
        proxy.refuse()
        proxy.drop()
        await eventually(lambda: len(_of_consumers(caplog)) == 2)
        await proxy.accept()
        await eventually(lambda: runner.ready)
        async with connected(url) as client:
            await client.send("a", b"a")
            await client.send("b", b"b")
        await eventually(lambda: bodies and others)
        began = loop.time()
        await stack.aclose()
        seconds = loop.time() - began

    failed = fields(caplog, "hook failed")
    assert Counter(called) == {"raising": 2, "hanging": 2, "leaving": 2}
    assert Counter((each["consumer"], each["hook"]) for each in failed) == {
        ("Raising", "on_connection_error"): 2,
        ("Leaving", "on_connection_error"): 2,
    }
    assert {"LookupError"} < {type(each["exc_info"][1]).__name__ for each in failed}
    assert seconds < 5.0


async def test_b1_a_refusal_is_reported_as_one() -> None:
    """The hook can distinguish a broker that refuses from one that is not available."""
    told: list[Exception] = []

    async def on_connection_error(self: AMQPConsumer, error: Exception, attempt: int) -> None:
        told.append(error)

    consumer, _ = collector("a", on_connection_error=on_connection_error)
    async with running(f"amqp://127.0.0.1:{free_port()}/", consumer, ready=False):
        await eventually(lambda: told)

    assert isinstance(told[0], ConnectionLost)
    assert not isinstance(told[0], BrokerRefused)


def _of_consumers(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    found = fields(caplog, "connection failed")
    return [each for each in found if each["role"] == "consumers"]


def _failed(caplog: pytest.LogCaptureFixture, times: int) -> bool:
    return len(_of_consumers(caplog)) >= times
