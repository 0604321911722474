"""Codecs by content type: what a consumer reads, and what a publisher writes."""

import dataclasses
import math
import sys
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import msgspec
import pytest
from dependency_injector import providers
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, UninterpretedOption
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct as ProtoStruct
from google.protobuf.struct_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field

from tests.application import package_of
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    Codec,
    DeclarationError,
    InvalidBody,
    Runner,
    WorkerContainer,
)
from workerkit.amqp.outgoing import encode_message
from workerkit.amqp.properties import encode as encode_properties
from workerkit.codec import BUILT_IN, Codecs, UnknownType, decoder
from workerkit.delivery import Delivery
from workerkit.reading import body_reader
from workerkit.testing import FakePublisher, fake_message, running

MSGPACK = "application/msgpack"
PROTOBUF = "application/protobuf"
FORM = "application/x-www-form-urlencoded"
CONTENT_TYPES = {
    "msgpack": [MSGPACK, "application/x-msgpack", "application/vnd.msgpack"],
    "protobuf": [PROTOBUF, "application/x-protobuf", "application/vnd.google.protobuf"],
}


class Colour(Enum):
    RED = "red"


class Order(BaseModel):
    id: int
    name: str = "tea"


class Rich(BaseModel):
    """A field of each type that JSON has none for."""

    at: datetime
    day: date
    long: timedelta
    price: Decimal
    key: UUID
    raw: bytes
    colour: Colour
    tags: set[str]
    renamed: int = Field(alias="is")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    key: UUID
    count: int


@dataclasses.dataclass
class Line:
    id: int
    raw: bytes = b""


class Row(TypedDict):
    id: int


class Frame(msgspec.Struct, rename="camel"):
    frame_id: int
    raw: bytes = b""


class Form:
    """The codec of HTML forms: values are texts, which pydantic converts."""

    content_types = [FORM, "*+form"]

    def decode(self, raw: bytes, type_: Any) -> dict[str, str]:
        return dict(parse_qsl(raw.decode("ascii"), strict_parsing=True))

    def encode(self, value: Any, type_: type) -> bytes:
        return urlencode(value).encode()


WITH_FORM = Codecs([Form()])


def message(raw: bytes, content_type: str | None, encoding: str | None = None) -> AMQPMessage:
    """A message as another library sends it."""
    made = fake_message(b"", content_type=content_type, content_encoding=encoding)
    made.raw = raw
    if content_type is None:
        made._raw_properties = b"\0\0"
    return made


def read(type_: Any, made: AMQPMessage, codecs: Codecs = BUILT_IN) -> Any:
    """Read a message as a consumer of *type_* does."""
    return body_reader(type_, AMQPMessage, codecs)(made)


def sent(body: object, content_type: str | None, codecs: Codecs = BUILT_IN) -> AMQPMessage:
    """Encode a body as a publisher does, and return what a consumer receives."""
    raw, properties = encode_message(body, content_type=content_type, codecs=codecs)
    made = message(raw, None)
    made._raw_properties = encode_properties(properties)
    return made


RICH = Rich(
    at=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    day=date(2026, 1, 2),
    long=timedelta(seconds=90),
    price=Decimal("1.10"),
    key=UUID(int=7),
    raw=b"\xff\x00",
    colour=Colour.RED,
    tags={"a", "b"},
    **{"is": 3},
)

EVERY = [
    pytest.param(Order(id=1, name="grün"), Order, id="model"),
    pytest.param(RICH, Rich, id="model with all types"),
    pytest.param(Strict(key=UUID(int=1), count=2), Strict, id="strict model"),
    pytest.param(Line(1, b"\xff"), Line, id="dataclass"),
    pytest.param(Frame(1, b"\xff"), Frame, id="Struct"),
    pytest.param([Frame(1)], list[Frame], id="list of Structs"),
    pytest.param({"a": Frame(1)}, dict[str, Frame], id="dict of Structs"),
    pytest.param({"id": 1}, Row, id="TypedDict"),
    pytest.param({"id": [1, None, 2.5, True, "x", b"\xff"]}, dict[str, Any], id="dict"),
    pytest.param([Order(id=1)], list[Order], id="list of models"),
    pytest.param({7: Order(id=1)}, dict[int, Order], id="keys that are numbers"),
    pytest.param("text", str, id="text"),
    pytest.param("text", Any, id="text as anything"),
    pytest.param("x", Annotated[str, Field(max_length=3)], id="text with constraints"),
    pytest.param(None, Order | None, id="nothing"),
    pytest.param(AnyUrl("http://a/b"), AnyUrl, id="what msgpack has no type for"),
    pytest.param(Colour.RED, Colour, id="enum"),
    pytest.param("red", Literal["red"], id="literal"),
]


@pytest.mark.parametrize("content_type", [*CONTENT_TYPES["msgpack"], f"{MSGPACK}; v=1"])
@pytest.mark.parametrize(("body", "type_"), EVERY)
def test_msgpack_there_and_back(body: object, type_: Any, content_type: str) -> None:
    """A value of each type is read as it was published."""
    made = sent(body, content_type)

    assert read(type_, made) == body
    assert made.content_type == content_type
    assert made.body == body


def test_msgpack_is_what_other_libraries_read_and_write() -> None:
    """A model is a map with the names of its aliases; any map of that form is the model."""
    made = sent(RICH, MSGPACK)

    assert msgspec.msgpack.decode(made.raw)["is"] == 3
    assert read(Order, message(b"\x82\xa2id\x01\xa4name\xa3tea", MSGPACK)) == Order(id=1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_binary_body_is_compressed_and_has_no_charset(encoding: str) -> None:
    """`content_encoding` is that of each format, a charset only that of text."""
    content_type = f"{MSGPACK}; charset=klingon"
    raw, properties = encode_message(
        Order(id=1), content_type=content_type, content_encoding=encoding
    )

    assert read(Order, message(raw, properties.content_type, encoding)) == Order(id=1)


def test_what_msgpack_writes_is_compressed_even_if_it_looks_compressed() -> None:
    """Only bytes of the caller are taken for compressed already."""
    inner = zlib.compress(b"x")
    codecs = Codecs([_Fixed(inner)])

    own, _ = encode_message("", content_type="a/b", content_encoding="deflate", codecs=codecs)
    given, _ = encode_message(inner, content_type="a/b", content_encoding="deflate")

    assert zlib.decompress(own) == inner
    assert given == inner


class _Fixed:
    content_types = ("a/b",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def decode(self, raw: bytes, type_: Any) -> Any:
        return raw

    def encode(self, value: Any, type_: type) -> bytes:
        return self.raw


def test_an_encoding_that_cannot_be_written_is_refused_for_msgpack() -> None:
    """As for JSON."""
    with pytest.raises(ValueError, match="'br': workerkit writes gzip and deflate only"):
        encode_message({}, content_type=MSGPACK, content_encoding="br")
    with pytest.raises(ValueError, match="content_encoding 'aes' is not known"):
        encode_message({}, content_type=MSGPACK, content_encoding="aes")


HOSTILE = {
    "lists in lists": b"\x91" * 100_000,
    "maps in maps": b"\x81\xa1a" * 100_000,
    "a list of 4 G items": b"\xdd\xff\xff\xff\xff",
    "a map of 4 G items": b"\xdf\xff\xff\xff\xff",
    "4 GiB of bytes": b"\xc6\xff\xff\xff\xff",
    "4 GiB of text": b"\xdb\xff\xff\xff\xffx",
    "4 GiB of an extension": b"\xc9\xff\xff\xff\xff\x01",
    "a time out of range": b"\xd7\xff" + b"\xff" * 8,
    "a key that is a map": b"\x81\x80\x01",
    "no UTF-8": b"\xa1\xff",
    "no code": b"\xc1",
    "nothing": b"",
    "more after the end": b"\x01\x01",
    "JSON": b'{"id": 1}',
}


@pytest.mark.parametrize("type_", [Order, Line, Row, Frame, dict[str, Frame], Any, dict, str])
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_msgpack_is_invalid(raw: bytes, type_: Any) -> None:
    """Neither depth nor announced lengths do more than make the body invalid."""
    with pytest.raises(InvalidBody) as caught:
        read(type_, message(raw, MSGPACK))

    assert len(str(caught.value)) < 200


def test_a_value_nested_as_deeply_as_msgpack_allows() -> None:
    """Validation of it does not recurse without limit, either."""

    class Node(BaseModel):
        below: "list[Node]"

    raw = b"\x81\xa5below\x91" * 400 + b"\x80"

    with pytest.raises(InvalidBody) as caught:
        read(Node, message(raw, MSGPACK))

    assert "nested too deeply" in str(caught.value) or "recursion" in str(caught.value).lower()


@pytest.mark.parametrize(
    ("value", "type_", "findings"),
    [
        ({"id": "secret"}, Order, ["id"]),
        ({"id": 1, "secret": 2}, Order, None),
        ([{"id": "secret"}], list[Order], ["0.id"]),
        ({4711: {"id": "secret"}}, dict[int, Order], ["[key].id"]),
        ({"secret": {"id": "secret"}}, dict[str, Order], ["[key].id"]),
        ([{4711: "secret"}], list[dict[int, int]], ["0.[key]"]),
        ({"frameId": "secret"}, Frame, ["frameId"]),
        ({"secret": {"frameId": "secret"}}, dict[str, Frame], ["[key].frameId"]),
        ("secret", Literal["a", "b"], ["the body"]),
        ({"id": "secret"}, Order | Line, ["id", "id"]),
    ],
)
def test_findings_are_those_of_json_and_hide_the_body(
    value: object, type_: Any, findings: list[str] | None
) -> None:
    """They name locations, and neither values nor keys of the sender."""
    made = message(msgspec.msgpack.encode(value), MSGPACK)
    if findings is None:
        read(type_, made)
        return

    with pytest.raises(InvalidBody) as caught:
        read(type_, made)

    assert [place for place, _ in caught.value.findings] == findings
    assert "secret" not in f"{caught.value}{caught.value.findings}"
    assert "4711" not in f"{caught.value}{caught.value.findings}"
    assert caught.value.__cause__ is None


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
JSON_LIKE = st.recursive(
    SCALARS | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def is_clean(type_: Any, made: AMQPMessage) -> bool:
    """Whether a message is read, or is invalid without an exception that has its body."""
    try:
        read(type_, made)
    except InvalidBody as error:
        return error.__cause__ is None and len(str(error)) < 6000
    return True


@given(JSON_LIKE, st.sampled_from([MSGPACK, "application/json", "a/b+json", None]))
def test_any_value_there_and_back(value: Any, content_type: str | None) -> None:
    """What is published as msgpack or as JSON is received."""
    is_json = content_type != MSGPACK
    expected = without_infinity(value) if is_json else value

    assert read(Any, sent([value], content_type)) == [expected]


@given(TEXT, st.sampled_from([None, "text/plain", "text/html; charset=utf-16", MSGPACK, "a/b"]))
def test_any_text_there_and_back(text: str, content_type: str | None) -> None:
    """Text is text in each format; only a byte order mark at its beginning is none."""
    assert read(str, sent("x" + text, content_type)) == "x" + text


def without_infinity(value: Any) -> Any:
    """What JSON has in place of a number that is not finite."""
    match value:
        case list():
            return [without_infinity(each) for each in value]
        case dict():
            return {name: without_infinity(each) for name, each in value.items()}
        case float():
            return value if math.isfinite(value) else None
    return value


@given(st.binary(max_size=200), st.sampled_from([Order, Frame, Any, dict[int, Order], str]))
def test_any_bytes_as_msgpack(raw: bytes, type_: Any) -> None:
    """They are a value, or invalid."""
    assert is_clean(type_, message(raw, MSGPACK))


@given(st.text(), st.integers(-(2**31), 2**31 - 1))
def test_protobuf_there_and_back(name: str, number: int) -> None:
    """A message is read from its bytes, and from its JSON."""
    body = FieldDescriptorProto(number=number)
    if name.isprintable():
        body.name = name

    for content_type in (None, PROTOBUF, "application/json"):
        assert read(FieldDescriptorProto, sent(body, content_type)) == body


@pytest.mark.parametrize("content_type", [None, *CONTENT_TYPES["protobuf"]])
def test_a_protobuf_message_writes_itself(content_type: str | None) -> None:
    """Its content type is `application/protobuf`, unless another one of protobuf is given."""
    body = FieldDescriptorProto(name="id", number=1)
    made = sent(body, content_type)

    assert made.raw == body.SerializeToString()
    assert made.content_type == (content_type or PROTOBUF)
    assert read(FieldDescriptorProto, made) == body
    assert read(FieldDescriptorProto, message(made.raw, "application/octet-stream")) == body


def nested(depth: int) -> bytes:
    """A protobuf `Value` with lists in lists."""
    raw = b""
    for _ in range(depth):
        for tag in (b"\x0a", b"\x32"):
            size, length = len(raw), b""
            while size > 127:
                length += bytes((size & 127 | 128,))
                size >>= 7
            raw = tag + length + bytes((size,)) + raw
    return raw


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(nested(2000), id="lists in lists"),
        pytest.param(b"\x1a\xff\xff\xff\xff\x0f", id="4 GiB of text"),
        pytest.param(b"\xff" * 30, id="no tag"),
        pytest.param(b"\x1a\x02\xff\xff", id="no UTF-8"),
        pytest.param(b'{"secret": 1}', id="JSON"),
    ],
)
def test_hostile_protobuf_is_invalid(raw: bytes) -> None:
    """The text names the type."""
    with pytest.raises(InvalidBody, match=r"is not a protobuf message of type google\.protobuf\.V"):
        read(Value, message(raw, PROTOBUF))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 5_000, b"secret", b"\xff", b"", b"1"])
def test_hostile_json_of_protobuf_is_invalid(raw: bytes) -> None:
    """The text contains nothing of the body."""
    with pytest.raises(InvalidBody) as caught:
        read(ProtoStruct, message(raw, "application/json"))

    assert str(caught.value) == (
        "the body is not the JSON of a protobuf message google.protobuf.Struct"
    )


@given(st.binary(max_size=200))
def test_any_bytes_as_protobuf(raw: bytes) -> None:
    """They are a message, or invalid."""
    for type_ in (Value, FieldDescriptorProto, UninterpretedOption):
        for content_type in (PROTOBUF, "application/json"):
            assert is_clean(type_, message(raw, content_type))


def test_a_required_field_of_protobuf_is_a_finding() -> None:
    """In both directions."""
    part = UninterpretedOption(name=[UninterpretedOption.NamePart()])
    raw = part.SerializePartialToString()

    with pytest.raises(InvalidBody, match=r"name\[key\]\.name_part: Field required; ") as caught:
        read(UninterpretedOption, message(raw, PROTOBUF))
    with pytest.raises(ValueError, match="has no value for"):
        sent(part, PROTOBUF)

    assert len(caught.value.findings) == 2


def test_what_a_codec_cannot_read_or_write_is_explained() -> None:
    """A model from protobuf, protobuf from msgpack."""
    with pytest.raises(InvalidBody, match="'application/protobuf' cannot be read: `handle` has to"):
        read(Order, message(b"", PROTOBUF))
    with pytest.raises(InvalidBody, match="msgpack, which Value cannot be read from"):
        read(Value, message(b"\x01", MSGPACK))
    with pytest.raises(TypeError, match="a Order cannot be written as protobuf"):
        sent(Order(id=1), PROTOBUF)
    with pytest.raises(TypeError, match="a Value cannot be written as msgpack"):
        sent(Value(), MSGPACK)
    with pytest.raises(ValueError, match="cannot be written as application/msgpack"):
        sent(2**70, MSGPACK)
    with pytest.raises((TypeError, ValueError), match="object"):
        sent(object(), MSGPACK)
    with pytest.raises(UnknownType, match="a protobuf message of no type"):
        decoder(Message)


def test_without_msgspec_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a consumer the message is invalid, a publisher raises."""
    made = sent(Order(id=1), MSGPACK)
    monkeypatch.setitem(sys.modules, "msgspec", None)

    right = r"needs the package msgspec: pip install 'workerkit\[msgspec\]'"
    with pytest.raises(InvalidBody, match=right):
        read(Order, made)
    with pytest.raises(ValueError, match=right):
        sent(Order(id=1), MSGPACK)

    assert read(Order, sent(Order(id=1), None)) == Order(id=1)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.shop+json",
        "text/json",
        "text/plain",
        "application/octet-stream",
        "nonsense",
        "a/b/c;;=",
        "",
    ],
)
def test_json_is_read_under_every_label(content_type: str | None) -> None:
    """No content type, an unknown one, or one of text: the annotation decides, as ever."""
    assert read(Order, message(b'{"id": 1}', content_type)) == Order(id=1)
    assert read(dict[str, int], message(b'{"id": 1}', content_type)) == {"id": 1}


@pytest.mark.parametrize("content_type", [MSGPACK, PROTOBUF, "application/json", FORM, None])
def test_bytes_are_never_decoded(content_type: str | None) -> None:
    """By no codec; and a publisher sends them as they are."""
    for type_ in (bytes, bytes | None, Annotated[bytes, Field(max_length=9)]):
        assert read(type_, message(b"\x01\xff", content_type), WITH_FORM) == b"\x01\xff"
    assert sent(b"\x01\xff", content_type, WITH_FORM).raw == b"\x01\xff"


def test_text_as_anything_is_text() -> None:
    """What is read as `Any` is not taken for JSON if the sender says that it is text."""
    assert read(Any, message("grün".encode("latin-1"), "text/plain; charset=latin-1")) == "grün"
    assert read(Any, sent("123", None)) == "123"
    assert read(Any, message(b"123", None)) == 123


@given(st.dictionaries(st.text("abc", min_size=1), st.text("xyz%&= ü", min_size=1), min_size=1))
def test_a_codec_of_the_application_there_and_back(value: dict[str, str]) -> None:
    """Its values are validated as those of all formats."""
    assert read(dict[str, str], sent(value, FORM, WITH_FORM), WITH_FORM) == value


def test_a_codec_of_the_application_reads_models() -> None:
    """Values become a model, a dataclass, a `Struct`; faults have findings."""
    raw = b"id=7"

    assert read(Order, message(raw, FORM), WITH_FORM) == Order(id=7)
    assert read(Line, message(raw, "application/shop+form"), WITH_FORM) == Line(7)
    assert read(dict[str, Any], message(raw, FORM), WITH_FORM) == {"id": "7"}
    with pytest.raises(InvalidBody) as caught:
        read(Order, message(b"id=secret", FORM), WITH_FORM)
    assert caught.value.findings[0][0] == "id"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"\xff", b"secret"])
def test_what_a_codec_of_the_application_raises_is_an_invalid_body(raw: bytes) -> None:
    """With the class of the exception only: its text may contain the body."""
    with pytest.raises(InvalidBody, match=r"^the body is not application/x-www-") as caught:
        read(Order, message(raw, FORM), WITH_FORM)

    assert str(caught.value).endswith(("UnicodeDecodeError", "ValueError"))
    assert caught.value.__cause__ is None


def test_a_codec_of_the_application_replaces_a_built_in_one() -> None:
    """For the content types that it names; JSON as well."""

    class Own:
        content_types = ("application/json", MSGPACK)

        def decode(self, raw: bytes, type_: Any) -> Any:
            return type_(id=len(raw))

        def encode(self, value: Any, type_: type) -> bytes:
            return f"{type_.__name__} {value}".encode()

    codecs = Codecs([Own()])

    assert read(Order, message(b"four", "application/json"), codecs) == Order(id=4)
    assert read(Order, message(b"four", MSGPACK), codecs) == Order(id=4)
    assert sent(Order(id=1), MSGPACK, codecs).raw == b"Order {'id': 1, 'name': 'tea'}"
    assert (
        sent(Order(id=1), "application/json", codecs).raw == sent(Order(id=1), MSGPACK, codecs).raw
    )
    assert isinstance(Own(), Codec)


def test_a_codec_that_returns_no_bytes_is_named() -> None:
    """To the publisher."""
    codecs = Codecs([_Fixed("text")])  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"_Fixed\.encode returned a str: it has to return bytes"):
        sent(1, "a/b", codecs)


class _Nameless:
    content_types = ["application/yaml; v=1"]

    def decode(self, raw: bytes, type_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("provider", "faults"),
    [
        (
            providers.List(providers.Object(_Nameless())),
            [
                "_Nameless has no method 'encode': a Codec has content_types, decode and encode",
                "_Nameless has content_types ['application/yaml; v=1']: write a list of",
            ],
        ),
        (providers.List(providers.Object(Form)), ["Form is a class: write providers.Singleton(F"]),
        (providers.Object(Form()), ["the container's codecs provides a Form: it should be a list"]),
        (
            providers.List(providers.Singleton(_Fixed)),
            ["the container's codecs could not be created: TypeError"],
        ),
    ],
    ids=["incomplete", "a class", "no list", "not created"],
)
def test_a_codec_that_is_none_fails_the_start(provider: Any, faults: list[str]) -> None:
    """All faults at once, together with those of the classes."""

    class Reader(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order) -> None: ...  # type: ignore[no-untyped-def]

    container = WorkerContainer()
    container.codecs.override(provider)
    with pytest.raises(DeclarationError) as caught:
        Runner(container, packages=[package_of(Reader)]).assemble()

    assert len(caught.value.faults) == len(faults) + 1
    assert all(fault in str(caught.value) for fault in faults)


async def test_an_application_with_codecs() -> None:
    """Its consumers read what its publisher writes in each format, one by one and in batches."""
    got: list[object] = []

    class Single(AMQPConsumer):
        queues = ["single"]

        async def handle(self, order: Order, message: AMQPMessage) -> None:
            got.append((message.content_type, order))

    class Batch(AMQPConsumer):
        queues = ["batch"]

        async def handle(self, orders: list[Order]) -> None:
            got.append(orders)

    class Container(WorkerContainer):
        codecs = providers.List(providers.Singleton(Form))

    container = Container()
    async with running(container, packages=[package_of(Single, Batch)]) as app:
        publisher = container.publisher()
        for content_type in (None, MSGPACK, FORM):
            await publisher.publish(Order(id=1), "single", content_type=content_type)
            await publisher.publish(Order(id=2), "batch", content_type=content_type)
        await app.publish(Order(id=3), "single", content_type=FORM)
        await app.publish(b"\x91" * 5000, "single", content_type=MSGPACK, message_id="hostile")
        await app.idle()
        letters = app.dead_letters("single")

    assert [Order(id=2)] * 3 in got
    assert [each for each in got if isinstance(each, tuple)] == [
        ("application/json", Order(id=1)),
        (MSGPACK, Order(id=1)),
        (FORM, Order(id=1)),
        (FORM, Order(id=3)),
    ]
    assert [each.headers["x-workerkit-reason"] for each in letters] == [
        "the body is not msgpack: it is nested too deeply"
    ]


async def test_a_fake_publisher_refuses_what_a_real_one_refuses() -> None:
    """With the codecs that it was given."""
    fake = FakePublisher()
    fake.codecs = WITH_FORM

    await fake.publish({"a": 1}, "q", content_type=FORM)
    with pytest.raises(TypeError, match="cannot be written as protobuf"):
        await fake.publish({"a": 1}, "q", content_type=PROTOBUF)

    assert fake.published[0].options == {"content_type": FORM}


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_content_type(content_type: str) -> None:
    """Of a sender it never raises anything but `InvalidBody`."""
    made = message(b'{"id": 1}', None)
    raw = content_type.encode(errors="surrogatepass")[:255]
    made._raw_properties = b"\x80\0" + bytes((len(raw),)) + raw
    try:
        assert read(Order, made) == Order(id=1)
    except InvalidBody:
        assert made.content_type is not None


def test_a_transport_of_the_application_decodes_its_own_content() -> None:
    """Its deliveries override `content`; an error begins with what is not known."""

    class Mail(Delivery):
        __slots__ = ("body",)

        def content(self, *, text: bool) -> Any:
            return self.raw[::-1] if text else self.raw

        @property
        def unknown_content(self) -> str:
            return "encoding 'rot13' is not known"

    made = Mail(b'}1 :"di"{')

    assert body_reader(Order, Mail, BUILT_IN)(made) == Order(id=1)
    assert body_reader(bytes, Mail, BUILT_IN)(made) == made.raw
    with pytest.raises(InvalidBody, match=r"^encoding 'rot13' is not known; the body: "):
        body_reader(list[int], Mail, BUILT_IN)(made)


def test_the_decoders_of_many_labels_do_not_accumulate() -> None:
    """A sender may write a new content type in each message."""
    reader = BUILT_IN.reader(Order)
    find: Callable[[str], Any] = reader.for_label
    for number in range(2000):
        find(f"application/{number}+json")

    assert find.cache_info().currsize <= 256  # type: ignore[attr-defined]
