"""The rules of construction: what fills which parameter, and what is said where nothing does."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Protocol

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide

from tests.unit import postponed
from workerkit import Publisher, WorkerContainer, WorkerSettings
from workerkit.app.injection import Injector
from workerkit.errors import DeclarationError
from workerkit.signature import Unresolved


class Pool:
    """Something that connects."""


class Repository:
    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool


class Special(Repository):
    """A kind of repository."""


class Clock(Protocol):
    def now(self) -> float: ...


def open_pool() -> Iterator[Pool]:
    yield Pool()


async def open_pool_later() -> AsyncIterator[Pool]:
    yield Pool()


def make_repository() -> Repository:
    return Repository()


class Container(WorkerContainer):
    pool = providers.Resource(open_pool)
    orders = providers.Singleton(Repository, pool=pool)
    name = providers.Object("shop")
    nested: Any = providers.Container(containers.DynamicContainer)


def made(class_: type, container: Any = None) -> Any:
    """An instance of a class, from a container."""
    return Injector(container or Container()).factory(class_)()


def faults(class_: type, container: Any = None) -> list[str]:
    """Return the fault of a class that cannot be created, without its place."""
    with pytest.raises(DeclarationError) as raised:
        Injector(container or Container()).factory(class_)
    start = f"{__name__}.{class_.__qualname__}.__init__ (test_injection.py:"
    assert all(fault.startswith(start) for fault in raised.value.faults)
    return [fault.split("): ", 1)[1] for fault in raised.value.faults]


def test_no_constructor() -> None:
    """A class without a constructor needs nothing."""

    class Plain: ...

    assert isinstance(made(Plain), Plain)


def test_by_name() -> None:
    """A parameter gets the provider of its name, whatever its annotation."""

    class Wants:
        def __init__(self, orders: object, name: str) -> None:
            self.got = orders, name

    container = Container()

    assert made(Wants, container).got == (container.orders(), "shop")


def test_by_name_without_annotation() -> None:
    """... or even if it has none."""

    class Wants:
        def __init__(self, orders) -> None:  # type: ignore[no-untyped-def]
            self.got = orders

    assert isinstance(made(Wants).got, Repository)


def test_by_type() -> None:
    """A parameter of another name gets the only provider of its type."""

    class Wants:
        def __init__(self, repository: Repository, options: WorkerSettings, bus: Publisher) -> None:
            self.got = repository, options, bus

    container = Container()

    assert made(Wants, container).got == (
        container.orders(),
        container.settings(),
        container.publisher(),
    )


@pytest.mark.parametrize(
    "type_", [Repository, Repository | None, Annotated[Repository, "note"], "Repository"]
)
def test_every_way_to_write_a_type(type_: Any) -> None:
    """Optional, annotated and postponed types are the type itself."""

    class Wants:
        def __init__(self, repository: Any) -> None:
            self.got = repository

    Wants.__init__.__annotations__["repository"] = type_

    assert isinstance(made(Wants).got, Repository)


def test_postponed_annotations() -> None:
    """`from __future__ import annotations` changes nothing."""

    class Own(WorkerContainer):
        it = providers.Singleton(postponed.Repository)

    assert isinstance(made(postponed.Wants, Own()).repository, postponed.Repository)


@pytest.mark.parametrize(
    "provider",
    [
        providers.Singleton(Special),
        providers.Factory(Special),
        providers.ThreadSafeSingleton(Special),
        providers.Singleton(make_repository),
        providers.Callable(make_repository),
        providers.Object(Special()),
    ],
)
def test_the_type_of_a_provider(provider: Any) -> None:
    """The type of a provider is that of the class it makes, or what its function returns."""

    class Own(WorkerContainer):
        special = provider

    class Wants:
        def __init__(self, repository: Repository) -> None:
            self.got = repository

    assert isinstance(made(Wants, Own()).got, Repository)


@pytest.mark.parametrize("opens", [open_pool, open_pool_later])
async def test_the_type_of_a_resource(opens: Any) -> None:
    """The type of a resource is what it yields; an asynchronous one gives a future."""

    class Own(WorkerContainer):
        it = providers.Resource(opens)

    class Wants:
        def __init__(self, connections: Pool) -> None:
            self.got = connections

    container = Own()
    wants = made(Wants, container)
    if inspect.isawaitable(wants):
        wants = await wants

    assert isinstance(wants.got, Pool)
    closing = container.shutdown_resources()
    if inspect.isawaitable(closing):
        await closing


def test_name_before_type() -> None:
    """The provider of the name wins over the only one of the type."""

    class Own(WorkerContainer):
        special = providers.Singleton(Special)
        first = providers.Object("by name")

    class Wants:
        def __init__(self, first: Special) -> None:
            self.got = first

    assert made(Wants, Own()).got == "by name"


def test_type_before_default() -> None:
    """The only provider of the type wins over the default."""

    class Wants:
        def __init__(self, repository: Repository | None = None) -> None:
            self.got = repository

    assert isinstance(made(Wants).got, Repository)


def test_default() -> None:
    """A parameter that nothing fills keeps its default."""

    class Wants:
        def __init__(self, size: int = 3, *, label: str = "x", clock: Clock | None = None) -> None:
            self.got = size, label, clock

    container = containers.DynamicContainer()

    assert made(Wants, container).got == (3, "x", None)


def test_an_ambiguous_type_with_a_default() -> None:
    """Where two providers have the type, the default is as good as any."""

    class Own(WorkerContainer):
        one = providers.Singleton(Repository)
        two = providers.Singleton(Repository)

    class Wants:
        def __init__(self, repository: Repository | None = None) -> None:
            self.got = repository

    assert made(Wants, Own()).got is None


def test_an_ambiguous_type() -> None:
    """Where two providers have the type, both are named, and the two ways out."""

    class Own(WorkerContainer):
        one = providers.Singleton(Repository)
        two = providers.Singleton(Special)

    class Wants:
        def __init__(self, repository: Repository) -> None: ...

    [fault] = faults(Wants, Own())
    assert fault == (
        "parameter 'repository' has no provider of its name, and 2 of type Repository: one, two; "
        "name it like one of them, or mark it with Provide[...]"
    )


def test_the_more_special_type_is_not_ambiguous() -> None:
    """Of two providers only that of the more special type fits a parameter of this type."""

    class Own(WorkerContainer):
        one = providers.Singleton(Repository)
        two = providers.Singleton(Special)

    class Wants:
        def __init__(self, it: Special) -> None:
            self.got = it

    assert type(made(Wants, Own()).got) is Special


def test_nothing_fits() -> None:
    """What the container has is listed, for each parameter that nothing fills."""

    class Wants:
        def __init__(self, clock: Clock, size: int, orders: Repository) -> None: ...

    clock, size = faults(Wants)
    known = (
        "codecs, cursors, extra_transports, interceptors, middlewares, name, nested, observers,"
        " orders, pool, publisher, redact, settings, transports"
    )
    assert clock == (
        "parameter 'clock' has no provider of its name or of type Clock; the container has " + known
    )
    assert size.startswith("parameter 'size' has no provider of its name or of type int")


def test_nothing_fits_but_one_has_nearly_that_name() -> None:
    """For a misspelt name the error suggests the nearest one."""

    class Wants:
        def __init__(self, ordrs: object) -> None: ...

    [fault] = faults(Wants)
    assert "of type object; did you mean 'orders'? The container has codecs, cursors, " in fault


def test_any_type_fits_nothing() -> None:
    """`object` and `Any` are no types that a provider could be chosen by."""

    class Wants:
        def __init__(self, one: object, two: Any) -> None: ...

    assert len(faults(Wants)) == 2


def test_annotations_that_cannot_be_read() -> None:
    """An annotation of the constructor that is not there is a fault, not a crash."""

    class Wants:
        def __init__(self, orders: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    [fault] = faults(Wants)
    assert fault == "its annotations cannot be read: name 'Nowhere' is not defined"


@pytest.mark.parametrize("annotation", ["not a type", "inspect.Nothing", "1 / 0"])
def test_annotations_that_cannot_be_evaluated(annotation: str) -> None:
    """... whatever exception its evaluation raises."""

    class Wants:
        def __init__(self, orders: Any) -> None: ...

    Wants.__init__.__annotations__["orders"] = annotation

    [fault] = faults(Wants)
    assert fault.startswith("its annotations cannot be read: ")


@pytest.mark.parametrize("annotation", ["Nowhere", "not a type", "inspect.Nothing", "1 / 0"])
def test_a_function_whose_annotations_cannot_be_evaluated(annotation: str) -> None:
    """A provider of unknown type is found only by its name."""

    def make() -> Any:
        return "made"

    make.__annotations__["return"] = annotation

    class Own(WorkerContainer):
        it = providers.Singleton(make)

    class Wants:
        def __init__(self, it: str) -> None:
            self.got = it

    assert made(Wants, Own()).got == "made"


def test_variadic_parameters_stay_empty() -> None:
    """`*args` and `**kwargs` get nothing."""

    class Wants:
        def __init__(self, *args: Any, name: str, **kwargs: Any) -> None:
            self.got = args, name, kwargs

    assert made(Wants).got == ((), "shop", {})


class Inner(containers.DeclarativeContainer):
    b = providers.Object("inner")


class Marked(WorkerContainer):
    a: Any = providers.Container(Inner)
    orders = providers.Singleton(Repository)
    other = providers.Singleton(Repository)


def test_a_marker_in_the_annotation() -> None:
    """`Annotated[T, Provide["a.b"]]` names the provider, before name and type."""

    class Wants:
        def __init__(self, orders: Annotated[str, Provide["a.b"]]) -> None:
            self.got = orders

    assert made(Wants, Marked()).got == "inner"


def test_a_marker_as_default() -> None:
    """`= Provide[...]` names it too, by path or as the container's own provider."""

    class Wants:
        def __init__(
            self,
            one: str = Provide["a.b"],
            two: Repository = Provide[Marked.other],
            three: Repository = Provide["other"],
        ) -> None:
            self.got = one, two, three

    container = Marked()
    one, two, three = made(Wants, container).got

    assert one == "inner"
    assert two is three is container.other()


def test_a_marker_that_names_nothing() -> None:
    """A marker that the container cannot follow is a fault, though there is a provider so named."""

    class Wants:
        def __init__(self, orders: Annotated[Repository, Provide["a.nothing"]]) -> None: ...

    [fault] = faults(Wants, Marked())
    assert fault.startswith(
        "parameter 'orders' is marked 'a.nothing', which the container does not have: "
    )
    assert "other" in fault


def test_an_overridden_provider() -> None:
    """What overrides a provider before the instance is made is what the instance gets."""

    class Wants:
        def __init__(self, orders: Repository) -> None:
            self.got = orders

    container = Container()
    factory = Injector(container).factory(Wants)
    fake = Special()

    with container.orders.override(providers.Object(fake)):
        assert factory().got is fake
    assert factory().got is container.orders()


async def test_an_overridden_provider_that_is_asynchronous() -> None:
    """A provider in async mode, also one that overrides, makes the instance a future."""

    class Wants:
        def __init__(self, orders: Repository) -> None:
            self.got = orders

    async def later() -> Repository:
        await asyncio.sleep(0)
        return Special()

    container = Container()
    container.orders.override(providers.Coroutine(later))

    wants = Injector(container).factory(Wants)()

    assert inspect.isawaitable(wants)
    assert isinstance((await wants).got, Special)


def parameter(function: Any, name: str) -> inspect.Parameter:
    """A parameter of a function."""
    return inspect.signature(function).parameters[name]


def handle(self: Any, repository: Repository, clock: Clock, size: int = 3) -> None:
    """What parameters of `handle` may look like."""


def test_a_parameter_of_handle() -> None:
    """A parameter of `handle` is resolved in the same way, to something to call each time."""

    class Own(WorkerContainer):
        each = providers.Factory(Repository)

    source = Injector(Own()).resolve(parameter(handle, "repository"), Repository)

    assert isinstance(source.provide(), Repository)
    assert source.provide() is not source.provide()
    assert source.per_call


def test_a_parameter_of_handle_with_a_default() -> None:
    """... or to its default."""
    assert Injector(Container()).resolve(parameter(handle, "size"), int).provide() == 3


def test_a_parameter_of_handle_that_nothing_fills() -> None:
    """... or not at all."""
    clock = parameter(handle, "clock")

    with pytest.raises(
        Unresolved,
        match="of type Clock; the container has codecs, cursors, extra_transports, interceptors",
    ):
        Injector(Container()).resolve(clock, Clock)
