"""FR2: a delivery limit of -1 means no limit on every version of RabbitMQ."""

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.faults.test_field_queue_types import limit_of
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Queue

UNLIMITED = {
    "by attribute": Queue("q", "quorum", delivery_limit=-1),
    "by argument": Queue("q", arguments={"x-queue-type": "quorum", "x-delivery-limit": -1}),
}


def declared_with(rabbit: PrivateRabbit) -> str:
    """Return the arguments of such a queue."""
    return "none" if rabbit.version < (4,) else "-1"


@pytest.mark.parametrize("how", list(UNLIMITED))
async def test_fr2_no_limit_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, how: str
) -> None:
    """A message that fails twice is handled a third time, also on 3.10, where -1 would drop it."""
    recorder = Recorder()
    calls: list[bytes] = []

    class Shaky(AMQPConsumer):
        queues = [UNLIMITED[how]]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None:
            calls.append(body)
            if len(calls) < 3:
                raise ValueError("not yet")

    for _ in range(2):
        # The second start compares the queue that the first one has declared.
        async with running(url, Shaky, recorder=recorder):
            await client.send("q", b"a")
            await eventually(lambda: recorder.actions[-1:] == ["ack"])
            recorder.settled.clear()
            calls[:] = [b"x"] * 3

    assert limit_of(rabbit, vhost, "q") == declared_with(rabbit)


async def test_fr2_also_for_queues_that_the_publisher_declares(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """The connection of the publisher considers the version as well."""
    async with publishing(url) as publisher:
        for _ in range(2):
            await publisher.declare(Queue("q", "quorum", delivery_limit=-1), "default", None)

    assert limit_of(rabbit, vhost, "q") == declared_with(rabbit)


async def test_fr2_an_existing_queue_with_it_is_refused_if_it_loses_messages(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """On 3.10 such a queue drops failed messages: an error says so. From 4.0 on it is valid."""
    await client.declare("q", x_queue_type="quorum", x_delivery_limit=-1)
    consumer, bodies = collector(UNLIMITED["by attribute"])
    old = rabbit.version < (4,)
    async with running(url, consumer, ready=not old) as runner:
        if old:
            reason = await eventually(lambda: runner.health[0].reason)
            assert "differs in 'x-delivery-limit'" in reason
            assert (
                "RabbitMQ before 4.0 treats -1 as 0, and drops a message when it is requeued"
                in reason
            )
        else:
            await client.send("q", b"a")
            await eventually(lambda: bodies == [b"a"])
