"""Call parameters are entered, or refused at start: never a raw generator or manager."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Self

import pytest
from dependency_injector import containers, providers

from tests.application import package_of
from workerkit import (
    AMQPConsumer,
    DeclarationError,
    HTTPView,
    PeriodicTask,
    Runner,
    SSEConsumer,
    WorkerContainer,
)
from workerkit.signature import ArgumentSource, provided
from workerkit.testing import override


class Session:
    """What a call gets."""


async def generator() -> AsyncIterator[Session]:
    """What FastAPI would enter."""
    yield Session()


def plain_generator() -> Iterator[Session]:
    """The same, not asynchronous."""
    yield Session()


manager = asynccontextmanager(generator)
plain_manager = contextmanager(plain_generator)


class Manager(Session):
    """Entered asynchronously."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...


class PlainManager(Session):
    """Entered by `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class Both(Manager, PlainManager):
    """Entered either way."""


async def makes() -> Manager:
    """A function that gives a context manager."""
    return Manager()


OPTIONS: dict[Any, dict[str, Any]] = {
    AMQPConsumer: {"queues": ["q"]},
    SSEConsumer: {"url": "https://h/"},
    HTTPView: {"routes": ["/"]},
    PeriodicTask: {"every": 1.0},
}


def checked(provider: Any, type_: Any = Session, kind: Any = AMQPConsumer) -> list[str]:
    """The faults of a consumer that takes *provider* as its `session`, per call."""
    body: dict[str, Any] = {} if kind in (HTTPView, PeriodicTask) else {"body": bytes}
    source = f"async def handle(self, {'body, ' if body else ''}session): ..."
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    handle = namespace["handle"]
    handle.__annotations__ = {**body, "session": type_, "return": None}
    options = OPTIONS[kind]
    return _faults(provider, type("Each", (kind,), {"handle": handle, **options}))


def constructed(provider: Any, type_: Any = Session) -> list[str]:
    """The faults of a consumer whose constructor takes *provider*."""

    class Each(AMQPConsumer):
        queues = ["q"]

        def __init__(self, session: Any) -> None: ...

        async def handle(self, body: bytes) -> None: ...

    Each.__init__.__annotations__["session"] = type_
    return _faults(provider, Each)


def _faults(provider: Any, consumer: Any) -> list[str]:
    container: containers.Container = WorkerContainer()
    container.set_providers(session=provider)
    try:
        Runner(container, packages=[package_of(consumer)]).assemble()
    except DeclarationError as error:
        return list(error.faults)
    return []


@pytest.mark.parametrize(
    ("provider", "raw", "right"),
    [
        (
            providers.Factory(generator),
            "whose asynchronous generator tests.unit.test_entering.generator (test_entering.py:",
            "decorate it with asynccontextmanager",
        ),
        (providers.Callable(generator), "asynchronous generator", "asynccontextmanager"),
        (providers.Singleton(generator), "asynchronous generator", "asynccontextmanager"),
        (
            providers.Factory(plain_generator),
            "whose generator tests.unit.test_entering.plain_generator",
            "make it an `async def` and decorate it with asynccontextmanager",
        ),
        (
            providers.Factory(plain_manager),
            "whose context manager tests.unit.test_entering.plain_generator",
            "decorate an `async def` with asynccontextmanager",
        ),
        (providers.Singleton(plain_manager), "is not asynchronous", "asynccontextmanager"),
        (
            providers.Factory(PlainManager),
            "whose context manager tests.unit.test_entering.PlainManager",
            "provide an `async def` decorated with asynccontextmanager that enters it",
        ),
        (
            providers.Singleton(manager),
            "would not be entered because it is shared",
            "write providers.Factory(generator)",
        ),
        (
            providers.Singleton(Manager),
            "whose context manager tests.unit.test_entering.Manager",
            "write providers.Factory(Manager) to enter one for each call, or take it in __init__",
        ),
        (providers.ThreadSafeSingleton(Manager), "because it is shared", "Factory(Manager)"),
    ],
)
@pytest.mark.parametrize("kind", [AMQPConsumer, SSEConsumer, HTTPView, PeriodicTask])
def test_fp13_what_would_not_be_entered_is_a_fault(
    provider: Any, raw: str, right: str, kind: Any
) -> None:
    """Each kind of consumer says what would be passed raw, where it stands, and what to write."""
    [fault] = checked(provider, kind=kind)

    assert f": parameter 'session' is filled by provider 'session', a {_kind(provider)}, " in fault
    assert raw in fault
    assert right in fault


def _kind(provider: Any) -> str:
    return type(provider).__name__


@pytest.mark.parametrize(
    ("provider", "type_"),
    [
        (providers.Factory(manager), Session),
        (providers.Callable(manager), Session),
        (providers.Factory(Manager), Session),
        (providers.Factory(Both), Session),
        (providers.Coroutine(makes), Session),
        (providers.Resource(generator), Session),
        (providers.Singleton(Session), Session),
        (providers.Object(Manager()), Session),
        # Shared, and entered by who takes it.
        (providers.Singleton(asyncio.Lock), asyncio.Lock),
        (providers.Singleton(asyncio.Semaphore, 3), asyncio.Semaphore),
        (providers.Singleton(threading.Condition), threading.Condition),
        (providers.Singleton(ThreadPoolExecutor), ThreadPoolExecutor),
        # Raw, and wanted so.
        (providers.Factory(plain_generator), Iterator[Session]),
        (providers.Factory(generator), AsyncIterator[Session]),
        (providers.Factory(plain_manager), AbstractContextManager[Session]),
        (providers.Singleton(manager), AbstractAsyncContextManager[Session]),
    ],
)
def test_fp13_what_is_right_is_no_fault(provider: Any, type_: Any) -> None:
    """What is entered, what is shared by intent, and what is annotated as it is given."""
    assert checked(provider, type_) == []


@pytest.mark.parametrize("given", [generator, plain_generator])
def test_fp13_a_constructor_gets_no_raw_generator(given: Callable[..., Any]) -> None:
    """A generator would never run; a Resource opens it once."""
    [fault] = constructed(providers.Singleton(given))

    assert "would be passed as it is" in fault
    assert fault.endswith("or write providers.Resource to open it once per process")


@pytest.mark.parametrize(
    "provider",
    [providers.Singleton(Manager), providers.Factory(PlainManager), providers.Resource(generator)],
)
def test_fp13_a_constructor_may_share_a_context_manager(provider: Any) -> None:
    """What a constructor takes is not entered, and is told so by the documentation."""
    assert constructed(provider) == []


def test_fp13_an_iterator_may_be_what_a_constructor_wants() -> None:
    """Numbers that a generator counts, for instance."""
    assert constructed(providers.Singleton(plain_generator), Iterator[Session]) == []


def test_fp13_a_replaced_provider_is_the_one_that_counts() -> None:
    """In a test, the fake that takes the place of a provider is looked at."""
    container: Any = WorkerContainer()
    container.set_providers(session=providers.Factory(manager))

    class Each(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: bytes, session: Session) -> None: ...

    runner = Runner(container, packages=[package_of(Each)])
    generators = override(container, session=providers.Factory(generator))
    with generators, pytest.raises(DeclarationError, match="asynchronous generator"):
        runner.assemble()
    with override(container, session=Session()):
        runner.assemble()


@pytest.mark.parametrize("given", [generator, plain_generator])
async def test_fp13_a_generator_that_only_the_call_shows_fails_the_call(
    given: Callable[..., Any],
) -> None:
    """A Selector or a function that returns one is found when it is called: `handle` is not."""
    with pytest.raises(TypeError, match="'session' is a generator"):
        async with provided({"session": ArgumentSource(given, per_call=True)}):
            pytest.fail("entered")
