"""Bodies in several formats, and CloudEvents, through a real broker."""

from typing import Any

from cloudevents.core.bindings import rabbitmq
from cloudevents.core.v1.event import CloudEvent as OfficialEvent
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from pamqp.commands import Basic
from pydantic import BaseModel

from tests.application import Recorder, running
from tests.client import Client
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, CloudEvent, RetryPolicy

MSGPACK = "application/msgpack"


class Order(BaseModel):
    id: int


async def test_every_format_through_the_broker(url: str, client: Client) -> None:
    """What is published in one format is received, also after a retry, which is a copy."""
    for queue in ("orders", "fields", "events"):
        await client.declare(queue)
    orders: list[tuple[int, str | None, Order]] = []
    fields: list[FieldDescriptorProto] = []
    events: list[tuple[str, dict[str, Any], Order]] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0.1,))

        async def handle(self, order: Order, message: AMQPMessage) -> None:
            orders.append((message.attempt, message.content_type, order))
            if message.attempt == 1:
                raise ConnectionError

    class Fields(AMQPConsumer):
        queues = ["fields"]

        async def handle(self, field: FieldDescriptorProto) -> None:
            fields.append(field)

    class Events(AMQPConsumer):
        queues = ["events"]
        concurrency = 1

        async def handle(self, event: CloudEvent[Order]) -> None:
            events.append((event.id, dict(event.extensions), event.data))

    more = {"a": 1, "b": True}
    event = CloudEvent(id="2", type="t", source="/s", data=Order(id=2), extensions=more)
    attributes = {"type": "t", "source": "/s", "id": "3", "datacontenttype": "application/json"}
    foreign = rabbitmq.to_binary_event(OfficialEvent(attributes, {"id": 3}))
    headers = Basic.Properties(content_type=foreign.content_type, headers={**foreign.headers})
    consumers, recorder = (Orders, Fields, Events), Recorder()
    async with running(url, *consumers, recorder=recorder), publishing(url) as publisher:
        await publisher.publish(Order(id=1), "orders", content_type=MSGPACK)
        await publisher.publish(FieldDescriptorProto(name="x"), "fields")
        await publisher.publish(event, "events")
        await publisher.publish(event, "events", content_type="application/cloudevents+json")
        await client.send("events", foreign.body, properties=headers)
        await client.send("orders", b"\xc1", properties=Basic.Properties(content_type=MSGPACK))
        await eventually(lambda: len(recorder.settled) == 7)

    assert orders == [(1, MSGPACK, Order(id=1)), (2, MSGPACK, Order(id=1))]
    assert fields == [FieldDescriptorProto(name="x")]
    assert events == [("2", more, Order(id=2)), ("2", more, Order(id=2)), ("3", {}, Order(id=3))]
    assert sorted(recorder.actions) == ["ack"] * 5 + ["dead_letter", "retry"]
