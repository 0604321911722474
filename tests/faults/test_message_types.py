"""Dispatch by type on RabbitMQ, for messages of another client."""

from typing import Any

import pytest
from pamqp.commands import Basic
from pydantic import BaseModel

from tests.application import Recorder, running
from tests.client import Client, RawProperties
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from tests.wire_format import TYPE, properties, short
from workerkit import Action, AMQPConsumer, AMQPMessage, Binding, Exchange, Queue, RetryPolicy


class Placed(BaseModel):
    id: int


class Cancelled(BaseModel):
    id: int


Event = Placed | Cancelled
TYPES = {"order.placed": Placed, "order.cancelled": Cancelled}


def consumer(found: list[Any], **attributes: Any) -> type[AMQPConsumer]:
    """Return a class that records what it is called with, and fails at the first attempt."""

    async def handle(self: Any, event: AMQPMessage[Event]) -> None:
        found.append((event.body, event.attempt))
        if event.attempt == 1:
            raise ValueError("once more")

    options = {"queues": ["events"], "types": TYPES, "retry": RetryPolicy((0.05,)), **attributes}
    return type("Events", (AMQPConsumer,), {"handle": handle, **options})


@pytest.mark.parametrize(
    ("type_from", "known", "unknown"),
    [
        ("type", {"message_type": "order.placed"}, {"message_type": "order.moved"}),
        ("header:kind", {"headers": {"kind": "order.placed"}}, {"headers": {"kind": 3}}),
        (
            "cloudevents",
            {"headers": {"cloudEvents:type": "order.placed"}},
            {"headers": {"cloudEvents:type": "order.moved"}},
        ),
    ],
)
async def test_a_retry_has_the_type(
    url: str, client: Client, type_from: str, known: dict[str, Any], unknown: dict[str, Any]
) -> None:
    """It is read as the first attempt was; an unknown type is dead-lettered with its properties."""
    found: list[Any] = []
    recorder = Recorder()
    class_ = consumer(found, type_from=type_from)
    async with running(url, class_, recorder=recorder):
        await client.send("events", b'{"id": 1}', properties=Basic.Properties(**known))
        await client.send("events", b'{"id": 2}', properties=Basic.Properties(**unknown))
        letter = await client.take("events.dlq")
        await eventually(lambda: len(recorder.settled) == 3, what="three settled messages")

    assert found == [(Placed(id=1), 1), (Placed(id=1), 2)]
    assert sorted(recorder.actions) == ["ack", "dead_letter", "retry"]
    assert letter.evidence["error"] == "UnknownMessageType"
    assert (letter.properties.message_type or None) == unknown.get("message_type")
    assert letter.original_headers == unknown.get("headers", {})


async def test_the_first_routing_key_counts(url: str, client: Client) -> None:
    """A retry is published with another one."""
    found: list[Any] = []
    recorder = Recorder()
    queue = Queue("events", bindings=[Binding(Exchange("shop", type="topic"), "#")])
    types = {"order.placed.*": Placed, "order.cancelled": Cancelled}
    class_ = consumer(found, queues=[queue], types=types, type_from="routing_key")
    async with running(url, class_, recorder=recorder):
        sent = Basic.Properties()
        await client.publish("shop", "order.placed.eu", b'{"id": 1}', sent)
        await client.publish("shop", "order.cancelled", b'{"id": 2}', sent)
        await eventually(lambda: len(recorder.settled) == 4, what="four settled messages")

    placed, cancelled = Placed(id=1), Cancelled(id=2)
    assert sorted(found, key=lambda each: (each[0].id, each[1])) == [
        *((placed, attempt) for attempt in (1, 2)),
        *((cancelled, attempt) for attempt in (1, 2)),
    ]


@pytest.mark.parametrize(
    ("action", "left"),
    [(Action.ACK, 0), (Action.REJECT, 0), (Action.DEAD_LETTER, 0), (Action.REQUEUE, 1)],
)
async def test_each_action_for_hostile_types(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, action: Action, left: int
) -> None:
    """255 bytes that are no text, in any position: the action applies to it and to nothing else."""
    found: list[Any] = []
    recorder = Recorder()
    raw = RawProperties(properties(TYPE, short(b"\xff" + b"\xfe\n" * 127)))
    async with running(url, consumer(found, on_unknown=action, retry=None), recorder=recorder):
        await client.send("events", b'{"id": 1}', properties=raw)
        await eventually(lambda: len(recorder.settled) == 1, what="a settled message")
        record = recorder.settled[0]

    assert record.action is action
    text = str(record.outcome.error)
    assert text.startswith("property 'type' is unknown: '")
    assert text.isprintable()
    assert found == []
    await eventually(lambda: rabbit.queues(vhost)["events"].ready == left, what=f"{left} left")
