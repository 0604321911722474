"""Return values of `handle`: views and AMQP consumers send them; elsewhere they are a mistake."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, Never, NoReturn, TypeVar

import pytest
from pydantic import BaseModel

from tests.application import package_of
from tests.unit.test_endpoint import endpoint, message
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    DeclarationError,
    HTTPView,
    PeriodicTask,
    Runner,
    SSEConsumer,
    WorkerContainer,
)

T = TypeVar("T")


def checked(*consumers: Any) -> list[str]:
    """Return the faults of an application of these classes."""
    try:
        Runner(WorkerContainer(), packages=[package_of(*consumers)]).assemble()
    except DeclarationError as error:
        return list(error.faults)
    return []


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the messages that were logged at WARNING."""
    return [each for each in caplog.records if each.levelno == logging.WARNING]


async def _amqp(self: Any, body: bytes) -> int:
    return 1


async def _batch(self: Any, bodies: list[bytes]) -> list[int]:
    return [1]


class Answer(BaseModel):
    text: str


async def _model(self: Any, body: bytes) -> Answer:
    return Answer(text="")


async def _tick(self: Any) -> str | None:
    return None


@pytest.mark.parametrize(
    ("kind", "attributes", "returned", "advice"),
    [
        (
            AMQPConsumer,
            {"queues": ["q"], "handle": _batch},
            "list[int]",
            "write -> None; a batch has no single sender to reply to",
        ),
        (SSEConsumer, {"url": "https://h/", "handle": _amqp}, "int", "write -> None"),
        (SSEConsumer, {"url": "https://h/", "handle": _model}, "Answer", "write -> None"),
        (PeriodicTask, {"every": 1.0, "handle": _tick}, "str | None", "write -> None"),
    ],
)
def test_fp3_a_return_annotation_is_a_fault_at_start(
    kind: Any, attributes: dict[str, Any], returned: str, advice: str
) -> None:
    """Where nothing reads it; with file, line and what is expected."""
    [fault] = checked(type("Each", (kind,), attributes))

    assert "(test_return_values.py:" in fault
    assert fault.endswith(f": returns {returned}, and nothing reads what handle returns: {advice}")


def test_fp3_views_return_responses() -> None:
    """A view may return any value."""

    class Hello(HTTPView):
        routes = ["/"]

        async def handle(self) -> dict[str, int]:
            return {"a": 1}

    assert checked(Hello) == []


async def _none(self: Any, body: bytes) -> None: ...
async def _missing(self: Any, body: bytes): ...  # type: ignore[no-untyped-def]
async def _never(self: Any, body: bytes) -> Never:
    raise KeyError


async def _noreturn(self: Any, body: bytes) -> NoReturn:
    raise KeyError


async def _any(self: Any, body: bytes) -> Any: ...
def _sync_awaitable(self: Any, body: bytes) -> Awaitable[None]:
    return asyncio.sleep(0)


def _sync_coroutine(self: Any, body: bytes) -> Coroutine[Any, Any, None]:
    return asyncio.sleep(0)


@pytest.mark.parametrize(
    "handle", [_none, _missing, _never, _noreturn, _any, _sync_awaitable, _sync_coroutine]
)
def test_fp3_nothing_is_returned(handle: Callable[..., Any]) -> None:
    """None, no annotation, and an awaitable of None are right."""
    assert checked(type("Each", (AMQPConsumer,), {"queues": ["q"], "handle": handle})) == []


def _sync_awaitable_int(self: Any, body: bytes) -> Awaitable[int]:
    raise KeyError


async def _async_awaitable(self: Any, body: bytes) -> Awaitable[None]:
    raise KeyError


async def _text(self: Any, body: bytes) -> "int | None": ...


@pytest.mark.parametrize(
    ("handle", "returned"),
    [
        (_sync_awaitable_int, "int"),
        (_async_awaitable, "Awaitable[None]"),
        (_text, "int | None"),
    ],
)
def test_fp3_something_is_returned(handle: Callable[..., Any], returned: str) -> None:
    """The awaited type is checked, also for annotations in quotes."""
    [fault] = checked(type("Each", (SSEConsumer,), {"url": "https://h/", "handle": handle}))

    assert f": returns {returned}, and nothing reads" in fault


class _Opaque:
    """A class that nobody can write as JSON."""


async def _opaque(self: Any, body: bytes) -> _Opaque:
    raise KeyError


async def _opaque_or_none(self: Any, body: bytes) -> list[_Opaque] | None: ...


def test_fp3_an_amqp_consumer_returns_replies() -> None:
    """Any type that a body can have is allowed."""
    handles = [_amqp, _model, _sync_awaitable_int, _text]
    classes = [
        type(f"Each{place}", (AMQPConsumer,), {"queues": [f"q{place}"], "handle": handle})
        for place, handle in enumerate(handles)
    ]

    assert checked(*classes) == []


@pytest.mark.parametrize("handle", [_opaque, _opaque_or_none, _async_awaitable])
def test_fp3_a_reply_that_cannot_be_encoded_is_a_fault_at_start(handle: Any) -> None:
    """The fault names the method, the type and what would be right."""
    [fault] = checked(type("Each", (AMQPConsumer,), {"queues": ["q"], "handle": handle}))

    assert "test_return_values." in fault
    assert "(test_return_values.py:" in fault
    assert ": returns " in fault
    assert "no type of a body: write bytes, str, a pydantic model" in fault


def test_fp3_a_type_variable() -> None:
    """The type argument of a subclass is checked."""

    class Base(SSEConsumer, Generic[T], abstract=True):
        async def handle(self, body: bytes) -> T:
            raise KeyError

    class Right(Base[None]):
        url = "https://a/"

    class Wrong(Base[int]):
        url = "https://b/"

    [fault] = checked(Right, Wrong)
    assert ": returns int, and" in fault


def _generator(self: Any, body: bytes) -> Iterator[None]:
    yield


async def _async_generator(self: Any, body: bytes) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("handle", [_generator, _async_generator])
def test_fp3_a_generator_is_one_fault(handle: Callable[..., Any]) -> None:
    """It is reported once, as a generator."""
    [fault] = checked(type("Each", (AMQPConsumer,), {"queues": ["q"], "handle": handle}))

    assert fault.endswith("is a generator; return instead of yielding")


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_fp3_a_returned_value_is_one_warning(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an annotation, the first value is a WARNING, without the value itself."""

    async def later(self: object, body: int):  # type: ignore[no-untyped-def]
        return "secret"

    def now(self: object, body: int):  # type: ignore[no-untyped-def]
        return "secret"

    each = endpoint(later if asynchronous else now)
    outcomes = [await each.process(message()) for _ in range(3)]
    await each.stop()

    [record] = warnings(caplog)
    assert record.getMessage() == "value returned by handle is ignored"
    assert vars(record)["consumer"] == "Each"
    assert vars(record)["type"] == "str"
    assert "secret" not in str(vars(record))
    assert [each.action for each in outcomes] == [Action.ACK] * 3


async def test_fp3_a_value_of_a_batch_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The same for a `handle` that takes a list."""

    async def handle(self: object, bodies: list[int]):  # type: ignore[no-untyped-def]
        return len(bodies)

    each = endpoint(handle)
    for _ in range(2):
        await each.process_batch([message(), message()])
    await each.stop()

    assert len(warnings(caplog)) == 1


async def test_fp3_a_forgotten_await_is_a_failure() -> None:
    """The coroutine has done nothing, so the delivery is not acknowledged."""

    async def work(body: int) -> None: ...

    async def handle(self: object, body: int):  # type: ignore[no-untyped-def]
        return work(body)

    outcome = await endpoint(handle).process(message())

    assert outcome.action is Action.REQUEUE
    assert str(outcome.error) == "Each: handle returned a coroutine without awaiting it"


async def test_fp3_a_batch_with_a_forgotten_await_is_a_failure() -> None:
    """The same for a `handle` that takes a list."""

    async def work(bodies: list[int]) -> None: ...

    async def handle(self: object, bodies: list[AMQPMessage[int]]):  # type: ignore[no-untyped-def]
        return work([each.body for each in bodies])

    [outcome] = await endpoint(handle).process_batch([message()])

    assert outcome.action is Action.REQUEUE
