"""The rules of `handle`: what its annotations mean, and what is said of those that mean nothing."""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, Field

from tests.unit import postponed
from workerkit import AMQPMessage, InvalidBody, SSEEvent
from workerkit.errors import DeclarationError
from workerkit.signature import ArgumentSource, Signature, Unresolved
from workerkit.testing import fake_message


class Order(BaseModel):
    id: int
    item: str = "tea"


@dataclass
class Point:
    x: int
    y: int = 0


class Row(TypedDict):
    id: int


class Frame(msgspec.Struct):
    id: int


class Opaque:
    """Nothing that JSON can become."""


@dataclass
class Holder:
    it: Opaque


RIGHT = (
    "is no type of a body: write bytes, str, a pydantic model, a dataclass, a TypedDict, "
    "a msgspec.Struct or "
)


def message(raw: bytes) -> Any:
    """A message with this body and nothing else."""
    return fake_message(raw)


def nothing(parameter: inspect.Parameter, type_: Any) -> ArgumentSource:
    """A container that is empty."""
    raise Unresolved("has no provider")


def signature(
    handle: Callable[..., Any],
    resolve: Callable[[inspect.Parameter, Any], ArgumentSource] = nothing,
) -> Signature:
    """The plan of a `handle`."""
    return Signature(handle, AMQPMessage, resolve)


def body(handle: Callable[..., Any], raw: bytes) -> Any:
    """What `handle` gets as its first argument."""
    arguments, _ = signature(handle).bind(message(raw))
    return arguments[0]


def faults(handle: Callable[..., Any]) -> list[str]:
    """Return the faults of a `handle`, without its place."""
    with pytest.raises(DeclarationError) as raised:
        signature(handle)
    start = f"{__name__}.{handle.__qualname__} (test_signature.py:"
    assert all(fault.startswith(start) for fault in raised.value.faults)
    return [fault.split("): ", 1)[1] for fault in raised.value.faults]


def handling(type_: Any) -> Callable[..., Any]:
    """A `handle` whose first parameter has this type."""

    async def handle(self: Any, body: Any) -> None: ...

    handle.__annotations__["body"] = type_
    return handle


@pytest.mark.parametrize(
    ("type_", "raw", "expected"),
    [
        (bytes, b"\xff\x00", b"\xff\x00"),
        (bytes, b"", b""),
        (str, "naïve".encode(), "naïve"),
        (str, b"", ""),
        (dict, b'{"id": 1}', {"id": 1}),
        (dict[str, int], b'{"id": 1}', {"id": 1}),
        (Any, b"[1, null]", [1, None]),
        (object, b'"x"', "x"),
        (int, b"3", 3),
        (float, b"3.5", 3.5),
        (bool, b"true", True),
        (int | None, b"null", None),
        (None, b"null", None),
        (tuple[int, str], b'[1, "a"]', (1, "a")),
        (Order, b'{"id": 1}', Order(id=1)),
        (Order | None, b"null", None),
        (Point, b'{"x": 1}', Point(1)),
        (Row, b'{"id": 1}', {"id": 1}),
        (Frame, b'{"id": 1}', Frame(1)),
        (Frame | None, b"null", None),
        (dict[str, Frame], b'{"a": {"id": 1}}', {"a": Frame(1)}),
        (Annotated[int, Field(gt=0)], b"3", 3),
    ],
)
def test_a_body_of_every_form(type_: Any, raw: bytes, expected: Any) -> None:
    """The annotation of the first parameter decides how the body is read."""
    found = body(handling(type_), raw)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("type_", "raw"),
    [
        (str, b"\xff"),
        (dict, b""),
        (dict, b"{"),
        (dict, b"[]"),
        (dict, b"\xff\xfe{\x00}\x00"),
        (int, b'"x"'),
        (Order, b"{}"),
        (Order, b'{"id": "x"}'),
        (Point, b"{}"),
        (Row, b'{"id": null}'),
        (Frame, b"{}"),
        (Frame, b"\xff"),
        (Annotated[int, Field(gt=0)], b"0"),
        (AMQPMessage[Order], b"{}"),
    ],
)
def test_a_body_that_does_not_fit(type_: Any, raw: bytes) -> None:
    """A body of another form raises `InvalidBody`, for every kind of fault."""
    with pytest.raises(InvalidBody):
        body(handling(type_), raw)


@pytest.mark.parametrize("type_", [Order, Point, Row, Frame, dict[str, int], AMQPMessage[Order]])
def test_the_body_stays_out_of_the_error(type_: Any) -> None:
    """Neither the text of the error nor what it was raised from contains the body."""
    with pytest.raises(InvalidBody) as raised:
        body(handling(type_), b'{"id": "hunter22", "x": "hunter22"}')

    assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize(
    ("type_", "raw", "expected"),
    [
        (AMQPMessage[Order], b'{"id": 1}', Order(id=1)),
        (AMQPMessage[bytes], b"\xff", b"\xff"),
        (AMQPMessage[str], b"x", "x"),
        (AMQPMessage[dict[str, int]], b'{"id": 1}', {"id": 1}),
        (AMQPMessage, b'{"id": 1}', {"id": 1}),
        (AMQPMessage[Any], b"3", 3),
        (AMQPMessage[Frame], b'{"id": 1}', Frame(1)),
        (Annotated[AMQPMessage[Order], "x"], b'{"id": 1}', Order(id=1)),
        (Annotated[AMQPMessage, "x"], b"3", 3),
    ],
)
def test_a_message_with_the_body_in_it(type_: Any, raw: bytes, expected: Any) -> None:
    """`AMQPMessage[T]` is the message, and its body a T."""
    delivery = message(raw)

    (found,), _ = signature(handling(type_)).bind(delivery)

    assert found is delivery
    assert found.body == expected


def test_the_message_beside_the_body() -> None:
    """A further parameter of type `AMQPMessage` takes the message, with the body in it."""

    async def handle(
        self: Any,
        order: Order,
        here: AMQPMessage[Any],
        *,
        there: Annotated[AMQPMessage[Any], "x"],
    ) -> None: ...

    delivery = message(b'{"id": 1}')

    arguments, others = signature(handle).bind(delivery)

    assert arguments == (Order(id=1),)
    assert others == {"here": delivery, "there": delivery}
    assert delivery.body == Order(id=1)


def test_postponed_annotations() -> None:
    """`from __future__ import annotations` changes nothing."""
    delivery = message(b'{"id": 1}')

    arguments, others = signature(postponed.Consumer.handle).bind(delivery)

    assert arguments == (postponed.Order(id=1),)
    assert others == {"message": delivery}


async def test_the_others_come_from_the_container() -> None:
    """The container fills every further parameter, once per call."""

    async def handle(self: Any, body: bytes, session: Point, *, other: int = 3) -> None: ...

    calls = []

    async def later() -> int:
        return 7

    def resolve(parameter: inspect.Parameter, type_: Any) -> ArgumentSource:
        calls.append((parameter.name, type_, parameter.default))
        return ArgumentSource((lambda: Point(1)) if parameter.name == "session" else later)

    plan = signature(handle, resolve)
    async with plan.provided() as first, plan.provided() as second:
        pass

    assert calls == [("session", Point, inspect.Parameter.empty), ("other", int, 3)]
    assert first == second == {"session": Point(1), "other": 7}
    assert first["session"] is not second["session"]
    assert plan.provides


def test_nothing_to_provide() -> None:
    """A `handle` that wants the delivery alone needs nothing of the container."""

    async def handle(self: Any, body: bytes, message: AMQPMessage[Any]) -> None: ...

    assert not signature(handle).provides


def test_a_parameter_without_annotation() -> None:
    """Every parameter needs an annotation, and each one that lacks it is named."""

    def handle(self, body, message: AMQPMessage[Any], note=None):  # type: ignore[no-untyped-def]
        ...

    assert faults(handle) == [
        "parameter 'body' needs a type annotation",
        "parameter 'note' needs a type annotation",
    ]


def test_an_unknown_type() -> None:
    """A class that no body can be read as is named."""

    async def handle(self: Any, body: Opaque) -> None: ...

    assert faults(handle) == [f"parameter 'body' is of type Opaque, which {RIGHT}AMQPMessage[...]"]


@pytest.mark.parametrize("type_", [SSEEvent, SSEEvent[Order]])
def test_the_delivery_of_another_wire(type_: Any) -> None:
    """An event is no body of a message; the delivery type of the transport is proposed."""
    assert faults(handling(type_)) == [
        f"parameter 'body' is of type SSEEvent, which {RIGHT}AMQPMessage[...]"
    ]


def test_a_message_where_events_come() -> None:
    """... and the other way round."""
    with pytest.raises(DeclarationError) as raised:
        Signature(handling(AMQPMessage), SSEEvent, nothing)

    [fault] = raised.value.faults
    assert fault.endswith(f"is of type AMQPMessage, which {RIGHT}SSEEvent[...]")


@pytest.mark.parametrize("type_", [list[Opaque], Opaque | None, dict[str, Opaque], Holder])
def test_an_unknown_type_in_another_one(type_: Any) -> None:
    """The class is named that no body can be read as, wherever it stands."""
    [fault] = faults(handling(type_))

    assert "Opaque" in fault
    assert fault.endswith(f"which {RIGHT}AMQPMessage[...]")
    assert "arbitrary_types_allowed" not in fault


@pytest.mark.parametrize("type_", [Order, Point, Row, Frame])
def test_the_body_beside_the_message(type_: Any) -> None:
    """If the message and the body are separate parameters, the error says how to combine them."""

    async def handle(self: Any, message: AMQPMessage[Any], order: Any) -> None: ...

    handle.__annotations__["order"] = type_

    assert faults(handle) == [
        (
            "parameter 'order' has no provider; if it is the body: the first parameter takes it, "
            f"write AMQPMessage[{type_.__name__}]"
        )
    ]


@pytest.mark.parametrize("type_", [Opaque, int, list[int]])
def test_what_is_hardly_a_body_beside_the_message(type_: Any) -> None:
    """... but not for what can only come from the container."""

    async def handle(self: Any, message: AMQPMessage[Any], it: Any) -> None: ...

    handle.__annotations__["it"] = type_

    assert faults(handle) == ["parameter 'it' has no provider"]


def test_a_message_of_an_unknown_type() -> None:
    """... inside an `AMQPMessage` too."""

    async def handle(self: Any, body: AMQPMessage[Opaque]) -> None: ...

    assert "Opaque" in faults(handle)[0]


def test_a_name_that_is_not_there() -> None:
    """An annotation that cannot be resolved is a fault of the declaration."""

    async def handle(self: Any, body: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    [fault] = faults(handle)
    assert fault == "its annotations cannot be read: name 'Nowhere' is not defined"


@pytest.mark.parametrize("annotation", ["not a type", "inspect.Nothing", "list[", "1 / 0"])
def test_an_annotation_that_cannot_be_evaluated(annotation: str) -> None:
    """... and so is one that is not valid Python, or raises any exception."""
    [fault] = faults(handling(annotation))

    assert fault.startswith("its annotations cannot be read: ")


def test_no_parameter() -> None:
    """A `handle` without parameter takes no body, which is a fault."""

    async def handle(self: Any) -> None: ...

    assert faults(handle) == ["needs a parameter after self, which takes the body"]


@pytest.mark.parametrize(
    ("type_", "value"),
    [(list, {"id": 1}), (list[bytes], b'{"id": 1}'), (list[Order], Order(id=1))],
)
def test_a_list(type_: Any, value: object) -> None:
    """A list makes a batch; each item of it is read like a single body."""
    handle = handling(type_)

    plan = signature(handle)

    assert plan.batch
    assert plan.read(message(b'{"id": 1}')) == value


def test_a_list_of_messages() -> None:
    """A batch of messages has each with its body in it."""
    handle = handling(list[AMQPMessage[Order]])
    delivery = message(b'{"id": 1}')

    assert signature(handle).read(delivery) is delivery
    assert delivery.body == Order(id=1)


def test_a_message_beside_a_batch() -> None:
    """There is no one message that a further parameter could mean."""

    async def handle(self: Any, bodies: list[bytes], message: AMQPMessage[Any]) -> None: ...

    assert faults(handle) == [
        (
            "parameter 'message' is a single delivery, and a batch has many: annotate the first "
            "parameter with list[AMQPMessage[...]] instead"
        )
    ]


def test_a_generator() -> None:
    """A `handle` that yields would be acknowledged without having run."""

    async def handle(self: Any, body: bytes) -> AsyncIterator[int]:
        yield 1

    assert faults(handle) == ["is a generator; return instead of yielding"]


def test_the_body_must_not_be_keyword_only() -> None:
    """The body is passed by position."""

    async def handle(self: Any, *, body: bytes) -> None: ...

    assert faults(handle) == ["parameter 'body' takes the body and must not be keyword-only"]


def test_variadic_parameters() -> None:
    """Nothing can fill `*args` and `**kwargs`."""

    async def handle(self: Any, body: bytes, *args: int, **kwargs: int) -> None: ...

    assert faults(handle) == [
        "parameter 'args' cannot be filled; name each parameter instead",
        "parameter 'kwargs' cannot be filled; name each parameter instead",
    ]


def test_a_further_parameter_must_not_be_positional_only() -> None:
    """Further parameters are passed by name."""

    async def handle(self: Any, body: bytes, message: AMQPMessage[Any], /) -> None: ...

    assert faults(handle) == ["parameter 'message' must not be positional-only"]


def test_the_body_may_be_positional_only() -> None:
    """The first parameter may be."""

    async def handle(self: Any, body: bytes, /) -> None: ...

    assert body_of(handle) == b"x"


def body_of(handle: Callable[..., Any]) -> Any:
    """The body `x`, as `handle` gets it."""
    return body(handle, b"x")


def test_what_the_container_does_not_have() -> None:
    """A parameter that nothing fills is named with what the container says, all faults at once."""

    async def handle(self: Any, body: Opaque, orders: Order, other: int) -> None: ...

    _, orders, other = faults(handle)
    assert (orders, other) == (
        "parameter 'orders' has no provider",
        "parameter 'other' has no provider",
    )
