"""FR20: a separate queue of each process, which is deleted with its connection."""

import logging
import re
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Binding, Exchange, Queue, RetryPolicy

PRICES = Exchange("prices", type="fanout")
NAME = re.compile(r"prices\..+\.\d+\.[0-9a-f]{8}")


def prices(**options: Any) -> Queue:
    """A queue of each process for the messages of the exchange."""
    return Queue("prices", per_process=True, bindings=[Binding(PRICES)], **options)


@pytest.mark.parametrize("declare", ["missing", "always", "never"])
async def test_fr20_each_process_receives_every_message(
    rabbit: PrivateRabbit, vhost: str, url: str, declare: str
) -> None:
    """Two processes have two queues, which are deleted when they stop; no other is declared."""
    one, bodies = collector(prices(), name="One", declare=declare)
    other, others = collector(prices(), name="Other", declare=declare)
    async with running(url, one), running(url, other), publishing(url) as publisher:
        names = set(rabbit.queues(vhost))
        await publisher.publish(b"a", "", exchange="prices")
        await eventually(lambda: (bodies, others) == ([b"a"], [b"a"]))
    await eventually(lambda: rabbit.queues(vhost) == {})

    assert len(names) == 2
    assert all(NAME.fullmatch(name) for name in names)


async def test_fr20_a_new_connection_has_a_new_queue(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is declared and bound again; health, logs and messages have the declared name."""
    caplog.set_level(logging.INFO)
    queues: list[str] = []

    class Prices(AMQPConsumer):
        queues = [prices()]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            received.append((message.queue, message.body))

    received: list[tuple[str, bytes]] = []
    async with running(url, Prices) as runner, publishing(url) as publisher:
        queues += rabbit.queues(vhost)
        rabbit.close_all_connections("once more")
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        queues += rabbit.queues(vhost)
        await publisher.publish(b"a", "", exchange="prices")
        await eventually(lambda: received == [("prices", b"a")])

    assert len(set(queues)) == 2
    assert {each["queue"] for each in fields(caplog, "consuming")} == {"prices"}


async def test_fr20_a_failed_message_is_retried_in_place_and_dropped(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """No queue for retries or dead letters is left after each start."""
    recorder = Recorder()
    attempts: list[int] = []

    class Prices(AMQPConsumer):
        queues = [prices()]
        retry = RetryPolicy(delays=(0.05, 0.05))

        async def handle(self, message: AMQPMessage[int]) -> None:
            attempts.append(message.attempt)
            raise ValueError("no")

    async with running(url, Prices, recorder=recorder), publishing(url) as publisher:
        await publisher.publish(1, "", exchange="prices")
        await publisher.publish(b"no number", "", exchange="prices")
        await eventually(lambda: recorder.actions.count("reject") == 2)
        [name] = rabbit.queues(vhost)
        await eventually(lambda: rabbit.queues(vhost)[name].unacked == 0)

    assert attempts == [1, 2, 3]
    assert sorted(recorder.actions) == ["reject", "reject", "retry", "retry"]


async def test_fr20_a_failed_message_goes_to_the_dead_letter_exchange_of_the_queue(
    url: str, client: Client
) -> None:
    """The broker dead-letters it, if the class declares an exchange."""
    await client.declare("dead")
    queue = prices(dead_letter_exchange="", dead_letter_routing_key="dead")
    consumer, _ = collector(queue, handle=_number, on_exception=Action.DEAD_LETTER)
    async with running(url, consumer), publishing(url) as publisher:
        await publisher.publish(b"no number", "", exchange="prices")
        letter = await client.take("dead")

    assert letter.body == b"no number"


async def _number(self: AMQPConsumer, number: int) -> None: ...


async def test_fr20_a_requeued_message_is_redelivered(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """To the queue of this process, as for any other queue."""
    calls: list[bool] = []

    class Prices(AMQPConsumer):
        queues = [prices()]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            calls.append(message.redelivered)
            if len(calls) == 1:
                raise ValueError("not yet")

    async with running(url, Prices), publishing(url) as publisher:
        await publisher.publish(b"a", "", exchange="prices")
        await eventually(lambda: calls == [False, True])

    assert errors(caplog) == []


def test_fr20_the_valid_declarations() -> None:
    """A classic queue whose name leaves room for the suffix. An empty name is refused."""
    with pytest.raises(ValueError, match="a queue per process is deleted with its connection"):
        Queue("prices", "quorum", per_process=True)
    with pytest.raises(ValueError, match="write at most 150 bytes before the suffix"):
        Queue("x" * 151, per_process=True)
    with pytest.raises(ValueError, match="per_process=True as well for a separate queue"):
        Queue("")
    assert prices().exclusive
