"""Decide once, before any object is created, which provider fills which parameter.

dependency-injector's wiring is not used: `@inject` silently injects nothing where annotations are
strings, and wiring a package inspects all of its members.
"""

import contextlib
import difflib
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextvars import ContextVar
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from dependency_injector import containers, providers

from workerkit.container import WorkerContainer
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError
from workerkit.signature import ArgumentSource, Unresolved

PER_CALL = (providers.Factory, providers.Callable, providers.Coroutine)
"""Providers that create a new object per call; an asynchronous context manager is entered."""

_ITERATED = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)
_MANAGERS = (contextlib.AbstractContextManager, contextlib.AbstractAsyncContextManager)
# Locks and the like are shared, and user code enters them.
_SHARED = frozenset({"asyncio", "threading", "_thread", "multiprocessing"})


def not_entered(provider: "providers.Provider[Any]", wanted: Any) -> str | None:
    """Return why a call parameter would get an unentered manager or a raw generator; else None.

    The text says what to write instead. Faults that only a call of the provider shows are not
    found here.

    Args:
        wanted: The class that the parameter is annotated with. A parameter that is annotated as an
            iterator or a context manager gets it as it is.
    """
    provider = effective(provider)
    target = _target_of(provider)
    if target is None or wanted in _MANAGERS or is_iterated(wanted):
        return None
    if reason := not_iterated(provider, wanted):
        return reason
    if isinstance(target, type):
        return _class_not_entered(target, per_call=isinstance(provider, PER_CALL))
    decorated = inspect.unwrap(target)
    if inspect.isgeneratorfunction(decorated):
        return _not_asynchronous(decorated, "decorate an `async def` with asynccontextmanager")
    if inspect.isasyncgenfunction(decorated) and not isinstance(provider, PER_CALL):
        return _not_per_call(decorated)
    return None


def _class_not_entered(target: type, *, per_call: bool) -> str | None:
    if target.__module__.partition(".")[0] in _SHARED:
        return None
    if hasattr(target, "__aenter__"):
        return None if per_call else _not_per_call(target)
    # A shared one is an executor or a connection, which is not entered for each call.
    if hasattr(target, "__enter__") and per_call:
        right = "provide an `async def` decorated with asynccontextmanager that enters it"
        return _not_asynchronous(target, right)
    return None


def _not_asynchronous(target: Any, right: str) -> str:
    name = describe_class(target)
    return f"whose context manager {name} is not asynchronous and would not be entered: {right}"


def _not_per_call(target: Any) -> str:
    return (
        f"whose context manager {describe_class(target)} would not be entered because it is shared:"
        f" write providers.Factory({target.__name__}) to enter one for each call, or take it in"
        " __init__, from a providers.Resource"
    )


def not_iterated(provider: "providers.Provider[Any]", wanted: Any) -> str | None:
    """Return why a parameter would get a raw generator, and what to write; else None."""
    target = _target_of(effective(provider))
    if is_iterated(wanted):
        return None
    kind = "asynchronous " if inspect.isasyncgenfunction(target) else ""
    if not kind and not inspect.isgeneratorfunction(target):
        return None
    right = "decorate it" if kind else "make it an `async def` and decorate it"
    right += " with asynccontextmanager to enter it for each call of `handle`"
    shared = "or write providers.Resource to open it once per process"
    name = describe_class(target)
    return f"whose {kind}generator {name} would be passed as it is: {right}, {shared}"


def is_iterated(wanted: Any) -> bool:
    """Return whether a parameter is annotated as an iterable or a generator."""
    return wanted in _ITERATED


def effective(provider: "providers.Provider[Any]") -> "providers.Provider[Any]":
    """Return the provider that is called: the last override, or the provider itself."""
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _target_of(provider: "providers.Provider[Any]") -> Any:
    """Return the class or function that a provider calls, or None if it calls neither."""
    if not isinstance(provider, (*PER_CALL, providers.BaseSingleton)):
        return None
    target = provider.provides
    return target if isinstance(target, type) or inspect.isroutine(target) else None


def _creates(provider: "providers.Provider[Any]") -> bool:
    """Return whether a provider creates an object for each call, which is entered.

    The value of a context variable was created, and entered, by the code that has set it.
    """
    provides = getattr(effective(provider), "provides", None)
    reads_context = isinstance(getattr(provides, "__self__", None), ContextVar)
    return isinstance(provider, PER_CALL) and not reads_context


_MIN_SIMILARITY = 0.75  # As difflib measures it.

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_YIELDING = ("Iterator", "Generator", "AsyncIterator", "AsyncGenerator", "Iterable")


class Injector:
    """Finds the providers for the parameters of the user's classes.

    A parameter is filled by the first of these: the provider that its marker names
    (`Annotated[T, Provide["a.b"]]` or `= Provide["a.b"]`), the provider of its own name, the only
    provider of its type, its default.
    """

    def __init__(self, container: containers.Container) -> None:
        self._container = container
        self._types = {name: _type_of(provider) for name, provider in container.providers.items()}

    def factory(self, class_: type) -> "providers.Factory[Any]":
        """Create a provider of instances of *class_*.

        Raises:
            DeclarationError: Parameters of its constructor that nothing fills, one fault each.
        """
        constructor = _constructor(class_)
        if constructor is object.__init__:
            return providers.Factory(class_)
        hints = _hints(constructor)
        filled: dict[str, Any] = {}
        faults: list[str] = []
        for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
            if parameter.kind in _VARIADIC:
                continue
            try:
                type_ = hints.get(parameter.name, Any)
                provider = self._provider(parameter, type_)
                if provider is not None and (reason := not_iterated(provider, _plain(type_))):
                    raise Unresolved(f"is filled by {self._named(provider)}, {reason}")
            except Unresolved as error:
                where = describe_class(constructor)
                faults.append(f"{where}: parameter {parameter.name!r} {error}")
                continue
            if provider is not None:
                filled[parameter.name] = provider
        if faults:
            raise DeclarationError(*faults)
        return providers.Factory(class_, **filled)

    def resolve(self, parameter: inspect.Parameter, type_: Any) -> ArgumentSource:
        """Return what fills a parameter of `handle`; it is called once per call of `handle`.

        Raises:
            Unresolved: Nothing fills it, and the text lists what is available; or its provider
                gives a context manager or generator that would not be entered.
        """
        provider = self._provider(parameter, type_)
        if provider is None:
            default = parameter.default
            return ArgumentSource(lambda: default)
        if reason := not_entered(provider, _plain(type_)):
            raise Unresolved(f"is filled by {self._named(provider)}, {reason}")
        return ArgumentSource(provider, _creates(provider), iterated=is_iterated(_plain(type_)))

    def _provider(
        self, parameter: inspect.Parameter, type_: Any
    ) -> "providers.Provider[Any] | None":
        """Return the provider for a parameter; None if its default is used."""
        for marker in _markers(parameter, type_):
            return marked(self._container, marker)
        named = self._container.providers.get(parameter.name)
        if named is not None:
            return named
        wanted = _plain(type_)
        fitting = [name for name, type_ in self._types.items() if _fits(type_, wanted)]
        if len(fitting) == 1:
            return self._container.providers[fitting[0]]
        if parameter.default is not parameter.empty:
            return None
        raise Unresolved(self._explain_missing(parameter.name, wanted, fitting))

    def _named(self, provider: "providers.Provider[Any]") -> str:
        kind = type(provider).__name__
        for name, each in self._container.providers.items():
            if each is provider:
                return f"provider {name!r}, a {kind}"
        return f"a {kind}"

    def _explain_missing(self, name: str, wanted: Any, fitting: list[str]) -> str:
        type_name = getattr(wanted, "__qualname__", str(wanted))
        if fitting:
            return (
                f"has no provider of its name, and {len(fitting)} of type {type_name}: "
                f"{', '.join(fitting)}; name it like one of them, or mark it with Provide[...]"
            )
        known = ", ".join(sorted(self._container.providers))
        missing = f"has no provider of its name or of type {type_name}"
        if getattr(self._container, "declarative_parent", None) is WorkerContainer:
            return (
                f"{missing}; the container in use is the plain WorkerContainer of workerkit, which "
                f"has {known}: add the provider to a subclass, Container in the module `container` "
                "of your package, or choose another one with --container"
            )
        if nearest := difflib.get_close_matches(
            name, self._container.providers, n=1, cutoff=_MIN_SIMILARITY
        ):
            missing += f"; did you mean {nearest[0]!r}?"
            return f"{missing} The container has {known}"
        return f"{missing}; the container has {known}"


def _constructor(class_: Any) -> Callable[..., Any]:
    constructor: Callable[..., Any] = class_.__init__
    return constructor


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        # An annotation that is a string may be any expression.
        where = describe_class(function)
        raise DeclarationError(f"{where}: its annotations cannot be read: {error}") from error


def _markers(parameter: inspect.Parameter, type_: Any) -> Iterator[Any]:
    extras = get_args(type_)[1:] if get_origin(type_) is Annotated else ()
    for found in (*extras, parameter.default):
        if is_marker(found):
            yield found


def is_marker(found: object) -> bool:
    """Return whether this is a `Provide[...]`."""
    return getattr(type(found), "__IS_MARKER__", False) is True


def marked(container: containers.Container, marker: Any) -> "providers.Provider[Any]":
    """Return the provider that a `Provide[...]` names, by an undocumented API of the library."""
    # Imported here because importing it also imports FastAPI, where that is installed.
    from dependency_injector.wiring import ProvidersMap

    found = ProvidersMap(container).resolve_provider(marker.provider, marker.modifier)
    if found is None:
        known = ", ".join(sorted(each for each in container.providers if each != "__self__"))
        raise Unresolved(
            f"is marked {marker.provider!r}, which the container does not have: {known}"
        )
    return found


def _type_of(provider: "providers.Provider[Any]") -> type | None:
    """Return the type of what a provider gives, or None if its declaration does not state it."""
    if isinstance(provider, providers.Object):
        return type(provider())
    target = getattr(provider, "cls", None) or getattr(provider, "provides", None)
    if isinstance(target, type):
        return target
    if not callable(target):
        return None
    try:
        returned = get_type_hints(target).get("return")
    except Exception:
        return None
    if getattr(get_origin(returned), "__name__", "") in _YIELDING:
        returned = get_args(returned)[0]
    return returned if isinstance(returned, type) else None


def _plain(type_: Any) -> Any:
    """Return the class inside `Annotated` and `| None`."""
    if get_origin(type_) is Annotated:
        return _plain(get_args(type_)[0])
    if get_origin(type_) in (Union, types.UnionType):
        members = [each for each in get_args(type_) if each is not type(None)]
        return _plain(members[0]) if len(members) == 1 else type_
    return get_origin(type_) or type_


def _fits(provided: type | None, wanted: Any) -> bool:
    if provided is None or not isinstance(wanted, type) or wanted in (object, typing.Any):
        return False
    try:
        return issubclass(provided, wanted)
    except TypeError:
        # A Protocol that is not runtime_checkable: only the parameter name can match.
        return False
