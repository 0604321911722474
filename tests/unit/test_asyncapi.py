"""The AsyncAPI document corresponds to the classes."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, Field

from tests.application import container_of, package_of
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    Binding,
    CloudEvent,
    Consumer,
    Destination,
    Exchange,
    HTTPView,
    PeriodicTask,
    Queue,
    RetryPolicy,
    Runner,
    SSEConsumer,
)
from workerkit.app.asyncapi import document, draft_7


class Order(BaseModel):
    """An order."""

    id: int
    note: str = Field("", max_length=10)


class Booked(BaseModel):
    id: int


@dataclass
class Point:
    x: int


class Frame(msgspec.Struct):
    id: int


def described(*classes: type[Consumer], **settings: Any) -> dict[str, Any]:
    """Return the document of an application."""
    container = container_of("amqp://user:secret@rabbit:5673/shop", **settings)
    return document(Runner(container, packages=[package_of(*classes)]).assemble())


def consumer(body: Any, *, returns: Any = None, **attributes: Any) -> type[AMQPConsumer]:
    """Return a consumer of `queue` that takes a type."""

    async def handle(self: AMQPConsumer, body: Any) -> Any: ...

    handle.__annotations__ = {"body": body, "return": returns}
    return type(
        "OneConsumer", (AMQPConsumer,), {"queues": ["queue"], "handle": handle} | attributes
    )


def messages_of(found: dict[str, Any], operation: str = "OneConsumer") -> list[dict[str, Any]]:
    """Return the messages of an operation."""
    names = [each["$ref"].rpartition("/")[2] for each in found["operations"][operation]["messages"]]
    return [found["components"]["messages"][name] for name in names]


def test_consumers_and_their_queues() -> None:
    """An operation refers to the queue, its server, its message, and what becomes of failures."""

    class Booking(AMQPConsumer):
        """Books orders.

        Once each.
        """

        queues = [Queue("orders", "quorum", ttl=60, bindings=[Binding("shop", "order.#")])]
        retry = RetryPolicy(delays=(0, 5))

        async def handle(self, order: Order) -> None: ...

    found = described(Booking)

    assert found["asyncapi"] == "3.0.0"
    assert found["servers"] == {
        "default": {
            "host": "rabbit:5673",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "pathname": "shop",
        }
    }
    assert found["channels"]["orders"] == {
        "address": "orders",
        "title": "orders",
        "servers": [{"$ref": "#/servers/default"}],
        "messages": {"Order": {"$ref": "#/components/messages/Order"}},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {
                    "name": "orders",
                    "durable": True,
                    "exclusive": False,
                    "autoDelete": False,
                    "vhost": "shop",
                },
                "bindingVersion": "0.3.0",
            }
        },
        "x-arguments": {"x-queue-type": "quorum", "x-message-ttl": 60_000},
        "x-bindings": [{"exchange": "shop", "routingKey": "order.#"}],
    }
    assert found["operations"]["Booking"] == {
        "action": "receive",
        "title": "Booking",
        "summary": "Books orders.",
        "description": "Once each.",
        "channel": {"$ref": "#/channels/orders"},
        "messages": [{"$ref": "#/channels/orders/messages/Order"}],
        "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
        "x-failures": {
            "onException": "retry",
            "onInvalid": "dead_letter",
            "retryDelays": [0.0, 5.0],
            "retryQueues": ["orders.retry.5s"],
            "deadLetterQueue": "orders.dlq",
        },
    }
    assert found["components"]["schemas"]["Order"]["properties"]["note"]["maxLength"] == 10


@pytest.mark.parametrize(
    ("body", "content_type", "payload"),
    [
        (Order, "application/json", {"$ref": "#/components/schemas/Order"}),
        (Point, "application/json", {"$ref": "#/components/schemas/Point"}),
        (Frame, "application/json", {"$ref": "#/components/schemas/Frame"}),
        (list[Order], "application/json", {"$ref": "#/components/schemas/Order"}),
        (AMQPMessage[Order], "application/json", {"$ref": "#/components/schemas/Order"}),
        (bytes, "application/octet-stream", {"type": "string", "format": "binary"}),
        (str, "text/plain", {"type": "string"}),
        (AMQPMessage, "application/json", {}),
        (Timestamp, "application/x-protobuf", {"x-protobuf": "google.protobuf.Timestamp"}),
    ],
)
def test_types_of_bodies(body: Any, content_type: str, payload: dict[str, Any]) -> None:
    """Each type of a body has its content type and its schema."""
    [message] = messages_of(described(consumer(body)))

    assert (message["contentType"], message["payload"]) == (content_type, payload)


def test_unions_and_types_by_name() -> None:
    """A union has a message for each type; types by name show where a message has the name."""
    types = {"a": Order, "b": Point}

    union = messages_of(described(consumer(Order | Point)))
    by_type = messages_of(described(consumer(Order | Point, types=types)))
    by_header = messages_of(described(consumer(Order | Point, types=types, type_from="header:k")))
    by_key = messages_of(described(consumer(Order | Point, types=types, type_from="routing_key")))

    assert [each["name"] for each in union] == ["Order", "Point"]
    assert [each["name"] for each in by_type] == ["a", "b"]
    assert [each["bindings"]["amqp"]["messageType"] for each in by_type] == ["a", "b"]
    assert [each["headers"]["properties"]["k"] for each in by_header] == [
        {"const": "a"},
        {"const": "b"},
    ]
    assert by_key[0]["x-type"] == {"from": "routing_key", "name": "a"}


def test_cloud_events() -> None:
    """A CloudEvent has a message for each of its modes."""
    binary, structured = messages_of(described(consumer(CloudEvent[Order])))

    assert binary["payload"] == {"$ref": "#/components/schemas/Order"}
    assert "cloudEvents_type" in binary["headers"]["required"]
    assert structured["contentType"] == "application/cloudevents+json"


def test_batches_and_actions() -> None:
    """The size of batches is shown, and no dead-letter queue where nothing goes there."""
    attributes: dict[str, Any] = {"batch_size": 7, "on_invalid": Action.REJECT}
    operation = described(consumer(list[Order], **attributes))["operations"]["OneConsumer"]

    assert operation["x-batch-size"] == 7
    assert operation["x-failures"] == {"onException": "requeue", "onInvalid": "reject"}


def test_replies() -> None:
    """A consumer that is annotated to return a value replies, with it or with a problem."""
    replying = described(consumer(Order, returns=Booked))
    silent = [
        described(consumer(Order, returns=Any)),
        described(consumer(Order, returns=Booked, replies="off")),
        described(consumer(Order)),
    ]

    reply = replying["operations"]["OneConsumer"]["reply"]
    channel = replying["channels"][reply["channel"]["$ref"].rpartition("/")[2]]
    assert reply["address"] == {"location": "$message.header#/reply_to"}
    assert channel["address"] is None
    assert list(channel["messages"]) == ["Booked", "Problem"]
    assert "correlationId" in messages_of(replying)[0]
    assert all("reply" not in each["operations"]["OneConsumer"] for each in silent)


def test_published_messages() -> None:
    """Classes of all kinds declare what they publish; a base class may do that for them."""
    to = Destination("order.{region}.booked", Exchange("shop", "topic"))

    class Base(PeriodicTask, abstract=True):
        every = 3600
        publishes = {"queue": Order, to: Order | Booked}

    class Report(Base):
        async def handle(self) -> None: ...

    class View(HTTPView):
        routes = ["/"]
        publishes = {Destination("", "fan"): bytes}

        async def get(self) -> None: ...

    found = described(Report, View, consumer(Order, queues=[Queue("queue", durable=False)]))
    sends = {name: each for name, each in found["operations"].items() if each["action"] == "send"}
    topic = found["channels"]["shop.order.-region-.booked"]

    assert {name: each["title"] for name, each in sends.items()} == {
        "Report.sends.queue": "Report",
        "Report.sends.order.-region-.booked": "Report",
        "View.sends.fan": "View",
    }
    # The queue is the one that the consumer declares.
    assert sends["Report.sends.queue"]["channel"] == {"$ref": "#/channels/queue"}
    assert found["channels"]["queue"]["bindings"]["amqp"]["queue"]["durable"] is False
    assert topic["address"] == "order.{region}.booked"
    assert list(topic["parameters"]) == ["region"]
    assert list(topic["messages"]) == ["Order", "Booked"]
    assert topic["bindings"]["amqp"]["exchange"] == {
        "name": "shop",
        "vhost": "shop",
        "durable": True,
        "autoDelete": False,
        "type": "topic",
    }


def test_event_streams() -> None:
    """A stream has a message for each of its events, and an address without a query."""

    class Deployments(SSEConsumer):
        connection = "marathon"
        routes = ["/v2/events?token=secret"]
        events = {"info": Order, "text": str}

        async def handle(self, event: Order | str) -> None: ...

    found = described(Deployments, sse={"marathon": {"url": "https://u:secret@m.example/api"}})

    assert found["servers"] == {"marathon": {"host": "m.example:443", "protocol": "https"}}
    assert [each["address"] for each in found["channels"].values()] == ["/api/v2/events"]
    assert found["operations"]["Deployments"]["bindings"]["http"]["method"] == "GET"
    assert [
        (each["x-event"], each["contentType"]) for each in messages_of(found, "Deployments")
    ] == [
        ("info", "application/json"),
        ("text", "text/plain"),
    ]
    assert "secret" not in str(found)


def test_names_with_a_meaning_in_addresses() -> None:
    """A queue whose name is no valid address has its name in the binding only."""
    found = described(consumer(Order, queues=["a{b}", "a#b", "a b", "ä"]))

    assert [each["address"] for each in found["channels"].values()] == [None, None, "a b", "ä"]
    assert list(found["channels"]) == ["a-b", "a-b-2", "a-b-3", "unnamed"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"prefixItems": [{"type": "integer"}], "items": False},
            {"items": [{"type": "integer"}], "additionalItems": False},
        ),
        ({"$ref": "#/a", "default": 1}, {"allOf": [{"$ref": "#/a"}], "default": 1}),
        ({"$ref": "#/a"}, {"$ref": "#/a"}),
        (
            {"oneOf": [], "discriminator": {"propertyName": "kind", "mapping": {}}},
            {"oneOf": [], "discriminator": "kind"},
        ),
        # Names of properties, and values, are no keywords.
        (
            {"properties": {"discriminator": {"type": "string"}}},
            {"properties": {"discriminator": {"type": "string"}}},
        ),
        (
            {"default": {"$ref": "x", "prefixItems": []}},
            {"default": {"$ref": "x", "prefixItems": []}},
        ),
    ],
)
def test_draft_7(schema: Any, expected: Any) -> None:
    """Keywords of JSON Schema 2020-12 are written as those of draft 7."""
    assert draft_7(schema) == expected
