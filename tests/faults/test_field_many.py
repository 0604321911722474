"""FR11. Many consumers on one connection, and a slow broker."""

import asyncio
from functools import partial

import pytest

from tests.application import running
from tests.client import Client
from tests.consumers import collector
from tests.proxy import CHANNEL_OPEN_OK, CONSUME_OK, DECLARE_OK, QOS_OK, Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.slow_proxy import SlowProxy
from tests.waiting import eventually
from workerkit import RetryPolicy
from workerkit.amqp.scratch_channels import MAX_SETUPS
from workerkit.tasks import Backoff

CLASSES = 120
DECLARE = (50, 10)
CHANNEL_OPEN = (20, 10)
CONSUME = (60, 20)


async def test_fr11_many_classes_are_set_up_a_few_at_a_time(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All consume on the first connection, whether their queues exist or not."""
    retry = RetryPolicy((5.0,))
    classes = [
        collector(f"q{number}", name=f"Many{number}", retry=retry)[0] for number in range(CLASSES)
    ]
    async with SlowProxy("127.0.0.1", rabbit.port, delay=0.1) as proxy:
        async with running(proxy.url(url), *classes, ready=False) as runner:
            await eventually(lambda: runner.ready, 120.0)
            assert len(rabbit.consumers(vhost)) == CLASSES
        first, opened = proxy.requests.total(), proxy.accepted
        proxy.requests.clear()
        async with running(proxy.url(url), *classes, ready=False) as runner:
            await eventually(lambda: runner.ready, 120.0)
            began = proxy.requests.copy()

    assert not fields(caplog, "connection lost")
    assert not fields(caplog, "connection dropped")
    assert not fields(caplog, "consumer is not ready")
    # One for consumers and one for the publisher, in each run.
    assert (opened, proxy.accepted) == (2, 4)
    # At the end of the start the channels for declarations are closed.
    assert proxy.most_waiting <= 2 * MAX_SETUPS
    assert first < CLASSES * 16
    # The queue, its type, its retry queue, a comparison of that, and its dead-letter queue.
    assert began[DECLARE] <= CLASSES * 5
    # Its own channel; those for declarations are shared.
    assert began[CHANNEL_OPEN] <= CLASSES + 2 * MAX_SETUPS
    assert began[CONSUME] == CLASSES


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, and a short deadline for replies."""
    monkeypatch.setattr("workerkit.amqp.replies.RPC_DEADLINE", 3.0)
    for user in ("connection", "subscription"):
        monkeypatch.setattr(f"workerkit.amqp.{user}.Backoff", partial(Backoff, first=0.1, cap=0.2))


@pytest.mark.parametrize(
    "reply",
    [CHANNEL_OPEN_OK, DECLARE_OK, QOS_OK, CONSUME_OK],
    ids=["channel.open-ok", "declare-ok", "qos-ok", "consume-ok"],
)
async def test_fr11_a_late_reply_closes_its_channel_and_not_the_connection(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    impatient: None,
    reply: tuple[int, int],
) -> None:
    """Another consumer works before and after, on the same channel."""
    await client.declare("a", "a.dlq", "b")
    one, ones = collector("a", name="One", declare="never")
    other, others = collector("b", name="Other")
    async with (
        Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy,
        running(proxy.url(url), one, other) as runner,
    ):
        tag = next(each.tag for each in rabbit.consumers(vhost) if each.queue == "b")
        await client.delete("a")
        await eventually(lambda: not runner.ready)
        proxy.swallow(reply)
        await client.declare("a")
        await client.send("a", *[b"x"] * 50)
        await eventually(lambda: proxy.swallowed)

        async def served() -> bool:
            await client.send("b", b"y")
            return bool(others) and runner.ready

        await eventually(served)
        await eventually(lambda: len(ones) >= 50)
        await eventually(lambda: rabbit.queues(vhost)["a"] == QueueState(0, 0, 1))
        after = next(each.tag for each in rabbit.consumers(vhost) if each.queue == "b")

    assert tag == after
    assert not fields(caplog, "connection dropped")
    assert not fields(caplog, "connection lost")


async def test_fr11_a_connection_on_which_nothing_arrives_is_dropped(
    rabbit: PrivateRabbit,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    impatient: None,
) -> None:
    """At the deadline of the request, long before the heartbeat timeout."""
    await client.declare("a", "a.dlq")
    one, ones = collector("a", declare="never")
    amqp = {"default": {"url": "", "heartbeat": 600}}
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        amqp["default"]["url"] = proxy.url(url)
        async with running("", one, amqp=amqp) as runner:
            await client.delete("a")
            await eventually(lambda: not runner.ready)
            proxy.freeze()
            await eventually(lambda: fields(caplog, "connection dropped"))
            proxy.thaw()
            await client.declare("a")
            await client.send("a", b"1")
            await eventually(lambda: ones == [b"1"])
            await eventually(lambda: runner.ready)

    assert "and no other bytes arrived" in fields(caplog, "connection dropped")[0]["reason"]


async def test_fr11_a_stop_during_the_start_is_clean(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some consume, some are being set up, most wait: the stop waits for none."""
    classes = [collector(f"q{number}", name=f"Many{number}")[0] for number in range(CLASSES)]
    async with SlowProxy("127.0.0.1", rabbit.port, delay=0.1) as proxy:
        async with running(proxy.url(url), *classes, ready=False):
            await eventually(lambda: proxy.requests[CONSUME] >= MAX_SETUPS)
        requested = proxy.requests[CONSUME]
        await asyncio.sleep(0)

    assert requested < CLASSES
    assert not fields(caplog, "connection dropped")
