"""B. The connection is lost, and the state is as before after the recovery."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import connected
from tests.consumers import collector
from tests.footprint import Footprint
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Runner

BACKOFF = 0.5
"""Seconds of the first pause, at most."""

Break = Callable[[PrivateRabbit, str, Proxy], None]


def _closed_by_the_server(rabbit: PrivateRabbit, vhost: str, proxy: Proxy) -> None:
    name = ",".join(map(str, vhost.encode()))
    rabbit.eval(
        '[rabbit_networking:close_connection(Pid, "maintenance")'
        " || Pid <- rabbit_networking:connections(),"
        f" (catch rabbit_networking:connection_info(Pid, [vhost])) =:= [{{vhost, <<{name}>>}}]]"
    )


def _reset(rabbit: PrivateRabbit, vhost: str, proxy: Proxy) -> None:
    proxy.drop()


breaks = pytest.mark.parametrize(
    "break_it", [_closed_by_the_server, _reset], ids=["closed by the server", "reset"]
)


def _of_consumers(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """Return the records of the connection that consumes; publishers have another one."""
    return [each for each in fields(caplog, message) if each["role"] == "consumers"]


async def _as_before(
    before: Footprint, rabbit: PrivateRabbit, vhost: str, runner: Runner, proxy: Proxy, seen: int
) -> None:
    """Wait until there is a new connection, and the state equals *before*."""
    await eventually(lambda: proxy.accepted > seen and runner.ready, what="a new connection")

    await eventually(lambda: Footprint.of(rabbit, vhost).at_most(before))


@breaks
async def test_b1_an_idle_connection_that_is_lost_is_opened_again(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    caplog: pytest.LogCaptureFixture,
    break_it: Break,
) -> None:
    """After the backoff the same consumers exist, and nothing of the old connection is left."""
    caplog.set_level(logging.INFO, "workerkit")
    loop = asyncio.get_running_loop()
    two, bodies = collector("a", "b", name="Two", concurrency=3)
    one, _ = collector("c", name="One", prefetch=7)
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), two, one) as runner,
    ):
        before = Footprint.of(rabbit, vhost)
        connections = len(_of_consumers(caplog, "connected"))
        began = loop.time()
        break_it(rabbit, vhost, proxy)
        await eventually(lambda: not runner.ready, what="noticed")
        noticed = loop.time() - began
        await eventually(lambda: runner.ready, what="ready again")
        recovery = loop.time() - began
        await _as_before(before, rabbit, vhost, runner, proxy, 1)
        async with connected(url) as client:
            await client.send("b", b"afterwards")
        await eventually(lambda: bodies == [b"afterwards"])

    assert [(each.queue, each.prefetch) for each in before.consumers] == [
        ("a", 6),
        ("b", 6),
        ("c", 7),
    ]
    assert noticed < 5.0  # the heartbeats would need half a minute
    assert recovery < 5.0 + BACKOFF
    assert len(_of_consumers(caplog, "connection lost")) == 1
    assert len(_of_consumers(caplog, "connected")) == connections + 1
    assert errors(caplog) == []


@breaks
async def test_b1_ten_losses_in_a_row_leave_nothing_open(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Break,
) -> None:
    """There are as many tasks, descriptors, channels and connections after ten recoveries."""
    # Breaks this close together would be waited for longer and longer.
    monkeypatch.setattr("workerkit.amqp.connection.STABLE_AFTER", 0.0)
    two, _ = collector("a", "b", name="Two")
    one, _ = collector("c", name="One")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), two, one) as runner,
    ):
        before = Footprint.of(rabbit, vhost)
        for _ in range(10):
            seen = proxy.accepted
            break_it(rabbit, vhost, proxy)
            await _as_before(before, rabbit, vhost, runner, proxy, seen)


async def test_b1_a_connection_that_is_lost_repeatedly_gets_longer_pauses(
    rabbit: PrivateRabbit, url: str
) -> None:
    """A broker that drops every client immediately is not flooded with attempts."""
    loop = asyncio.get_running_loop()
    consumer, _ = collector("a")
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), consumer) as runner,
    ):
        pauses = []
        for _ in range(4):
            seen = proxy.accepted
            proxy.drop()
            began = loop.time()
            await eventually(lambda: proxy.accepted > seen)  # noqa: B023
            await eventually(lambda: runner.ready)
            pauses.append(loop.time() - began)

    assert pauses[0] < 5.0
    assert 2.0 <= pauses[3] < 8.0


async def test_b2_a_handler_continues_after_the_loss_and_its_ack_is_not_sent(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It settles nothing; the redelivered message waits for it, and is acknowledged then."""
    recorder = Recorder()
    gate = asyncio.Event()
    runs: list[bool] = []
    ended: list[int] = []

    class Slow(AMQPConsumer):
        queues = ["orders"]
        concurrency = 2

        async def handle(self, body: bytes, message: AMQPMessage[bytes]) -> None:
            runs.append(message.redelivered)
            await gate.wait()
            ended.append(len(runs))

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Slow, recorder=recorder) as runner,
    ):
        async with connected(url) as client:
            await client.send("orders", b"a")
        await eventually(lambda: len(runs) == 1)
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 1)
        assert ended == []
        gate.set()
        await eventually(lambda: recorder.actions == ["lost", "ack"])
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        queues = rabbit.queues(vhost)

    assert runs == [False]
    assert ended == [1]
    assert recorder.settled[0].outcome.error is None
    assert (queues["orders"].ready, queues["orders.dlq"].ready) == (0, 0)
    assert errors(caplog) == []


async def test_b2_a_failure_after_the_loss_is_not_counted(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """With any exception: no requeue, no dead letter, and no failure is counted."""
    recorder = Recorder()
    gate = asyncio.Event()
    runs: list[bool] = []

    class Failing(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes, message: AMQPMessage[bytes]) -> None:
            runs.append(message.redelivered)
            if len(runs) == 1:
                await gate.wait()
                raise KeyError("too late")

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Failing, recorder=recorder) as runner,
    ):
        async with connected(url) as client:
            await client.send("orders", b"a")
        await eventually(lambda: len(runs) == 1)
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        gate.set()
        await eventually(lambda: recorder.actions == ["lost", "ack"])
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        queues = rabbit.queues(vhost)

    assert runs == [False, True]
    assert (queues["orders"].ready, queues["orders.dlq"].ready) == (0, 0)


async def test_b2_prefetched_messages_are_not_handled_from_memory(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """Prefetched messages are handled after their redelivery, unless they were handled before."""
    recorder = Recorder()
    gate = asyncio.Event()
    handled: list[bytes] = []

    class Slow(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        prefetch = 10

        async def handle(self, body: bytes) -> None:
            handled.append(body)
            if len(handled) == 1:
                await gate.wait()

    bodies = [b"%d" % number for number in range(6)]
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Slow, recorder=recorder) as runner,
    ):
        async with connected(url) as client:
            await client.send("orders", *bodies)
        await eventually(lambda: handled and rabbit.queues(vhost)["orders"].unacked == 6)
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 6)
        gate.set()
        await eventually(lambda: len(recorder.settled) == 7)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)

    assert handled == bodies
    assert recorder.actions == ["lost"] + ["ack"] * 6
    assert [each.delivery.raw for each in recorder.settled] == [b"0", *bodies]
