"""B6. A reply of the broker is lost during a recovery."""

import asyncio
from functools import partial

import pytest

from tests.application import running
from tests.client import Client
from tests.consumers import collector
from tests.footprint import Footprint
from tests.proxy import CHANNEL_OPEN_OK, CONSUME_OK, DECLARE_OK, QOS_OK, Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.waiting import eventually
from workerkit.tasks import Backoff

DEADLINE = 3.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, and short deadlines for replies."""
    monkeypatch.setattr("workerkit.amqp.replies.RPC_DEADLINE", DEADLINE)
    for user in ("connection", "subscription"):
        monkeypatch.setattr(f"workerkit.amqp.{user}.Backoff", partial(Backoff, first=0.1, cap=0.2))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "reply",
    [CONSUME_OK, QOS_OK, DECLARE_OK, CHANNEL_OPEN_OK],
    ids=["consume-ok", "qos-ok", "declare-ok", "channel.open-ok"],
)
async def test_b6_a_reply_is_lost_during_recovery(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    reply: tuple[int, int],
    number: int,
) -> None:
    """All consumers exist again, once each, and nothing is left of the failed attempt."""
    loop = asyncio.get_running_loop()
    one, ones = collector("a", name="One", concurrency=3)
    other, others = collector("b", name="Other", concurrency=5)
    async with (
        Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy,
        running(proxy.url(url), one, other) as runner,
    ):
        before = Footprint.of(rabbit, vhost)
        proxy.swallow(reply, number)
        began = loop.time()
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await eventually(lambda: proxy.swallowed)
        await client.send("a", b"1")
        await client.send("b", b"2")
        await eventually(lambda: ones and others and runner.ready)
        seconds = loop.time() - began
        await eventually(lambda: Footprint.of(rabbit, vhost).at_most(before))
        await eventually(lambda: rabbit.queues(vhost)["a"] == QueueState(0, 0, 1))

    failed = fields(caplog, "consumer is not ready")
    assert (ones, others) == ([b"1"], [b"2"])
    assert proxy.swallowed == [reply]
    assert seconds < DEADLINE + 3.0
    if reply != CHANNEL_OPEN_OK:
        # The channel was made anew, and not the connection; the other consumer went on.
        assert len(failed) == 1
        assert proxy.accepted <= 4, proxy.accepted


async def test_b6_another_consumer_continues(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """While one consumer waits for a lost reply, another one of the connection works."""
    await client.declare("a", "a.dlq", "b")
    one, ones = collector("a", name="One", declare="never")
    other, others = collector("b", name="Other")
    async with (
        Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy,
        running(proxy.url(url), one, other) as runner,
    ):
        tags = {each.tag for each in rabbit.consumers(vhost) if each.queue == "b"}
        # Its consumer is cancelled by the broker and made anew.
        await client.delete("a")
        await eventually(lambda: not runner.ready)
        proxy.swallow(CONSUME_OK)
        await client.declare("a")
        await eventually(lambda: proxy.swallowed)
        await client.send("b", *[b"x"] * 10)
        await eventually(lambda: len(others) == 10, DEADLINE - 0.2)
        await client.send("a", b"1")
        await eventually(lambda: b"1" in ones)
        after = {each.tag for each in rabbit.consumers(vhost) if each.queue == "b"}
        await eventually(lambda: runner.ready)
        await eventually(lambda: rabbit.queues(vhost)["a"] == QueueState(0, 0, 1))

    assert after == tags
    assert ones == [b"1"]
