"""CloudEvents 1.0: both modes, read and written, also by the official library."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.v1.event import CloudEvent as OfficialEvent
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.application import package_of
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    CloudEvent,
    DeclarationError,
    HTTPView,
    InvalidBody,
    Runner,
    SSEEvent,
    WorkerContainer,
)
from workerkit.amqp.outgoing import encode_message
from workerkit.amqp.properties import encode as encode_properties
from workerkit.codec import BUILT_IN, STRUCTURED, decoder, encode
from workerkit.reading import body_reader
from workerkit.testing import FakePublisher, fake_event, fake_message, running

MSGPACK = "application/msgpack"
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
REQUIRED = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed"}


class Order(BaseModel):
    id: int
    name: str = "tea"


class Frame(msgspec.Struct):
    id: int


class Opaque:
    """Nothing that JSON can become."""


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
EAST = timezone(timedelta(hours=5))


def message(raw: bytes, headers: dict[str, Any], content_type: str | None) -> AMQPMessage:
    """A message as another library sends it."""
    made = fake_message(raw, headers=headers, content_type=content_type or "a/b")
    if content_type is None:
        properties = made.properties
        properties.content_type = None
        made = fake_message(raw, headers=headers)
        made._raw_properties = encode_properties(properties)
    return made


def read(type_: Any, made: AMQPMessage) -> Any:
    """Read a message as a consumer of *type_* does."""
    return body_reader(type_, AMQPMessage, BUILT_IN)(made)


def sent(event: CloudEvent[Any], content_type: str | None = None, **more: Any) -> AMQPMessage:
    """Encode an event as a publisher does, and return what a consumer receives."""
    raw, properties = encode_message(event, content_type=content_type, **more)
    made = fake_message(raw)
    made._raw_properties = encode_properties(properties)
    return made


def sent_value(body: object, content_type: str) -> AMQPMessage:
    return message(encode_message(body, content_type=content_type)[0], {}, content_type)


def binary(more: dict[str, Any] | None = None, prefix: str = "cloudEvents:") -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in {**REQUIRED, **(more or {})}.items()}


def structured(more: dict[str, Any]) -> AMQPMessage:
    return message(json.dumps({**REQUIRED, **more}).encode(), {}, STRUCTURED)


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_", "ce-"])
def test_binary_mode(prefix: str) -> None:
    """Attributes are headers with any of the prefixes; the content type is that of the data."""
    more = {"subject": "7", "time": "2026-01-02T03:04:05.678Z", "dataschema": "s:1", "shard": 3}
    headers = {**binary(more, prefix), "other": 1, "x-cloudEvents:id": "no"}

    found = read(CloudEvent[Order], message(b'{"id": 7}', headers, "application/json"))

    assert found == CloudEvent(
        id="1",
        source="/shop",
        type="order.placed",
        subject="7",
        time=AT,
        datacontenttype="application/json",
        dataschema="s:1",
        extensions={"shard": 3},
        data=Order(id=7),
    )


def test_structured_mode() -> None:
    """Everything is in the body, which may be compressed and have a charset."""
    more = {"subject": "ü", "time": AT.isoformat(), "shard": True, "data": {"id": 7}, "x": None}
    raw = json.dumps({**REQUIRED, **more}, ensure_ascii=False)
    content_type = f"{STRUCTURED}; charset=latin-1"
    made = fake_message(raw, content_type=content_type, content_encoding="gzip")

    found = read(CloudEvent[Order], made)

    assert (found.subject, found.time, found.extensions) == ("ü", AT, {"shard": True})
    assert (found.data, found.datacontenttype) == (Order(id=7), None)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2026-01-02T03:04:05.678Z", AT),
        ("2026-01-02t03:04:05.678z", AT),
        ("2026-01-02T03:04:05.678000999Z", AT),
        ("2026-01-02T05:04:05.678+02:00", AT),
        (1767323045678, AT),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), AT.replace(microsecond=0)),
    ],
)
def test_forms_of_time(written: object, at: datetime) -> None:
    """RFC 3339, AMQP's own timestamp, and the milliseconds of the official library."""
    made = message(b"1", binary({"time": written}), None)

    assert read(CloudEvent[int], made).time == at


@pytest.mark.parametrize(
    ("change", "findings"),
    [
        ({"id": None}, ["id"]),
        ({"id": ""}, ["id"]),
        ({"id": 7}, ["id"]),
        ({"source": None, "type": None}, ["source", "type"]),
        ({"specversion": None}, ["specversion"]),
        ({"specversion": "0.3"}, ["specversion"]),
        ({"specversion": 1.0}, ["specversion"]),
        ({"subject": 7}, ["subject"]),
        ({"time": "secret"}, ["time"]),
        ({"time": "2026-01-02T03:04:05"}, ["time"]),
        ({"time": "2026-02-31T03:04:05Z"}, ["time"]),
        ({"time": 2**62}, ["time"]),
        ({"time": True}, ["time"]),
        (dict.fromkeys(REQUIRED), ["specversion", "id", "source", "type"]),
    ],
)
def test_faults_of_attributes(change: dict[str, Any], findings: list[str]) -> None:
    """All of them are named, in both modes, and no value is."""
    attributes = {name: each for name, each in {**REQUIRED, **change}.items() if each is not None}
    headers = {f"cloudEvents_{name}": each for name, each in attributes.items()}
    whole = json.dumps({**REQUIRED, **change, "data": {"id": 1}}).encode()

    for made in (message(b'{"id": 1}', headers, None), message(whole, {}, STRUCTURED)):
        with pytest.raises(InvalidBody) as caught:
            read(CloudEvent[Order], made)
        assert [place for place, _ in caught.value.findings] == findings
        assert all(name in str(caught.value) for name in findings)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "the body: Invalid JSON"),
        (b"secret", "the body: Invalid JSON"),
        (b"[" * 100_000, "the body: Invalid JSON"),
        (b"\xff", "the body: Invalid JSON"),
        (b"[]", "the body: a CloudEvent should be a JSON object"),
        (b'{"data": ' * 5000, "the body: Invalid JSON"),
    ],
)
def test_a_body_that_is_no_event(raw: bytes, text: str) -> None:
    """In structured mode."""
    with pytest.raises(InvalidBody, match=text) as caught:
        read(CloudEvent[Order], message(raw, {}, f"{STRUCTURED}; charset=utf-8"))

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents-batch+json",
        "application/cloudevents+avro",
        "application/cloudevents",
    ],
)
def test_an_unknown_format_of_events(content_type: str) -> None:
    """The text says what to send."""
    with pytest.raises(
        InvalidBody, match=rf"is not supported: send {STRUCTURED}".replace("+", r"\+")
    ):
        read(CloudEvent[Order], message(b"[]", {}, content_type))


@pytest.mark.parametrize(
    "data",
    [{"data": {"id": "secret"}}, {"data_base64": base64.b64encode(b'{"id": "secret"}').decode()}],
)
def test_invalid_data_is_a_finding_below_data(data: dict[str, Any]) -> None:
    """In both modes."""
    for made in (structured(data), message(b'{"id": "secret"}', binary(), "application/json")):
        with pytest.raises(InvalidBody, match=r"^data: id: ") as caught:
            read(CloudEvent[Order], made)
        assert [place for place, _ in caught.value.findings] == ["data.id"]
        assert "secret" not in str(caught.value)


def test_invalid_base64() -> None:
    """It is named, and so is data beside it."""
    for value in ("secret!", 7, "ü"):
        with pytest.raises(InvalidBody, match="data_base64: Input should be base64"):
            read(CloudEvent[bytes], structured({"data_base64": value}))
    with pytest.raises(InvalidBody, match="data_base64: There should be no data beside it"):
        read(CloudEvent[bytes], structured({"data_base64": "", "data": 1}))


@pytest.mark.parametrize(
    ("type_", "found"),
    [
        (Any, None),
        (Order | None, None),
        (None, None),
        (bytes, b""),
        (str, ""),
        (str | None, None),
        (FieldDescriptorProto, FieldDescriptorProto()),
        (Frame | None, None),
    ],
)
def test_an_event_without_data(type_: Any, found: object) -> None:
    """Is one whose type allows that."""
    assert read(CloudEvent[type_], structured({})).data == found
    assert read(CloudEvent[type_], message(b"", binary(), None)).data == found


def test_an_event_without_data_that_needs_some() -> None:
    """Is invalid."""
    for made in (structured({}), message(b"", binary(), None)):
        with pytest.raises(InvalidBody, match=r"^data: "):
            read(CloudEvent[Order], made)


EVERY = [
    pytest.param(Order(id=1), None, Order, id="model"),
    pytest.param(
        Order(id=1), "application/vnd.shop+json; v=1", Order, id="model with its own type"
    ),
    pytest.param(Order(id=1), MSGPACK, Order, id="model in msgpack"),
    pytest.param(Frame(1), None, Frame, id="Struct"),
    pytest.param(Frame(1), MSGPACK, Frame, id="Struct in msgpack"),
    pytest.param(FieldDescriptorProto(name="x"), None, FieldDescriptorProto, id="protobuf"),
    pytest.param(
        FieldDescriptorProto(name="x"), "application/json", FieldDescriptorProto, id="its JSON"
    ),
    pytest.param({"id": [1, "x", None]}, None, dict[str, Any], id="dict"),
    pytest.param("grün", None, str, id="text"),
    pytest.param("grün", "text/plain; charset=latin-1", str, id="text in latin-1"),
    pytest.param("grün", None, Any, id="text as anything"),
    pytest.param("<a/>", "application/xml", str, id="XML"),
    pytest.param(b"\xff\x00", None, bytes, id="bytes"),
    pytest.param(b"\xff\x00", "image/png", bytes, id="bytes with a type"),
    pytest.param(b"{", "application/json", bytes, id="bytes that are no JSON"),
    pytest.param(7, None, int, id="number"),
    pytest.param(None, None, Any, id="nothing"),
    pytest.param(None, "application/json", Any, id="nothing, with a type"),
]


@pytest.mark.parametrize("mode", [None, STRUCTURED, f"{STRUCTURED}; charset=utf-8"])
@pytest.mark.parametrize(("data", "data_type", "type_"), EVERY)
def test_there_and_back(data: object, data_type: str | None, type_: Any, mode: str | None) -> None:
    """What is published in either mode is read."""
    event = CloudEvent(
        type="order.placed",
        source="/shop",
        subject="7",
        data=data,
        datacontenttype=data_type,
        dataschema="s:1",
        extensions={"shard": 3, "sampled": True, "traceparent": "00-1"},
    )
    made = sent(event, mode, content_encoding="gzip", headers={"mine": 1})

    found = read(CloudEvent[type_], made)

    assert found.data == event.data
    names = ("id", "type", "source", "subject", "time", "dataschema", "extensions")
    assert [getattr(found, name) for name in names] == [getattr(event, name) for name in names]
    assert data_type is None or found.datacontenttype == data_type
    assert made.content_type == (mode or found.datacontenttype)
    assert made.headers["mine"] == 1
    assert ("cloudEvents_id" in made.headers) is (mode is None)


def test_what_is_written_in_structured_mode() -> None:
    """JSON data as JSON, text as text, everything else as base64."""
    event = CloudEvent(id="1", source="/s", type="t", time=AT, data=Order(id=1))
    of = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    at = {"time": "2026-01-02T03:04:05.678000Z"}

    def written(**change: Any) -> Any:
        found = {**vars(event), **change}
        return json.loads(sent(CloudEvent(**found), STRUCTURED).raw)

    assert written() == {**of, **at, "data": {"id": 1, "name": "tea"}}
    assert written(time=None, data=None) == of
    assert written(time=None, data=b"\xff") == {
        **of,
        "datacontenttype": "application/octet-stream",
        "data_base64": "/w==",
    }
    assert written(time=None, data="x") == {
        **of,
        "datacontenttype": "text/plain; charset=utf-8",
        "data": "x",
    }
    assert written(time=None, data='{"a": 1}', datacontenttype="application/json") == {
        **of,
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }
    assert written(extensions={"raw": b"\xff", "at": AT})["raw"] == "/w=="
    with pytest.raises(ValueError, match="the data of the CloudEvent is not JSON"):
        written(data="x", datacontenttype="application/json")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"id": ""}, ValueError, "id of the CloudEvent is empty"),
        ({"source": None}, TypeError, "source of the CloudEvent is a NoneType: write a str"),
        ({"subject": 7}, TypeError, "subject of the CloudEvent is a int: write a str"),
        ({"time": AT.replace(tzinfo=None)}, ValueError, "time of the CloudEvent needs a time zone"),
        ({"time": "now"}, ValueError, "time of the CloudEvent needs a time zone"),
        (
            {"extensions": {"data": 1}},
            ValueError,
            "extension 'data' of the CloudEvent: write lower",
        ),
        ({"extensions": {"a-b": 1}}, ValueError, "extension 'a-b' of the CloudEvent: write lower"),
        ({"extensions": {"a": []}}, TypeError, "extension 'a' of the CloudEvent is a list: write"),
    ],
)
def test_an_event_that_cannot_be_written(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The error names the attribute; a fake publisher raises it as well."""
    event: Any = CloudEvent(**{"source": "/s", "type": "t", **change})

    for mode in (None, STRUCTURED):
        with pytest.raises(error, match=text):
            sent(event, mode)


def test_bytes_that_other_libraries_write_as_json_data() -> None:
    """`data` that is a text is the text, unless it is JSON for a type that needs JSON."""
    assert read(CloudEvent[str], structured({"data": "x"})).data == "x"
    assert read(CloudEvent[bytes], structured({"data": "x"})).data == b"x"
    assert read(CloudEvent[bytes], structured({"data": {"a": 1}})).data == b'{"a":1}'
    xml = {"data": "<a/>", "datacontenttype": "text/xml"}
    assert read(CloudEvent[str], structured(xml)).data == "<a/>"
    number = {"data": 7, "datacontenttype": "text/xml"}
    assert read(CloudEvent[int], structured(number)).data == 7


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20).map("x".__add__)
NUMBERS = st.integers(-(2**31), 2**31 - 1)


@given(
    st.builds(
        CloudEvent,
        id=TEXT,
        source=TEXT,
        type=TEXT,
        subject=st.none() | TEXT,
        time=st.none() | st.datetimes(timezones=st.sampled_from([UTC, EAST])),
        extensions=st.dictionaries(NAMES, TEXT | st.booleans() | NUMBERS, max_size=4),
        data=st.none() | st.integers() | st.lists(TEXT),
    ),
    st.sampled_from([None, STRUCTURED]),
)
def test_any_event_there_and_back(event: CloudEvent[Any], mode: str | None) -> None:
    """Both modes keep every attribute."""
    found = read(CloudEvent, sent(event, mode))

    assert {**vars(found), "datacontenttype": None} == vars(event)


@given(st.binary(max_size=100) | st.from_regex(rb'\{"[a-z]+": ("[0-9a-z]*"|[0-9]+|null)\}'))
def test_any_body_as_an_event(raw: bytes) -> None:
    """It is invalid, and nothing else happens."""
    with pytest.raises(InvalidBody):
        read(CloudEvent[Order], message(raw, {}, STRUCTURED))


OFFICIAL = {**REQUIRED, "subject": "7", "shard": 3, "datacontenttype": "application/json"}


def test_what_the_official_library_writes_is_read() -> None:
    """Binary and structured, by its bindings for AMQP and RabbitMQ."""
    event = OfficialEvent({**OFFICIAL, "time": AT}, {"id": 7})
    binary_amqp, whole_amqp = amqp.to_binary_event(event), amqp.to_structured_event(event)
    binary_rabbit, whole_rabbit = (
        rabbitmq.to_binary_event(event),
        rabbitmq.to_structured_event(event),
    )
    every = [
        (each.application_data, each.application_properties, each.properties["content-type"])
        for each in (binary_amqp, whole_amqp)
    ]
    every += [
        (each.body, dict(each.headers), str(each.content_type))
        for each in (binary_rabbit, whole_rabbit)
    ]

    found = [read(CloudEvent[Order], message(*each)) for each in every]

    for each in found:
        assert (each.id, each.source, each.type) == ("1", "/shop", "order.placed")
        assert (each.subject, each.time, each.data) == ("7", AT, Order(id=7))
        assert int(each.extensions["shard"]) == 3


def test_what_is_written_is_read_by_the_official_library() -> None:
    """Binary and structured, JSON and bytes."""
    for data in ({"id": 7}, b"\xff\x00"):
        event = CloudEvent(
            id="1", source="/s", type="t", subject="7", time=AT, data=data, extensions={"shard": 3}
        )
        for mode in (None, STRUCTURED):
            made = sent(event, mode)
            found = amqp.from_amqp_event(
                amqp.AMQPMessage({"content-type": made.content_type}, made.headers, made.raw)
            )
            attributes = found.get_attributes()
            assert (found.get_data(), found.get_time(), found.get_id()) == (data, AT, "1")
            assert (attributes["subject"], attributes["shard"]) == ("7", 3)


def test_an_event_without_a_type_of_data() -> None:
    """Its data is what JSON has."""
    assert read(CloudEvent, structured({"data": {"id": 7}})).data == {"id": 7}


def test_an_event_stream_and_a_plain_decoder_read_structured_events() -> None:
    """Where nothing states a content type."""
    raw = json.dumps({**REQUIRED, "data": {"id": 7}})

    assert decoder(CloudEvent[Order])(raw.encode()).data == Order(id=7)
    assert body_reader(CloudEvent[Order], SSEEvent, BUILT_IN)(fake_event(raw)).data == Order(id=7)


def test_events_among_other_values_are_written_in_structured_mode() -> None:
    """By each codec, and in any depth."""
    event = CloudEvent(id="1", source="/s", type="t", time=None, data=Order(id=1))
    whole = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    whole["data"] = {"id": 1, "name": "tea"}  # type: ignore[assignment]

    assert json.loads(encode([event])[0]) == [whole]
    assert read(Any, sent_value({"events": [event]}, MSGPACK)) == {"events": [whole]}
    assert json.loads(encode(event)[0]) == whole


async def test_a_view_reads_and_writes_structured_mode() -> None:
    """Its faults are those of a body, and its description is that of an event."""

    class Events(HTTPView):
        routes = ["/events"]

        async def post(self, event: CloudEvent[Order]) -> CloudEvent[Order]:
            return event

    headers = {"Content-Type": STRUCTURED}
    sent_event = {**REQUIRED, "time": "2026-01-02T03:04:05Z", "shard": 3, "data": {"id": 7}}
    async with running(WorkerContainer(), packages=[package_of(Events)]) as app:
        good = await app.http.post("/events", json=sent_event, headers=headers)
        bad = await app.http.post("/events", json={**REQUIRED, "id": 7}, headers=headers)
        page = await app.http.get("/openapi.json")
    schemas = page.json()["components"]["schemas"]
    (schema,) = (each for name, each in schemas.items() if name.startswith("CloudEvent"))

    assert good.json() == {**sent_event, "data": {"id": 7, "name": "tea"}}
    assert bad.status == 422
    assert [each["name"] for each in bad.json()["errors"]] == ["id"]
    assert schema["required"] == ["specversion", "id", "source", "type"]
    assert schema["properties"]["data"] == {"$ref": "#/components/schemas/Order"}


def test_a_type_of_data_that_cannot_be_read_fails_the_start() -> None:
    """As without the event."""

    class Reader(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, event: CloudEvent[Opaque]) -> None: ...

    right = r"parameter 'event' has tests\S*\.Opaque in its type, which"
    with pytest.raises(DeclarationError, match=right):
        Runner(WorkerContainer(), packages=[package_of(Reader)]).assemble()


async def test_an_application_with_events() -> None:
    """One by one with the message, in the message, in batches; invalid ones are dead letters."""
    got: list[Any] = []

    class Single(AMQPConsumer):
        queues = ["single"]

        async def handle(self, event: CloudEvent[Order], message: AMQPMessage) -> None:
            got.append((event.data, message.body is event))

    class Whole(AMQPConsumer):
        queues = ["whole"]

        async def handle(self, message: AMQPMessage[CloudEvent[Order]]) -> None:
            got.append(message.body.data)

    class Batch(AMQPConsumer):
        queues = ["batch"]
        batch_size = 2

        async def handle(self, events: list[CloudEvent[Order]]) -> None:
            got.append([each.data for each in events])

    container = WorkerContainer()
    async with running(container, packages=[package_of(Single, Whole, Batch)]) as app:
        event = CloudEvent(type="t", source="/s", data=Order(id=7))
        for mode in (None, STRUCTURED):
            for queue in ("single", "whole", "batch"):
                await container.publisher().publish(event, queue, content_type=mode)
        await app.publish({"id": 7}, "single")
        await app.idle()
        letters = app.dead_letters("single")

    assert got.count((Order(id=7), True)) == 2
    assert got.count(Order(id=7)) == 2
    assert [Order(id=7)] * 2 in got
    assert (
        letters[0]
        .headers["x-workerkit-reason"]
        .startswith("specversion: This attribute is required; id: This attribute is required; ")
    )


async def test_a_fake_publisher_keeps_the_event() -> None:
    """And refuses one that cannot be written."""
    fake = FakePublisher()
    event = CloudEvent(type="t", source="/s", data=Order(id=7))

    await fake.publish(event, "q")
    with pytest.raises(ValueError, match="type of the CloudEvent is empty"):
        await fake.publish(CloudEvent(type="", source="/s"), "q")

    assert fake.published[0].body is event
    assert fake_message(event).body is event
