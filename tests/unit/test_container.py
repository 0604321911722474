"""What a container brings, and how its resources are opened and closed."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers
from pydantic_settings import SettingsConfigDict

from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    CursorStore,
    DeclarationError,
    HTTPView,
    PeriodicTask,
    Publisher,
    RunError,
    Runner,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.container import Resources
from workerkit.signature import given


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")


class Journal:
    """Writes down what is opened and closed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def resource(self, name: str, *, fails: str = "") -> Any:
        """A function for a synchronous resource."""

        def opened(**needs: Any) -> Iterator[str]:
            self.lines.append(f"open {name} {' '.join(needs.values())}".strip())
            if fails == "opening":
                raise OSError(name)
            yield name
            self.lines.append(f"close {name}")
            if fails == "closing":
                raise OSError(name)

        return opened

    def later(self, name: str, *, fails: str = "") -> Any:
        """A function for an asynchronous resource."""

        async def opened(**needs: Any) -> AsyncIterator[str]:
            await asyncio.sleep(0)
            self.lines.append(f"open {name} {' '.join(needs.values())}".strip())
            if fails == "opening":
                raise OSError(name)
            yield name
            await asyncio.sleep(0)
            self.lines.append(f"close {name}")
            if fails == "closing":
                raise OSError(name)

        return opened


@pytest.fixture
def journal() -> Journal:
    return Journal()


def container(**made: Any) -> Any:
    """A container with these providers."""
    found = containers.DynamicContainer()
    found.set_providers(**made)
    return found


def test_what_it_brings() -> None:
    """Settings, publisher, observers, cursors and transports, none of which needs another."""
    made = WorkerContainer()

    assert isinstance(made.settings(), WorkerSettings)
    assert isinstance(made.publisher(), Publisher)
    assert list(made.transports()) == [AMQPConsumer, HTTPView, SSEConsumer, PeriodicTask]
    assert len(made.observers()) == 1
    assert isinstance(made.cursors(), CursorStore)
    for provider in (made.settings, made.publisher, made.observers, made.cursors, made.transports):
        assert not set(made.providers.values()) & set(provider.related)


def test_settings_of_a_subclass() -> None:
    """A subclass replaces the settings, and nothing else."""

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)

    made = Container()

    assert type(made.settings()) is Settings
    assert made.settings() is made.settings()
    assert isinstance(made.publisher(), Publisher)


def test_containers_do_not_share_instances() -> None:
    """Two containers of one class have publishers and transports of their own."""
    one, two = WorkerContainer(), WorkerContainer()

    assert one.publisher() is not two.publisher()
    assert one.transports()[AMQPConsumer] is not two.transports()[AMQPConsumer]


async def test_what_is_needed_is_opened_first(journal: Journal) -> None:
    """Resources open after those they depend on, for any names, and close in reverse order."""
    first = providers.Resource(journal.resource("first"))
    second = providers.Resource(journal.later("second"), needs=first)
    third = providers.Resource(journal.resource("third"), needs=second)
    resources = Resources(container(a=third, b=second, c=first))

    await resources.open()
    opened = list(journal.lines)
    faults = await resources.close(1.0)

    assert opened == ["open first", "open second first", "open third second"]
    assert journal.lines[3:] == ["close third", "close second", "close first"]
    assert faults == {}


async def test_resources_behind_other_providers(journal: Journal) -> None:
    """A resource counts although only another provider holds it, and a way leads through others."""
    hidden = providers.Resource(journal.resource("hidden"))
    through = providers.Factory(str, hidden)
    outer = providers.Resource(journal.resource("outer"), needs=through)
    resources = Resources(container(outer=outer))

    await resources.open()
    await resources.close(1.0)

    assert journal.lines == ["open hidden", "open outer hidden", "close outer", "close hidden"]


async def test_resources_of_a_nested_container(journal: Journal) -> None:
    """The resources of a container inside the container are opened and closed as well."""

    class Inner(containers.DeclarativeContainer):
        inner = providers.Resource(journal.later("inner"))

    class Outer(WorkerContainer):
        gateways = providers.Container(Inner)
        outer = providers.Resource(journal.resource("outer"), needs=gateways.inner)

    resources = Resources(Outer())

    await resources.open()
    await resources.close(1.0)

    assert journal.lines == ["open inner", "open outer inner", "close outer", "close inner"]


@pytest.mark.parametrize("kind", ["resource", "later"])
async def test_one_that_fails_to_open(journal: Journal, kind: str) -> None:
    """The one that fails is named; those before it are open and can be closed."""
    first = providers.Resource(journal.later("first"))
    second = providers.Resource(getattr(journal, kind)("second", fails="opening"), needs=first)
    third = providers.Resource(journal.resource("third"), needs=second)
    resources = Resources(container(first=first, second=second, third=third))

    with pytest.raises(RunError, match=r"^resource 'second' could not be opened: OSError: second$"):
        await resources.open()
    faults = await resources.close(1.0)

    assert journal.lines == ["open first", "open second first", "close first"]
    assert faults == {}


@pytest.mark.parametrize("kind", ["resource", "later"])
async def test_one_that_fails_to_close(
    journal: Journal, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that fails is named and logged, and the others are closed all the same."""
    first = providers.Resource(journal.resource("first"))
    second = providers.Resource(getattr(journal, kind)("second", fails="closing"), needs=first)
    third = providers.Resource(journal.later("third"), needs=second)
    resources = Resources(container(first=first, second=second, third=third))

    await resources.open()
    faults = await resources.close(1.0)

    assert journal.lines[3:] == ["close third", "close second", "close first"]
    assert faults == {"resource 'second'": "OSError: second"}
    [record] = caplog.records
    assert (record.levelname, vars(record)["what"]) == ("ERROR", "resource 'second'")


@pytest.mark.parametrize("overriding", ["object", "resource", "later"])
async def test_an_overridden_resource(journal: Journal, overriding: str) -> None:
    """What overrides a resource is opened in its place, if it is a resource itself."""
    real = providers.Resource(journal.resource("real"))
    made = container(real=real)
    fake = (
        providers.Object("fake")
        if overriding == "object"
        else providers.Resource(getattr(journal, overriding)("fake"))
    )
    made.real.override(fake)
    resources = Resources(made)

    await resources.open()
    value = made.real()
    if inspect.isawaitable(value):
        value = await value
    await resources.close(1.0)

    assert value == "fake"
    assert journal.lines == ([] if overriding == "object" else ["open fake", "close fake"])


async def test_closing_twice(journal: Journal) -> None:
    """A closed resource is not closed again, and can be opened again."""
    resources = Resources(container(first=providers.Resource(journal.resource("first"))))

    await resources.open()
    await resources.close(1.0)
    await resources.close(1.0)
    await resources.open()
    await resources.close(1.0)

    assert journal.lines == ["open first", "close first"] * 2


async def test_cancelled_while_opening(journal: Journal) -> None:
    """Cancelling the start leaves what was open, to be closed."""

    async def hanging(**needs: Any) -> AsyncIterator[str]:
        journal.lines.append("hanging")
        await asyncio.Event().wait()
        yield "never"

    first = providers.Resource(journal.later("first"))
    second = providers.Resource(hanging, needs=first)
    resources = Resources(container(first=first, second=second))

    opening = asyncio.create_task(resources.open())
    await eventually(lambda: "hanging" in journal.lines)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    faults = await resources.close(1.0)

    assert journal.lines == ["open first", "hanging", "close first"]
    assert faults == {}


async def test_cancelled_while_a_provider_waits() -> None:
    """What was waited for is created later, and nothing is logged about it."""
    opened = asyncio.Event()

    async def open_engine() -> AsyncIterator[str]:
        await opened.wait()
        yield "engine"

    class Container(WorkerContainer):
        engine = providers.Resource(open_engine)
        sessions: "providers.Provider[list[str]]" = providers.Singleton(list, engine)

    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    container = Container()
    waiting = asyncio.create_task(given(container.sessions()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    opened.set()

    assert await given(container.sessions()) == [*"engine"]
    assert (waiting.cancelled(), reported) == (True, [])


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("interceptors", [print], "List"),
        ("codecs", [print], "List"),
        ("observers", (print,), "List"),
        ("redact", str.upper, "Object"),
        ("settings", 3, "Singleton"),
        ("extra_transports", {}, "Dict"),
    ],
)
@pytest.mark.parametrize("of", ["class", "instance"])
def test_a_plain_value_in_place_of_a_provider(
    name: str, value: object, right: str, of: str
) -> None:
    """It is a fault at the start, because dependency_injector would ignore it."""
    if of == "class":
        container = type("Plain", (WorkerContainer,), {name: value})()
    else:
        container = WorkerContainer()
        setattr(container, name, value)
    kind = type(value).__qualname__
    with pytest.raises(DeclarationError) as raised:
        Runner(container, packages=[]).assemble()
    fault = f"{name} is of type {kind}, not a provider, and would be ignored: write {name} = "
    [found] = [each for each in raised.value.faults if name in each]
    assert found.endswith(f": {fault}providers.{right}(...)")
