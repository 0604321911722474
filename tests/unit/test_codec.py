"""Bodies in both directions."""

import dataclasses
import json
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, Union
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypeAliasType

from workerkit import InvalidBody
from workerkit.codec import UnknownType, decoder, encode

Line = NewType("Line", str)
Frame = TypeAliasType("Frame", bytes)
Short = Annotated[str, Field(max_length=3)]


class Model(BaseModel):
    id: int
    name: str = ""


@dataclasses.dataclass
class Data:
    id: int


class Typed(TypedDict):
    id: int


class Nested(TypedDict, total=False):
    items: list[Typed]
    one: Typed | None
    all: dict[str, Typed]


class Struct(msgspec.Struct):
    id: int


class Open(BaseModel):
    nothing: "Missing"  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Holder:
    structs: list[Struct]


class Strict(BaseModel):
    code: str

    @field_validator("code")
    @classmethod
    def check(cls, value: str) -> str:
        raise ValueError("not a code")


@pytest.mark.parametrize(
    ("type_", "raw", "value"),
    [
        (bytes, b"\xff\x00", b"\xff\x00"),
        (bytes, b"", b""),
        (str, "é".encode(), "é"),
        (Annotated[str, "a line"], b"null", "null"),
        (Short, b"abc", "abc"),
        (Short | None, b"", ""),
        (Line, b"1", "1"),
        (str | None, b"null", "null"),
        (Annotated[bytes, Field(min_length=1)], b"\xff", b"\xff"),
        (Frame, b"\xff", b"\xff"),
        (bytes | None, b"\xff", b"\xff"),
        (Any, b'{"a": [1, null]}', {"a": [1, None]}),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
        (int, b"3", 3),
        (Model, b'{"id": 1}', Model(id=1)),
        (Model | None, b"null", None),
        (Data, b'{"id": 1}', Data(id=1)),
        (Typed, b'{"id": 1}', {"id": 1}),
        (Nested, b'{"items": [{"id": 1}], "one": null}', {"items": [{"id": 1}], "one": None}),
        (Optional[Typed], b'{"id": 1}', {"id": 1}),  # noqa: UP045
        (Union[Typed, int], b'{"id": 1}', {"id": 1}),  # noqa: UP007
        (Annotated[Typed, "x"], b'{"id": 1}', {"id": 1}),
        (list[Annotated[Typed | None, Field(title="x")]], b"[null]", [None]),
        (Annotated[list[Typed], Field(max_length=1)], b'[{"id": 1}]', [{"id": 1}]),
        (list[Typed], b'[{"id": 1}]', [{"id": 1}]),
        (Struct, b'{"id": 1}', Struct(id=1)),
    ],
)
def test_a_body_is_read_as_its_annotation(type_: Any, raw: bytes, value: object) -> None:
    """Every form of body comes out as its type."""
    assert decoder(type_)(raw) == value


@pytest.mark.parametrize(
    ("type_", "raw", "text"),
    [
        (str, b"\xff", "not UTF-8 text"),
        (Line, b"\xff", "not UTF-8 text"),
        (Short, b"secret-body", "the body: String should have at most 3 characters"),
        (Short | None, b"secret-body", "String should have at most 3 characters"),
        (Annotated[bytes, Field(max_length=3)], b"secret-body", "at most 3 bytes"),
        (Model, b"secret-body", "Invalid JSON"),
        (Model, b"", "Invalid JSON"),
        (Model, b'{"id": "secret-body"}', "id: Input should be a valid integer"),
        (Model, b'{"name": "secret-body"}', "id: Field required"),
        (Data, b'{"id": "secret-body"}', "id: Input should be a valid integer"),
        (Typed, b"[]", "Input should be"),
        (Annotated[list[Typed], Field(max_length=1)], b'[{"id": 1}, {"id": 2}]', "at most 1 item"),
        (Struct, b'{"id": "secret-body"}', "id: Expected `int`, got `str`$"),
        (list[Struct], b'[{"id": 1}, {"id": "x"}]', "1.id: Expected `int`, got `str`$"),
        (dict[str, Struct], b'{"secret-body": {"id": "x"}}', r"^\[key\].id: Expected `int`"),
        (Struct, b"{}", "the body: Object missing required field `id`"),
        (UUID, b'"secret-body"', "the body: Input should be a valid UUID$"),
        (Nested, b'{"items": [{}]}', "items.0.id: Field required"),
        (Struct, b"\xff", "the body"),
        (Strict, b'{"code": "secret-body"}', "code: Value error, not a code"),
    ],
)
def test_a_body_that_does_not_fit(type_: Any, raw: bytes, text: str) -> None:
    """The error names the place and what is right, and never contains the body."""
    with pytest.raises(InvalidBody, match=text) as caught:
        decoder(type_)(raw)

    assert "secret-body" not in str(caught.value)
    assert caught.value.__suppress_context__ or "secret-body" not in repr(caught.value.__cause__)


class Cat(BaseModel):
    """One of two."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """The other one."""

    kind: Literal["dog"]
    bark: str


class Owned(BaseModel):
    """Has unions of all sorts."""

    owner: Annotated[int, Field(gt=0)] | list[int] = 1
    pet: Cat | Dog | None = None
    other: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    named: dict[str, Cat | int] = {}


@pytest.mark.parametrize(
    ("raw", "places"),
    [
        ({"owner": {}}, ["owner"]),
        ({"owner": ["x"]}, ["owner", "owner.0"]),
        ({"pet": {"kind": "cat", "lives": "z"}}, ["pet.kind", "pet.lives", "pet.bark"]),
        ({"other": {"kind": "dog"}}, ["other.bark"]),
        ({"named": {"secret": {}}}, ["named.[key]", "named.[key].kind", "named.[key].lives"]),
    ],
    ids=str,
)
def test_places_in_unions(raw: dict[str, Any], places: list[str]) -> None:
    """The members of a union are no part of what the sender wrote."""
    with pytest.raises(InvalidBody) as caught:
        decoder(Owned)(json.dumps(raw).encode())

    assert {place for place, _ in caught.value.findings} == set(places)


def test_many_faults_are_summed_up() -> None:
    """A body with a hundred faults does not fill the log."""
    with pytest.raises(InvalidBody, match="and 95 more"):
        decoder(list[int])(b"[" + b",".join([b'"x"'] * 100) + b"]")


@pytest.mark.parametrize("type_", [object(), type("Opaque", (), {}), Open, "Missing"])
def test_a_type_that_no_body_can_be(type_: Any) -> None:
    """What nothing can read is found when the class is declared."""
    with pytest.raises(UnknownType):
        decoder(type_)


@pytest.mark.parametrize(
    ("body", "raw", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        (bytearray(b"x"), b"x", "application/octet-stream"),
        ("é", "é".encode(), "text/plain; charset=utf-8"),
        (Model(id=1, name="x"), b'{"id":1,"name":"x"}', "application/json"),
        (Data(id=1), b'{"id":1}', "application/json"),
        (Struct(id=1), b'{"id":1}', "application/json"),
        ({"a": [1, None]}, b'{"a":[1,null]}', "application/json"),
        ([Struct(id=1)], b'[{"id":1}]', "application/json"),
        ({"a": (Struct(id=1), 2)}, b'{"a":[{"id":1},2]}', "application/json"),
        (Holder(structs=[Struct(id=1)]), b'{"structs":[{"id":1}]}', "application/json"),
        (None, b"null", "application/json"),
    ],
)
def test_a_value_is_written(body: object, raw: bytes, content_type: str) -> None:
    """Bytes and text go as they are, all else as JSON."""
    assert encode(body) == (raw, content_type)


def test_a_value_that_cannot_be_written() -> None:
    """Its type is named."""
    with pytest.raises(TypeError, match="a value of type object cannot be written as JSON"):
        encode(object())
    with pytest.raises(TypeError, match=r"type list cannot be written as JSON: .*object is no t"):
        encode([object()])
