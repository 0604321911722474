"""What is said of classes that cannot be run, all of it at once, before any socket opens."""

import functools
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from dependency_injector import providers

from workerkit import (
    AMQPConsumer,
    Consumer,
    HTTPView,
    PeriodicTask,
    Queue,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.app.assembly import Assembly, assemble
from workerkit.errors import ConfigurationError, DeclarationError, StartError


class Good(AMQPConsumer):
    queues = ["good"]

    async def handle(self, body: bytes) -> None: ...


class Other(AMQPConsumer):
    queues = ["other"]

    async def handle(self, body: bytes) -> None: ...


def assembled(*classes: type[Consumer], only: Sequence[str] = (), **settings: Any) -> Assembly:
    """The application of these classes."""
    container: Any = WorkerContainer()
    container.settings.override(providers.Object(WorkerSettings(**settings)))
    # As if this file had these classes and no other, so that their places can be told.
    module = ModuleType(__name__)
    module.__file__ = __file__
    vars(module).update({class_.__qualname__: class_ for class_ in classes})
    with patch.dict(sys.modules, {__name__: module}):
        return assemble(container, [__name__], only)


def faults(*classes: type[Consumer], **settings: Any) -> list[str]:
    """Return the faults of these classes, beside a valid one."""
    with pytest.raises(StartError) as raised:
        assembled(Good, *classes, **settings)
    return list(raised.value.faults)


def test_what_is_good() -> None:
    """An assembly has the consumers by the transport that feeds them, and the settings."""
    assembly = assembled(Good, Other, shutdown_grace=3)

    [(transport, fed)] = assembly.transports
    assert transport.kind == "amqp"
    assert [each.consumer for each in fed] == [each.consumer for each in assembly.declared]
    assert [each.options.name for each in fed] == ["Good", "Other"]
    assert assembly.settings.shutdown_grace == 3


def test_no_handle() -> None:
    """A class without `handle` is named with its place."""

    class Empty(AMQPConsumer):
        queues = ["q"]

    [fault] = faults(Empty)

    assert ".Empty (test_assembly.py:" in fault
    assert fault.endswith("): needs a method `handle`")


def test_no_queues() -> None:
    """The fault of a class without `queues` has its place, and says to set them."""

    class Without(AMQPConsumer):
        async def handle(self, body: bytes) -> None: ...

    [fault] = faults(Without)

    assert ".Without (test_assembly.py:" in fault
    assert "queues" in fault


def test_every_bad_option_of_a_class() -> None:
    """Each bad option is a fault of its own, with the place of the class."""

    class Wrong(AMQPConsumer):
        concurrency = 0
        prefetch = "many"  # type: ignore[assignment]

        async def handle(self, body: bytes) -> None: ...

    found = faults(Wrong)

    assert all(".Wrong (test_assembly.py:" in fault for fault in found)
    assert [fault.partition("option ")[2].split()[0] for fault in found] == [
        "'concurrency'",
        "'prefetch'",
        "'queues'",
    ]


@pytest.mark.parametrize("handle", [None, 3, "handle"])
def test_a_handle_that_is_none(handle: Any) -> None:
    """A `handle` that is no function is a fault, not a crash."""
    broken = type("Broken", (AMQPConsumer,), {"queues": ["q"], "handle": handle})

    [fault] = faults(broken)

    assert "Broken" in fault
    assert "handle" in fault


class Called:
    """An object that can be called, and is not bound to an instance."""

    async def __call__(self, body: bytes) -> None: ...


@pytest.mark.parametrize("handle", [functools.partial(print), len, Called()])
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (AMQPConsumer, {"queues": ["q"]}),
        (SSEConsumer, {"url": "https://h/"}),
        (HTTPView, {"routes": ["/"]}),
        (PeriodicTask, {"every": 1}),
    ],
)
def test_fp9_a_handle_that_can_only_be_called(kind: Any, attributes: Any, handle: Any) -> None:
    """It is a fault on every kind of consumer, with the same sentence on each Python."""
    broken = type("Broken", (kind,), {"handle": handle, **attributes})

    [fault] = faults(broken)

    assert ".Broken: " in fault
    assert "is no method: write a `def`" in fault


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_a_handle_that_is_no_method(wrap: Any) -> None:
    """A static `handle` has no `self`: either it works as it is written, or it is a fault."""

    async def handle(body: bytes) -> None: ...

    broken = type("Broken", (AMQPConsumer,), {"queues": ["q"], "handle": wrap(handle)})

    [fault] = faults(broken)

    assert "handle" in fault


def test_the_same_name_twice() -> None:
    """Two classes of one name are both named, with their places and what to do."""

    class First(AMQPConsumer):
        name = "OrderPlaced"
        queues = ["q"]

        async def handle(self, body: bytes) -> None: ...

    class Second(AMQPConsumer):
        name = "order_placed"
        queues = ["q"]

        async def handle(self, body: bytes) -> None: ...

    [fault] = faults(First, Second)

    assert ".First (test_assembly.py:" in fault
    assert ".Second (test_assembly.py:" in fault
    assert "`name`" in fault


def test_hooks_that_are_not_async() -> None:
    """Hooks are awaited: one that is a plain function is named with its place."""

    class Hooked(AMQPConsumer):
        queues = ["q"]

        def on_start(self) -> None: ...  # type: ignore[override]

        def on_stop(self) -> None: ...  # type: ignore[override]

        def on_connection_error(  # type: ignore[override]
            self, error: Exception, attempt: int
        ) -> None: ...

        async def handle(self, body: bytes) -> None: ...

    found = faults(Hooked)

    assert [fault.partition(".Hooked.")[2].partition(" ")[0] for fault in found] == [
        "on_start",
        "on_stop",
        "on_connection_error",
    ]
    assert all(" (test_assembly.py:" in fault for fault in found)
    assert all(fault.endswith("): has to be an `async def`") for fault in found)


def test_a_hook_that_can_only_be_called() -> None:
    """A hook that has no name of its own is named by its class."""
    broken = type(
        "Broken",
        (AMQPConsumer,),
        {"queues": ["q"], "handle": lambda self, body: None, "on_start": functools.partial(print)},
    )

    assert any("functools.partial" in fault for fault in faults(broken))


def test_a_hook_that_is_none() -> None:
    """A hook that is no function is named with its class."""
    [fault] = faults(type("Broken", (Good,), {"name": "Broken", "on_start": None}))

    assert ".Broken" in fault
    assert fault.endswith(": on_start is None: it has to be an `async def`")


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_that_is_none(name: Any) -> None:
    """A name must be a text that is not empty."""
    broken = type("Broken", (Good,), {"name": name})

    [fault] = faults(broken)

    assert "option 'name' is" in fault


def test_the_same_queue_twice() -> None:
    """A queue that is listed twice in `queues` is an error."""
    broken = type("Broken", (Good,), {"queues": ["a", "b", Queue("a")]})

    [fault] = faults(broken)

    assert fault.endswith("queue 'a' is listed twice in queues")


def reading(name: str, queue: str | Queue, **attributes: Any) -> type[Consumer]:
    """A class that reads this queue."""

    async def handle(self: Any, body: bytes) -> None: ...

    return type(name, (AMQPConsumer,), {"queues": [queue], "handle": handle, **attributes})


def test_a_queue_that_two_classes_declare_differently() -> None:
    """Only one of them would have its way, so both are named, with what differs."""
    quorum = Queue("a", "quorum", max_length=5)

    [fault] = faults(reading("First", "a"), reading("Second", quorum))

    assert fault == (
        f"{__name__}.Second and {__name__}.First declare queue 'a' differently: "
        "type is 'quorum' and None, max_length is 5 and None; write the same Queue in both"
    )


def test_the_same_queue_in_two_classes() -> None:
    """The same declaration, another virtual host, what only reading needs: nothing contradicts."""
    stream = Queue("s", "stream")

    assembled(
        reading("First", Queue("a", "quorum")),
        reading("Second", Queue("a", "quorum")),
        reading("Third", "a", vhost="other"),
        reading("Fourth", "a", declare="never"),
        reading("Fifth", stream),
        reading("Sixth", Queue("s", "stream", stream_offset="first")),
    )


def test_a_queue_whose_dead_letters_have_no_name() -> None:
    """A name must leave room for that of the dead letters."""
    broken = type("Broken", (Good,), {"queues": ["x" * 252]})

    [fault] = faults(broken)

    assert "Broken" in fault
    assert "is too long to append '.dlq'" in fault
    assert assembled(type("Fine", (Good,), {"queues": ["x" * 251]})).declared


def test_an_unknown_connection() -> None:
    """A connection that the settings do not have is named with those they have."""
    broken = type("Broken", (Good,), {"connection": "secondary"})

    [fault] = faults(broken, amqp={"third": {"url": "amqp://h/"}})

    assert "Broken" in fault
    assert "'secondary'" in fault
    assert "default, third" in fault


@pytest.mark.parametrize("whole", ["none", '{"delays": [2]}'])
def test_parts_of_an_option_beside_the_whole(monkeypatch: pytest.MonkeyPatch, whole: str) -> None:
    """The whole one wins, so what the others say would be lost without a word."""
    name = "WORKERKIT_CONSUMERS__OTHER__RETRY"
    monkeypatch.setenv(name, whole)
    monkeypatch.setenv(f"{name}__DELAYS", "1")

    assert faults(Other) == [f"{name}__DELAYS has no effect beside {name}: keep one"]


def test_a_class_that_no_transport_feeds() -> None:
    """A class of another base is a fault, with the bases there are."""

    class Lost(Consumer):
        async def handle(self, body: bytes) -> None: ...

    [fault] = faults(Lost)

    assert "Lost" in fault
    assert fault.endswith("subclass one of AMQPConsumer, HTTPView, SSEConsumer, PeriodicTask")


def test_everything_at_once() -> None:
    """Options, constructor and `handle` of one class, and those of another, are faults together."""

    class Terrible(AMQPConsumer):
        queues = "orders"

        def __init__(self, nothing: int) -> None: ...

        async def handle(self, body, *more: int) -> None:  # type: ignore[no-untyped-def]
            ...

    class Bad(AMQPConsumer):
        queues = []

        async def handle(self, body: bytes) -> None: ...

    found = faults(Terrible, Bad)

    assert len(found) == 5
    assert all(" (test_assembly.py:" in fault for fault in found)


def test_faults_of_one_kind() -> None:
    """Faults of classes are a `DeclarationError`, of the settings a `ConfigurationError`."""
    with pytest.raises(DeclarationError):
        assembled(type("Broken", (Good,), {"queues": []}))
    with pytest.raises(ConfigurationError):
        assembled(Good, consumers={"good": {"concurrency": "many"}})


def test_faults_of_both_kinds() -> None:
    """... and of both at once a `StartError` with all of them."""
    broken = type("Broken", (Good,), {"queues": []})

    found = faults(broken, consumers={"good": {"concurrency": "many"}})

    assert len(found) == 2


@pytest.mark.parametrize("asked", ["Other", "other", "OTHER", "o_t_h_e_r"])
def test_only(asked: str) -> None:
    """One may ask for some consumers, in any spelling."""
    assembly = assembled(Good, Other, only=[asked])

    assert [each.consumer for each in assembly.declared] == [Other]


def test_only_twice() -> None:
    """Asking twice for a consumer runs it once."""
    assert len(assembled(Good, Other, only=["Other", "other"]).declared) == 1
