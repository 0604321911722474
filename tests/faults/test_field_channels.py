"""FR12. More queues than the broker allows channels on a connection."""

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from tests.application import running
from tests.client import connected
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import AMQPConsumer
from workerkit.tasks import Backoff

CHANNEL_MAX = 16
QUEUES = 20
ROOM = 14  # The others are reserved for declarations.
NO_CHANNEL = "no channel is left for a queue"


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A node that allows few channels."""
    with PrivateRabbit(f"channel_max = {CHANNEL_MAX}\n") as node:
        yield node


@pytest.fixture
def narrow(node: PrivateRabbit) -> Iterator[PrivateRabbit]:
    """The same, without queues at the beginning."""
    yield node
    node.delete_vhost("/")
    node.add_vhost("/")


def consumers() -> tuple[list[type[AMQPConsumer]], list[list[bytes]]]:
    """Consumers of one queue each, and the messages that they receive."""
    made = [collector(f"q{number}", name=f"Many{number}") for number in range(QUEUES)]
    return [consumer for consumer, _ in made], [bodies for _, bodies in made]


async def test_fr12_as_many_as_possible_consume_and_the_others_give_the_reason(
    narrow: PrivateRabbit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ERROR for each of the others, no connection is lost, and a free channel is used."""
    monkeypatch.setattr("workerkit.amqp.subscription._NO_CHANNEL_RETRY", 1.0)
    classes, bodies = consumers()
    url = narrow.url()
    async with (
        connected(url) as client,
        running(url, *classes, ready=False) as runner,
    ):
        await eventually(lambda: len(narrow.consumers()) == ROOM)
        await eventually(lambda: len(fields(caplog, NO_CHANNEL)) == QUEUES - ROOM)
        waiting = [each for each in runner.health if each.state == "waiting"]
        reasons = {each.consumer: each.reason for each in waiting}
        for number in range(QUEUES):
            await client.send(f"q{number}", b"1")
        await eventually(lambda: sum(map(len, bodies)) == ROOM)
        # A queue is deleted: its channel serves another one.
        gone = next(each.queue for each in narrow.consumers())
        await client.delete(gone)
        await eventually(lambda: sum(map(len, bodies)) == ROOM + 1)
        await eventually(lambda: len(narrow.consumers()) == ROOM)

    assert len(reasons) == QUEUES - ROOM
    for consumer, reason in reasons.items():
        queue = consumer.lower().replace("many", "q")
        assert f"channel_max {CHANNEL_MAX} of the broker leaves no channel for" in reason
        assert f"queue '{queue}': {ROOM} of {QUEUES} queues" in reason
    assert not fields(caplog, "connection lost")
    assert not fields(caplog, "consumer is not ready")
    told = [each["queue"] for each in fields(caplog, NO_CHANNEL)]
    assert len(set(told)) == len(told)


async def test_fr12_as_many_consume_after_a_reconnect(
    narrow: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """After the connection was lost as many consume as before, and no error is logged again."""
    classes, _ = consumers()
    async with running(narrow.url(), *classes, ready=False):
        await eventually(lambda: len(narrow.consumers()) == ROOM)
        await eventually(lambda: len(fields(caplog, NO_CHANNEL)) == QUEUES - ROOM)
        narrow.close_all_connections("on purpose")
        await eventually(lambda: fields(caplog, "connection lost"))
        await eventually(lambda: len(narrow.consumers()) == ROOM)
        lost = len(fields(caplog, "connection lost"))

    assert lost <= 2, "one for consumers, one for the publisher"


async def test_fr12_channel_numbers_are_reused(
    narrow: PrivateRabbit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and closing channels does not exhaust the numbers."""
    monkeypatch.setattr("workerkit.amqp.subscription._MISSING_RETRY", 0.05)
    soon = partial(Backoff, first=0.05, cap=0.05)
    monkeypatch.setattr("workerkit.amqp.subscription.Backoff", soon)
    fine, bodies = collector("fine", name="Fine")
    comes, _ = collector("comes", name="Comes")
    url = narrow.url()
    async with connected(url) as client, running(url, fine, comes) as runner:
        for _ in range(CHANNEL_MAX + 4):
            await client.delete("comes")
            await eventually(lambda: not runner.ready)
            await client.declare("comes")
            await eventually(lambda: runner.ready)
        await client.send("fine", b"1")
        await eventually(lambda: bodies == [b"1"])

    assert not fields(caplog, "connection lost")


async def test_fr12_a_limit_of_the_user_is_obeyed_once_it_is_known(
    rabbit: PrivateRabbit, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker closes the connection that reaches it; the next ones stay below."""
    user = f"limited-{vhost}"
    rabbit.add_user(user, "x", vhost)
    await asyncio.to_thread(rabbit.ctl, "set_user_limits", user, '{"max-channels": 10}')
    classes, _ = consumers()
    async with running(rabbit.url(vhost, user, "x"), *classes, ready=False) as runner:
        await eventually(lambda: len(fields(caplog, NO_CHANNEL)) >= QUEUES - 7)
        await eventually(lambda: len(rabbit.consumers(vhost)) >= 5)
        reason = next(each.reason for each in runner.health if each.reason)

    assert "the broker's limit of 10 channels" in reason
    # RabbitMQ 4.0 names itself here, and not the user.
    assert "number of channels opened for user" in reason
    assert 1 <= len(fields(caplog, "connection lost")) <= 6
