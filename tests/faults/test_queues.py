"""Declarations of queues and exchanges in classes, and their result at the broker."""

import logging
from typing import Any

import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from tests.application import running
from tests.client import Client, connected
from tests.consumers import collector
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, Binding, Exchange, Queue

DROPS = "quorum queue without dead_letter_exchange: RabbitMQ 4 may drop messages"

QUEUES: dict[str, tuple[Queue, dict[str, Any], dict[str, Any]]] = {
    "ttl": (Queue("q", ttl=60.5), {"x_message_ttl": 60_500}, {"x_message_ttl": 60_501}),
    "expires": (Queue("q", expires=3600), {"x_expires": 3_600_000}, {"x_expires": 3600}),
    "max_length": (Queue("q", max_length=10), {"x_max_length": 10}, {"x_max_length": 11}),
    "max_bytes": (Queue("q", max_bytes=10), {"x_max_length_bytes": 10}, {}),
    "overflow": (
        Queue("q", max_length=1, overflow="reject-publish"),
        {"x_max_length": 1, "x_overflow": "reject-publish"},
        {"x_max_length": 1, "x_overflow": "drop-head"},
    ),
    "max_priority": (Queue("q", max_priority=5), {"x_max_priority": 5}, {"x_max_priority": 9}),
    "single_active_consumer": (
        Queue("q", single_active_consumer=True),
        {"x_single_active_consumer": True},
        {},
    ),
    "dead_letter_exchange": (
        Queue("q", dead_letter_exchange="", dead_letter_routing_key="dead"),
        {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"},
        {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "other"},
    ),
    "quorum": (
        Queue("q", type="quorum", delivery_limit=7, dead_letter_exchange=""),
        {"x_queue_type": "quorum", "x_delivery_limit": 7, "x_dead_letter_exchange": ""},
        {"x_queue_type": "quorum", "x_delivery_limit": 8, "x_dead_letter_exchange": ""},
    ),
    "arguments": (
        Queue("q", arguments={"x-queue-mode": "lazy"}),
        {"x_queue_mode": "lazy"},
        {"x_queue_mode": "default"},
    ),
}


@pytest.mark.parametrize("name", list(QUEUES))
async def test_a4_a_queue_is_declared_as_its_class_states(url: str, name: str) -> None:
    """An equal declaration of another client is accepted, a different one refused."""
    queue, same, other = QUEUES[name]
    consumer, _ = collector(queue)
    async with running(url, consumer):
        async with connected(url) as client:
            await client.declare("q", **same)
        with pytest.raises(ChannelPreconditionFailed, match=r"inequivalent arg 'x-"):
            async with connected(url) as client:
                await client.declare("q", **other)


@pytest.mark.parametrize(
    ("theirs", "ours", "argument", "says", "has"),
    [
        ({"x_max_length": 10}, Queue("q", max_length=5), "x-max-length", "5", "10"),
        ({}, Queue("q", ttl=2.5), "x-message-ttl", "2500", "current is none"),
        ({"x_max_length": 10}, Queue("q", ttl=1), "x-m", "", "'"),
        ({"x_max_length": 10}, Queue("q", max_priority=3), "x-m", "", "'"),
        ({}, Queue("q", durable=False, ttl=1), "durable", "False", "'true'"),
    ],
    ids=["another value", "not there", "another one", "priority", "durable"],
)
async def test_a4_the_text_names_the_argument_and_both_values(
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    theirs: dict[str, int],
    ours: Queue,
    argument: str,
    says: str,
    has: str,
) -> None:
    """The argument that differs, its value in the class, and its value at the broker."""
    await client.declare("q", **theirs)
    consumer, _ = collector(ours)
    async with running(url, consumer, ready=False) as runner:
        reason = await eventually(lambda: runner.health[0].reason)

    assert reason.startswith(f"queue 'q' exists, and differs in '{argument}")
    assert f"the class says {says}" in reason
    assert has in reason.partition("the broker: ")[2]


async def test_d4_a_quorum_queue_that_may_drop_messages_is_warned_about(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A WARNING for each one without a dead-letter exchange, and for no other queue."""
    consumer, _ = collector(
        Queue("bare", type="quorum"),
        Queue("limited", type="quorum", delivery_limit=7),
        Queue("by arguments", arguments={"x-queue-type": "quorum"}),
        Queue("safe", type="quorum", dead_letter_exchange="amq.direct"),
        Queue("safe too", type="quorum", arguments={"x-dead-letter-exchange": ""}),
        Queue("classic", type="classic"),
        "plain",
    )
    async with running(url, consumer):
        warnings = fields(caplog, DROPS)

    assert {each["queue"]: each["delivery_limit"] for each in warnings} == {
        "bare": None,
        "limited": 7,
        "by arguments": None,
    }
    assert len(warnings) == 3
    assert {each["levelno"] for each in warnings} == {logging.WARNING}
    assert {each["consumer"] for each in warnings} == {"Collector"}


async def test_a3_bindings_are_created_with_the_queue(url: str) -> None:
    """A declared queue receives the messages that its bindings select, and no others."""
    topics = Exchange("topics", type="topic", alternate="unrouted")
    unrouted = Exchange("unrouted", type="fanout")
    matching = Exchange("matching", type="headers")
    consumer, bodies = collector(
        Queue("bound", bindings=[Binding(topics, "order.*"), Binding("amq.fanout")]),
        Queue("left over", bindings=[Binding(unrouted)]),
        Queue("matched", bindings=[Binding(matching, arguments={"x-match": "all", "of": "tea"})]),
    )
    async with running(url, consumer), publishing(url) as publisher:
        await publisher.publish(b"placed", "order.placed", exchange="topics")
        await publisher.publish(b"other", "stock.low", exchange="topics")
        await publisher.publish(b"all", "", exchange="amq.fanout")
        await publisher.publish(b"tea", "", exchange=matching, headers={"of": "tea"})
        await eventually(lambda: sorted(bodies) == [b"all", b"other", b"placed", b"tea"])


async def test_a4_an_exchange_that_is_missing_is_named(url: str) -> None:
    """A binding that has only a name needs an existing exchange."""
    consumer, _ = collector(Queue("bound", bindings=[Binding("nowhere", "x")]))
    async with running(url, consumer, ready=False) as runner:
        reason = await eventually(lambda: runner.health[0].reason)

    assert "'nowhere'" in reason


async def test_a4_a_plain_name_is_consumed_with_any_arguments(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A class that declares only a name accepts any declaration of the queue."""
    await client.declare("orders", x_max_length=10)
    consumer, bodies = collector("orders", on_invalid=Action.REJECT)
    async with running(url, consumer):
        await client.send("orders", b"a")
        await eventually(lambda: bodies == [b"a"])

    assert errors(caplog) == []
    assert set(rabbit.queues(vhost)) == {"orders"}
