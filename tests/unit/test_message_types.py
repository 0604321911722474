"""Dispatch by type: `types`, `type_from` and `on_unknown` of an `AMQPConsumer`."""

import gzip
import json
import logging
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel
from typer.testing import CliRunner

from tests.application import package_of
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    DeclarationError,
    InvalidBody,
    RetryPolicy,
    Runner,
    UnknownMessageType,
    WorkerContainer,
)
from workerkit.amqp.acks import Acks
from workerkit.amqp.message_types import is_pattern, matches, type_reader
from workerkit.amqp.properties import Properties, encode
from workerkit.amqp.table import encode as encode_table
from workerkit.cli.broker import embedded_broker
from workerkit.cli.commands import app
from workerkit.reading import Read
from workerkit.signature import Signature
from workerkit.testing import fake_message, running


class Placed(BaseModel):
    id: int


class Cancelled(BaseModel):
    id: int
    reason: str = ""


class Frame(msgspec.Struct):
    id: int


class Note(msgspec.Struct):
    id: int


class Row(TypedDict):
    id: int


class Opaque:
    """Nothing that JSON can become."""


TYPES = {"order.placed": Placed, "order.cancelled": Cancelled}


def consumer(takes: Any = Placed | Cancelled, **attributes: Any) -> type[AMQPConsumer]:
    """Return a class whose `handle` takes this type."""

    async def handle(self: Any, event: Any) -> None: ...

    handle.__annotations__["event"] = takes
    given = {"queues": ["orders"], "types": TYPES, "handle": handle, **attributes}
    return type("Orders", (AMQPConsumer,), given)


def declared(class_: type[AMQPConsumer]) -> Any:
    """Return what is known about a class before it starts."""
    assembly = Runner(WorkerContainer(), packages=[package_of(class_)]).assemble()
    return assembly.declared[0]


def faults(class_: type[AMQPConsumer]) -> list[str]:
    """Return the faults of a class."""
    with pytest.raises(DeclarationError) as raised:
        declared(class_)
    return list(raised.value.faults)


def warnings(class_: type[AMQPConsumer]) -> list[str]:
    """Return the warnings of `workerkit check`, without the place."""
    found = Runner(WorkerContainer(), packages=[package_of(class_)]).assemble().warnings
    return [each.split(": ", 1)[1] for each in found]


def reader(types: Mapping[str, Any] = TYPES, takes: Any = Any, **options: Any) -> Read:
    """Return the reader of a class with these types."""
    found = declared(consumer(takes, types=types, **options))
    return type_reader(found.options, found.signature.reader)


def refused(read: Read, message: AMQPMessage[Any]) -> str:
    """Return the text of the error for a message of an unknown type."""
    with pytest.raises(UnknownMessageType) as raised:
        read(message)
    return str(raised.value)


# Declarations


@pytest.mark.parametrize(
    ("takes", "types"),
    [
        (Placed | Cancelled, TYPES),
        (AMQPMessage[Placed | Cancelled], TYPES),
        (list[Placed | Cancelled], TYPES),
        (list[AMQPMessage[Placed | Cancelled]], TYPES),
        (Annotated[Placed | Cancelled, "either"], TYPES),
        (BaseModel, TYPES),
        (AMQPMessage, TYPES),
        (Any, {"a": int, "b": list[Placed]}),
        (Frame | Note | Placed, {"frame": Frame, "note": Note, "placed": Placed}),
        (dict[str, int] | bytes | str, {"a": dict[str, int], "b": bytes, "c": str}),
        (Row | list[int], {"row": Row, "list": list[int]}),
        (Placed | Cancelled | int, {"a": Placed | Cancelled, "b": int}),
        (list[dict[str, Any]], {"a": dict[str, Any]}),
    ],
)
def test_what_handle_may_take(takes: Any, types: Mapping[str, Any]) -> None:
    """A union of the types in any form; also one that cannot be decoded as a whole."""
    found = consumer(takes, types=types)

    assert declared(found).options.types == types
    assert warnings(found) == []


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        (
            {"takes": Placed},
            (
                "types['order.cancelled'] is Cancelled, which handle does not take: add it to the"
                " annotation"
            ),
        ),
        (
            {"takes": AMQPMessage[Row], "types": {"a": Placed}},
            "types['a'] is Placed, which handle does not take: add it to the annotation",
        ),
        (
            {"takes": list[int], "types": {"a": list[int]}},
            "types['a'] is list[int], which handle does not take: add it to the annotation",
        ),
        (
            {"types": {"a": "Placed"}},
            "types['a'] is 'Placed': write the type itself, not its name",
        ),
        (
            {"types": {}},
            "option 'types' is {}: no message would be handled: write types by name",
        ),
        (
            {"types": ["order.placed"]},
            (
                "option 'types' is ['order.placed']: write a dict of types by name, such as"
                " {'order.placed': OrderPlaced}"
            ),
        ),
        ({"types": {3: int}}, "option 'types' is {3: <class 'int'>}: a name is a str, unlike 3"),
        (
            {"type_from": "kind"},
            (
                "option 'type_from' is 'kind': should be 'type', 'routing_key', 'cloudevents',"
                " 'header:NAME' or 'body:FIELD'"
            ),
        ),
        (
            {"type_from": "header:"},
            (
                "option 'type_from' is 'header:': should be 'type', 'routing_key', 'cloudevents',"
                " 'header:NAME' or 'body:FIELD'"
            ),
        ),
        (
            {"type_from": 3},
            (
                "option 'type_from' is 3: should be 'type', 'routing_key', 'cloudevents',"
                " 'header:NAME' or 'body:FIELD'"
            ),
        ),
        (
            {"on_unknown": "drop"},
            "option 'on_unknown' is 'drop': should be 'ack', 'requeue', 'reject' or 'dead_letter'",
        ),
        (
            {"on_unknown": Action.RETRY},
            f"option 'on_unknown' is {Action.RETRY!r}: set `retry` to a RetryPolicy instead",
        ),
        (
            {"takes": Placed, "types": None, "type_from": "routing_key"},
            "option 'type_from' has no effect: the class has no types",
        ),
        (
            {"takes": Placed, "types": None, "on_unknown": Action.ACK},
            "option 'on_unknown' has no effect: the class has no types",
        ),
        (
            {"types": None, "event_types": TYPES},
            "there is no option 'event_types'; did you mean 'types'?",
        ),
        (
            {"types": None, "events": TYPES},
            "there is no option 'events'; did you mean 'types'?",
        ),
    ],
)
def test_faults_of_a_class(attributes: dict[str, Any], fault: str) -> None:
    """Each is one sentence with the class, before any socket opens."""
    class_ = consumer(**attributes)

    assert faults(class_) == [f"{class_.__module__}.Orders: {fault}"]


def test_a_type_that_no_codec_can_read() -> None:
    """The fault names it."""
    (fault,) = faults(consumer(Any, types={"a": Opaque}))

    assert "Orders: types['a'] cannot be decoded: " in fault
    assert "Opaque" in fault


def test_a_parameter_without_an_annotation() -> None:
    """It is a fault with or without types."""

    async def handle(self, event): ...  # type: ignore[no-untyped-def]

    (fault,) = faults(consumer(handle=handle))

    assert fault.endswith(": parameter 'event' needs a type annotation")
    assert "test_message_types.py:" in fault


@pytest.mark.parametrize(
    ("attributes", "warning"),
    [
        (
            {"takes": Placed | Cancelled | Row},
            "handle takes Row, which is not in types: nothing is read as it",
        ),
        (
            {"types": {"order.*": Placed | Cancelled}},
            "types['order.*'] is a pattern only with type_from = 'routing_key'",
        ),
    ],
)
def test_warnings_of_a_class(attributes: dict[str, Any], warning: str) -> None:
    """What is allowed, but probably not intended."""
    assert warnings(consumer(**attributes)) == [warning]


def test_the_commands() -> None:
    """`check` prints warnings, `list` has the types, and `settings` has what operators can set."""
    types = {"a": int, "b": dict[str, list[int]]}
    class_ = consumer(int | dict[str, list[int]] | str, types=types, type_from="header:kind")
    package = package_of(class_)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, package])

    checked, listed, settings = run("check"), run("list", "--json"), run("settings")

    assert checked.stdout == f"{package}: 1 consumer, no problems\n"
    text = f"{package}.Orders: handle takes str, which is not in types: nothing is read as it"
    assert checked.stderr == f"warning: {text}\n"
    options = json.loads(listed.stdout)[0]["options"]
    assert options["types"] == {"a": "int", "b": "dict[str, list[int]]"}
    found = re.findall(r"CONSUMERS__ORDERS__(\w*TYPE\w*|\w*UNKNOWN\w*)=(.*)", settings.stdout)
    assert found == [
        ("TYPE_FROM", "header:kind  (str, class)"),
        ("ON_UNKNOWN", "  (ack | requeue | reject | dead_letter | none, default)"),
    ]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets `type_from` and `on_unknown`, but not `types`."""
    variable = "WORKERKIT_CONSUMERS__ORDERS__"
    monkeypatch.setenv(f"{variable}TYPE_FROM", "header:kind")
    monkeypatch.setenv(f"{variable}ON_UNKNOWN", "reject")

    options = declared(consumer()).options
    assert (options.type_from, options.on_unknown) == ("header:kind", Action.REJECT)
    monkeypatch.setenv(f"{variable}ON_UNKNOWN", "drop")
    monkeypatch.setenv(f"{variable}TYPES", "{}")

    with pytest.raises(Exception, match="ON_UNKNOWN") as raised:
        declared(consumer())
    assert len(str(raised.value).splitlines()) == 2
    assert f"{variable}TYPES" in str(raised.value)


# Where the type is


@pytest.mark.parametrize(
    ("type_from", "given"),
    [
        ("type", {"type": "order.placed"}),
        ("routing_key", {"routing_key": "order.placed"}),
        ("header:__TypeId__", {"headers": {"__TypeId__": "order.placed"}}),
        ("cloudevents", {"headers": {"cloudEvents:type": "order.placed"}}),
        ("cloudevents", {"headers": {"cloudEvents_type": "order.placed"}}),
        ("cloudevents", {"headers": {"ce-type": "order.placed"}}),
        ("cloudevents", {"headers": {"cloudEvents_type": None, "ce-type": "order.placed"}}),
    ],
)
def test_the_property_selects_the_type(type_from: str, given: dict[str, Any]) -> None:
    """The body is read as the type of that name."""
    read = reader(type_from=type_from)

    assert read(fake_message({"id": 1}, **given)) == Placed(id=1)


@pytest.mark.parametrize(
    ("type_from", "body", "content_type"),
    [
        ("body:kind", {"kind": "order.placed", "id": 1}, None),
        ("body:kind", {"kind": ["IOrder", "order.placed"], "id": 1}, None),
        ("cloudevents", {"type": "order.placed", "id": 1}, "application/cloudevents+json"),
        ("cloudevents", {"type": "order.placed", "id": 1}, "application/CloudEvents; charset=utf8"),
        ("cloudevents", {"type": "order.placed", "id": 1}, " application/cloudevents+json"),
    ],
)
def test_the_body_selects_the_type(type_from: str, body: Any, content_type: str | None) -> None:
    """A field of a JSON object has the name, or a list of names."""
    read = reader(type_from=type_from)

    assert read(fake_message(body, content_type=content_type)) == Placed(id=1)


def test_a_compressed_body_selects_the_type() -> None:
    """It is decompressed first."""
    raw = gzip.compress(b'\xef\xbb\xbf{"kind": "order.placed", "id": 1}')

    found = reader(type_from="body:kind")(fake_message(raw, content_encoding="gzip"))

    assert found == Placed(id=1)


def test_the_whole_message() -> None:
    """`handle` gets the message with the body in it."""
    message = fake_message({"id": 1}, type="order.cancelled")

    assert reader(takes=AMQPMessage[Placed | Cancelled])(message) is message
    assert message.body == Cancelled(id=1)


def test_a_body_that_does_not_fit_its_type() -> None:
    """It is invalid, and its type is not unknown."""
    with pytest.raises(InvalidBody, match=r"^id: Input should be a valid integer") as raised:
        reader(on_unknown=Action.ACK)(fake_message({"id": "x"}, type="order.placed"))

    assert not isinstance(raised.value, UnknownMessageType)


def test_a_body_without_fields() -> None:
    """A body that should have the type, but is no JSON object, is invalid."""
    with pytest.raises(InvalidBody, match="should be an object"):
        reader(type_from="body:kind")(fake_message([1]))


@pytest.mark.parametrize(
    ("type_from", "given", "text"),
    [
        ("type", {}, "property 'type' is missing"),
        ("type", {"type": ""}, "property 'type' is unknown: ''"),
        ("type", {"type": "a\nb"}, r"property 'type' is unknown: 'a\\nb'"),
        ("header:task", {}, "header 'task' is missing"),
        ("header:task", {"headers": {"task": 3}}, "header 'task' is no text but of type int"),
        ("header:task", {"headers": {"task": ["x"]}}, "header 'task' is no text but of type list"),
        ("header:task", {"headers": {"task": "x"}}, "header 'task' is unknown: 'x'"),
        ("routing_key", {"routing_key": ""}, "the routing key is unknown: ''"),
        ("cloudevents", {}, "the CloudEvents attribute 'type' is missing"),
        ("body:kind", {"body": {}}, "field 'kind' of the body is missing"),
        ("body:kind", {"body": {"kind": ["b", "c"]}}, "field 'kind' of the body is unknown: 'b'"),
        (
            "body:kind",
            {"body": {"kind": []}},
            "field 'kind' of the body is no text but of type",
        ),
        (
            "body:kind",
            {"body": {"kind": {}}},
            "field 'kind' of the body is no text but of type",
        ),
    ],
)
def test_an_unknown_type(type_from: str, given: dict[str, Any], text: str) -> None:
    """The error has the type that was found, and those that are known."""
    body = given.pop("body", {"id": 1})

    found = refused(reader(type_from=type_from), fake_message(body, **given))

    assert found.startswith(text)
    assert found.endswith("; Orders knows 'order.placed', 'order.cancelled'")


def test_a_long_type() -> None:
    """It is shortened; so is a long list of known types."""
    types = {f"type.{number}": Placed for number in range(1000)}

    found = refused(
        reader(types, Placed, type_from="header:kind"),
        fake_message(headers={"kind": "x" * 100_000}),
    )

    assert len(found) < 500
    assert "99800 characters left out" in found
    assert found.endswith("'type.9' and 990 more")


def test_a_password_in_a_type() -> None:
    """It is not shown."""
    found = refused(reader(), fake_message(type="amqp://me:secret@host"))

    assert "secret" not in found


@pytest.mark.parametrize(
    ("pattern", "keys", "others"),
    [
        ("order.*", ["order.placed", "order."], ["order", "order.a.b", "orders.a"]),
        ("order.#", ["order", "order.a", "order.a.b"], ["", "orders"]),
        ("#", ["", "a", "a.b.c", "..."], []),
        ("*", ["a", "*"], ["", "a.b"]),
        ("#.placed", ["placed", "a.placed", "a.b.placed"], ["placed.a", "placedx"]),
        ("a.#.b.*", ["a.b.c", "a.x.y.b.c", "a.b.b.c"], ["a.b", "a.x.c"]),
        ("order.p*", [], ["order.placed"]),
    ],
)
def test_patterns(pattern: str, keys: list[str], others: list[str]) -> None:
    """They match what a topic exchange matches."""
    found = [key for key in [*keys, *others] if _matches(pattern, key)]

    assert found == keys


def _matches(pattern: str, key: str) -> bool:
    return matches(pattern.split("."), key.split(".") if key else [])


WORDS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)


@given(WORDS, st.lists(st.sampled_from(["a", "b", ""]), max_size=6))
def test_patterns_match_as_defined(pattern: list[str], words: list[str]) -> None:
    """Equal to the definition, which takes exponential time."""

    def defined(pattern: list[str], words: list[str]) -> bool:
        if not pattern:
            return not words
        first, *others = pattern
        if first == "#":
            return any(defined(others, words[at:]) for at in range(len(words) + 1))
        return bool(words) and first in ("*", words[0]) and defined(others, words[1:])

    assert matches(pattern, words) == defined(pattern, words)


def test_a_pattern_that_would_backtrack() -> None:
    """It takes time in proportion to the length of the key."""
    pattern = ["#", "a"] * 60 + ["b"]

    assert not matches(pattern, ["a"] * 127)


def test_the_order_of_patterns() -> None:
    """An exact name is first, then the patterns in their order."""
    types = {"#": int, "order.*": dict[str, int], "order.placed": Placed}
    read = reader(types, type_from="routing_key")

    assert read(fake_message({"id": 1}, routing_key="order.placed")) == Placed(id=1)
    assert read(fake_message(3, routing_key="order.moved")) == 3
    assert not is_pattern("order.p*")


# Hostile types


def _message(properties: bytes) -> AMQPMessage[Any]:
    acks = Acks(1, lambda data: True, lambda flush: None)
    raw = b'{"id": 1}'
    return AMQPMessage(raw, queue="q", tag=1, envelope=b"\0\0\0", properties=properties, acks=acks)


SOURCES = ["type", "routing_key", "header:kind", "cloudevents", "body:id", "body:kind"]
READERS = {each: reader(type_from=each) for each in SOURCES}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


def _outcome(read: Read, message: AMQPMessage[Any]) -> str:
    """Return the text of the error; whatever the sender wrote, it is an unknown type."""
    try:
        assert read(message) == Placed(id=1)
    except UnknownMessageType as error:
        return str(error)
    return ""


@given(st.sampled_from(SOURCES), st.binary(max_size=300))
@example("type", b"\x00\x20\xff" + b"\xff" * 255)
@example("type", b"\x00\x20\xff" + b"\n" * 255)
def test_any_properties(source: str, properties: bytes) -> None:
    """No bytes raise anything else, and the text is one line of limited length."""
    text = _outcome(READERS[source], _message(properties[:1] + b"\x20" + properties[2:]))

    assert text.isprintable()
    assert len(text) < 2500


@given(st.sampled_from(SOURCES), VALUES)
def test_any_header(source: str, value: Any) -> None:
    """Headers of every type and any text."""
    table = encode_table({"kind": value, "cloudEvents:type": value})

    text = _outcome(READERS[source], _message(encode(Properties(table=table))))

    assert text.isprintable()
    assert len(text) < 2500


# On a broker


class Orders(AMQPConsumer, abstract=True):
    """Remembers what it was called with."""

    types = TYPES

    def __init__(self) -> None:
        self.found: list[Any] = FOUND


FOUND: list[Any] = []


class Single(Orders):
    queues = ["single"]
    on_unknown = Action.REJECT
    retry = RetryPolicy(delays=(0.01,))

    async def handle(self, event: Placed | Cancelled, message: AMQPMessage) -> None:
        self.found.append((event, message.attempt, message.type))
        if isinstance(event, Cancelled) and message.attempt == 1:
            raise ValueError("once more")


class Keyed(Orders):
    queues = ["order.placed"]
    type_from = "routing_key"
    types = {"order.*": Placed}
    retry = RetryPolicy(delays=(0.01,))

    async def handle(self, event: AMQPMessage[Placed]) -> None:
        self.found.append((event.body, event.attempt, event.routing_key))
        if event.attempt == 1:
            raise ValueError("once more")


class Batches(Orders):
    queues = ["batches"]
    on_unknown = Action.ACK
    batch_interval = 3600.0

    async def handle(self, events: list[Placed | Cancelled]) -> None:
        self.found.append(events)


class Requeues(Orders):
    queues = ["requeues"]
    on_unknown = Action.REQUEUE

    async def handle(self, event: Placed | Cancelled) -> None: ...


class Moves(Orders):
    queues = ["moves"]
    on_invalid = Action.ACK
    on_unknown = Action.DEAD_LETTER

    async def handle(self, event: Placed | Cancelled) -> None: ...


class Defaults(Orders):
    queues = ["defaults"]
    on_invalid = Action.REJECT

    async def handle(self, event: Placed | Cancelled) -> None: ...


@pytest.fixture(autouse=True)
def _empty() -> None:
    FOUND.clear()


def on_a_broker(*classes: type[AMQPConsumer]) -> Any:
    """Run these consumers on the embedded broker."""
    return running(WorkerContainer(), packages=[__name__], only=classes)


async def test_events_of_several_types() -> None:
    """Each is read as its type; a retry keeps the type."""
    async with on_a_broker(Single) as single:
        await single.publish({"id": 1}, "single", type="order.placed")
        await single.publish({"id": 2, "reason": "late"}, "single", type="order.cancelled")
        await single.publish({"id": 3}, "single", type="order.moved")
        await single.idle()

        cancelled = Cancelled(id=2, reason="late")
        assert [each for each in FOUND if each[0] != cancelled] == [
            (Placed(id=1), 1, "order.placed")
        ]
        assert [each for each in FOUND if each[0] == cancelled] == [
            (cancelled, 1, "order.cancelled"),
            (cancelled, 2, "order.cancelled"),
        ]
        actions = [each.action for each in single.settled("Single")]
        assert sorted(actions) == ["ack", "ack", "reject", "retry"]


async def test_the_routing_key_of_a_retry() -> None:
    """A retry is published with another one; the first one counts."""
    async with on_a_broker(Keyed) as keyed:
        await keyed.publish({"id": 1}, "order.placed")
        await keyed.idle()

    assert [(Placed(id=1), 1, "order.placed"), (Placed(id=1), 2, "order.placed")] == FOUND


async def test_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """It has the events with a known type; the others are skipped, which is logged at DEBUG."""
    caplog.set_level(logging.DEBUG, "workerkit.observe")
    async with on_a_broker(Batches) as batches:
        for type_ in ("order.placed", "order.moved", "order.cancelled"):
            await batches.publish({"id": 1}, "batches", type=type_)
        await batches.idle()

        assert [[Placed(id=1), Cancelled(id=1)]] == FOUND
        assert [each.action for each in batches.settled("Batches")] == ["ack"] * 3
    (skipped,) = [each for each in caplog.records if each.message.startswith("skipped")]
    assert skipped.message == "skipped: its type is unknown"
    assert skipped.levelno == logging.DEBUG
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


async def test_a_requeued_message(caplog: pytest.LogCaptureFixture) -> None:
    """It stays in the queue, for another process that knows its type."""
    async with on_a_broker(Requeues) as requeues:
        await requeues.publish({"id": 1}, "requeues")
        with pytest.raises(AssertionError, match="requeued"):
            await requeues.idle(max_requeues=2)

        record = requeues.settled("Requeues")[0]
        assert record.action == "requeue"
        assert record.reason.startswith("property 'type' is missing")
    assert {each.levelname for each in caplog.records if each.message == "not handled"} == {
        "WARNING"
    }


async def test_a_dead_letter(caplog: pytest.LogCaptureFixture) -> None:
    """Its evidence has the types; one ERROR is logged, and a dead letter keeps its type."""
    async with on_a_broker(Moves) as moves:
        await moves.publish({"id": 1}, "moves", type="order.moved")
        await moves.publish({"id": "x"}, "moves", type="order.placed")
        await moves.idle()

        (letter,) = moves.dead_letters("moves")
        assert letter.properties["type"] == "order.moved"
        assert letter.headers["x-workerkit-error"] == "UnknownMessageType"
        assert letter.headers["x-workerkit-reason"] == (
            "property 'type' is unknown: 'order.moved';"
            " Moves knows 'order.placed', 'order.cancelled'"
        )
        assert sorted(each.action for each in moves.settled("Moves")) == ["ack", "dead_letter"]
    levels = {each.levelname for each in caplog.records if each.message == "not handled"}
    assert levels == {"ERROR"}


async def test_on_invalid_applies_by_default() -> None:
    """Without `on_unknown`."""
    async with on_a_broker(Defaults) as defaults:
        await defaults.publish({"id": 1}, "defaults", type="order.moved")
        await defaults.idle()

        assert [each.action for each in defaults.settled("Defaults")] == ["reject"]


def test_a_consumer_without_types_reads_as_before() -> None:
    """Its reader is the one of the signature: nothing is added to the hot path."""
    found = declared(consumer(Placed, types=None))
    read = found.signature.read

    class Plain(AMQPConsumer):
        queues = ["q"]

        async def handle(self, order: Placed) -> None: ...

    assert read.__code__ is Signature(Plain.handle, AMQPMessage, lambda *_: None).read.__code__  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_from", "labels"),
    [
        ("type", ["--type", "order.placed"]),
        ("header:kind", ["--header", "kind=order.placed"]),
        ("cloudevents", ["--header", "cloudEvents:type=order.placed"]),
        ("routing_key", []),
    ],
)
def test_the_printed_command_has_the_type(
    capsys: pytest.CaptureFixture[str], type_from: str, labels: list[str]
) -> None:
    """`workerkit run --embedded-broker` prints a command whose message is handled."""
    package = package_of(consumer(type_from=type_from))

    with embedded_broker(WorkerContainer(), package, []):
        printed = capsys.readouterr().out.splitlines()[-1]

    _, _, _, _, _, queue, body, *more = shlex.split(printed)
    assert (queue, json.loads(body), more) == ("orders", {"id": 1}, labels)
