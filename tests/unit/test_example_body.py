"""FP17: the body of the printed command is one that the consumer can read."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, Field, PositiveInt

from workerkit import CloudEvent
from workerkit.cli.broker import example
from workerkit.codec import decoder


class Part(BaseModel):
    name: str
    parts: "list[Part]"


class Order(BaseModel):
    id: PositiveInt
    item: str
    weight: float = Field(ge=2.5)
    kind: Literal["new", "used"]
    part: Part
    either: int | str
    note: str | None
    quantity: int = 1


@dataclass
class Point:
    x: int
    y: int


class Endless(BaseModel):
    next: "Endless | None"


@pytest.mark.parametrize(
    "body",
    [
        Order,
        Point,
        Endless,
        bytes,
        str,
        int,
        float,
        bool,
        dict[str, Any],
        list[int],
        Any,
        Order | Point,
        Timestamp,
        CloudEvent,
        CloudEvent[Order],
        CloudEvent[bytes],
        CloudEvent[Timestamp],
    ],
)
def test_fp17_an_example_can_be_read(body: Any) -> None:
    """The example is valid for every type with a JSON schema."""
    decoder(body)(example(body).encode())


def test_fp17_an_example_has_what_is_required() -> None:
    """Fields with a default are left out."""
    assert example(Point) == '{"x": 1, "y": 1}'
    assert "quantity" not in example(Order)
