"""`workerkit asyncapi`: the parser of the AsyncAPI initiative finds no fault in its documents."""

import json
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.application import container_of, package_of
from tests.asyncapi_parser import faults_of
from tests.command import workerkit, write_package
from workerkit import AMQPConsumer, Destination, Queue, Runner, SSEConsumer
from workerkit.app.asyncapi import document
from workerkit.errors import StartError

EVERYTHING = '''
    from dataclasses import dataclass
    from datetime import datetime
    from typing import Annotated, Any, Literal

    import msgspec
    from pydantic import BaseModel, Field

    from workerkit import *

    class Line(BaseModel):
        item: Annotated[str, Field(min_length=1)]
        count: int = 1

    class Order(BaseModel):
        """An order of a customer."""

        id: int
        lines: list[Line] = []
        parent: "Order | None" = None
        pair: tuple[int, str] = (1, "a")

    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]

    class Owner(BaseModel):
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]
        discriminator: str = ""
        best: Line = Field(Line(item="a"), description="beside a reference")

    @dataclass
    class Point:
        x: int

    class Frame(msgspec.Struct):
        id: int

    class OrderPlaced(AMQPConsumer):
        """Books every order.

        It may take a while.
        """

        queues = ["orders", Queue("urgent", "quorum", bindings=[Binding("shop", "order.#")])]
        retry = RetryPolicy(delays=(0, 5, 60))
        publishes = {
            "booked": Order,
            Destination("order.{region}.booked", Exchange("shop", "topic")): Order | Point,
            Destination("", Exchange("odd", "x-delayed-message")): Any,
        }

        async def handle(self, order: Order) -> None: ...

    class Quote(AMQPConsumer):
        queues = ["quotes"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, point: Point) -> Frame | None: ...

    class Many(AMQPConsumer):
        queues = ["many"]

        async def handle(self, frames: list[Frame]) -> None: ...

    class ByHeader(AMQPConsumer):
        queues = ["by header"]
        types = {"owner": Owner, "point": Point}
        type_from = "header:kind"

        async def handle(self, body: Owner | Point) -> None: ...

    class ByType(ByHeader):
        queues = ["by type"]
        type_from = "type"

    class ByKey(ByHeader):
        queues = ["by key"]
        type_from = "routing_key"

    class Events(AMQPConsumer):
        queues = [Queue("events", per_process=True)]

        async def handle(self, event: CloudEvent[Order]) -> None: ...

    class Raw(AMQPConsumer):
        queues = ["raw"]

        async def handle(self, message: AMQPMessage[bytes]) -> None: ...

    class Text(AMQPConsumer):
        queues = ["text"]

        async def handle(self, text: str) -> None: ...

    class Deployments(SSEConsumer):
        url = "https://marathon.example/api?token=secret"
        routes = ["/v2/events", "/v2/{braces}?more=secret"]
        events = {"info": Order, "done": Point}

        async def handle(self, event: SSEEvent[Order | Point]) -> None: ...

    class Chat(SSEConsumer):
        connection = "chat"
        json = {"secret": "secret"}
        done = "[DONE]"

        async def handle(self, data: dict[str, Any]) -> None: ...

    class Views(HTTPView):
        routes = ["/orders"]
        publishes = {"orders": Order}

        async def post(self, order: Order) -> None: ...

    class Report(PeriodicTask):
        every = 3600
        publishes = {Destination("", "reports", connection="other", vhost="v/w"): str}

        async def handle(self) -> None: ...
'''


def test_every_kind_of_class(tmp_path: Path) -> None:
    """The document of all kinds is valid, and contains no credentials."""
    write_package(tmp_path, consumers=EVERYTHING)

    done = workerkit(
        "asyncapi",
        "app",
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL="amqps://user:secret@rabbit.example/shop",
        WORKERKIT_AMQP__OTHER__URL="amqp://secret:secret@h",
        WORKERKIT_AMQP__OTHER__HOSTS="one,two:5673",
        WORKERKIT_SSE__CHAT__URL="http://user:secret@chat.example:81/v1",
        WORKERKIT_SSE__CHAT__HEADERS__X_KEY="secret",
        WORKERKIT_HTTP__OPENAPI__TITLE="Shop",
    )
    found = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert faults_of(found) == []
    assert "secret" not in done.stdout
    assert found["info"] == {"title": "Shop", "version": "0"}
    assert {(each["protocol"], each["host"]) for each in found["servers"].values()} == {
        ("amqps", "rabbit.example:5671"),
        ("amqp", "one:5672"),
        ("amqp", "two:5673"),
        ("https", "marathon.example:443"),
        ("http", "chat.example:81"),
    }


def test_the_template() -> None:
    """Its document has what it receives and what it publishes."""
    done = workerkit("asyncapi", "shop", cwd=Path(__file__).parents[2] / "app_template")
    found = json.loads(done.stdout)

    assert faults_of(found) == []
    assert {name for name, each in found["operations"].items() if each["action"] == "send"} == {
        "OrderPlaced.sends.booked",
        "OrderView.sends.booked",
        "PlaceOrder.sends.orders",
    }


def test_faults_of_publishes(tmp_path: Path) -> None:
    """What cannot be published is a fault of `check`, with the class, its file and its line."""
    write_package(
        tmp_path,
        consumers="""
        from workerkit import AMQPConsumer, Destination, PeriodicTask

        class One(AMQPConsumer):
            queues = ["q"]
            publishes = {
                "": bytes,
                7: bytes,
                Destination("k", "x", connection="nowhere"): bytes,
                "q": AMQPConsumer,
            }

            async def handle(self, body: bytes) -> None: ...

        class Two(PeriodicTask):
            every = 1
            publishes = ["q"]

            async def handle(self) -> None: ...

        class Three(PeriodicTask):
            every = 1
            publishes = {"q": "Order"}

            async def handle(self) -> None: ...

        class Four(PeriodicTask):
            every = 1
            publish = {"q": bytes}

            async def handle(self) -> None: ...
        """,
    )

    done = workerkit("check", "app", cwd=tmp_path)
    faults = [line.partition("app.consumers.")[2] for line in done.stderr.splitlines()]

    assert done.returncode != 0
    for fault in (
        "One (consumers.py:4): publishes['']: '' cannot be the name of a queue",
        "One (consumers.py:4): publishes[7]: write the name of a queue, or a Destination",
        "One (consumers.py:4): publishes[exchange 'x' with routing key 'k']: the settings have",
        "One (consumers.py:4): publishes['q'] is AMQPConsumer, which is no type of a body",
        "Two (consumers.py:15): option 'publishes' is ['q']: write a dict of types by destination",
        "Three (consumers.py:21): option 'publishes' is {'q': 'Order'}: write the type itself",
        "Four (consumers.py:27): there is no option 'publish'; did you mean 'publishes'?",
    ):
        assert [each for each in faults if each.startswith(fault)], (fault, faults)


names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=30)


def _named(queues: list[str], keys: list[str], events: list[str]) -> Any:
    """Return the document of classes with these names; None if workerkit does not accept one."""

    class Consumer(AMQPConsumer):
        publishes = {Destination(each, "shop"): str for each in keys}

        async def handle(self, body: bytes) -> None: ...

    class Stream(SSEConsumer):
        url = "http://127.0.0.1"

        async def handle(self, body: str) -> None: ...

    try:
        Consumer.queues = [Queue(each) for each in queues]
        Stream.routes = ["/" + each.replace("/", "") for each in events]
        Stream.events = events
        Consumer.name = queues[0]
        assembly = Runner(
            container_of("amqp://h"), packages=[package_of(Consumer, Stream)]
        ).assemble()
    except (StartError, ValueError):
        return None
    return document(assembly)


@settings(max_examples=2)
@given(st.lists(names, min_size=20, max_size=20, unique=True))
def test_odd_names(odd: list[str]) -> None:
    """Queues, routing keys, events and routes may have any name."""
    more = ["{}", "a/b", "#", "order.#", "{x}.{y}", "?", "~1", "%2F", "💥", "a b", "A", "a", "$ref"]
    found = _named([*more, *odd], [*more, *odd], [*more, *odd])
    assume(found is not None)

    exact = [
        each["bindings"]["amqp"]["queue"]["name"]
        for each in found["channels"].values()
        if each.get("bindings", {}).get("amqp", {}).get("is") == "queue"
    ]

    assert faults_of(found) == []
    assert sorted(exact) == sorted([*more, *odd])
