"""Find the interceptors of each consumer: those of the container, then those of its class."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncContextDecorator
from typing import Any

from dependency_injector import containers, providers

from workerkit.app.injection import Injector, effective, is_marker, marked
from workerkit.consumer import Consumer
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError
from workerkit.signature import Unresolved


class Creator:
    """Creates one interceptor, once; as text it is the name of what the container or class lists.

    Args:
        create: Creates it.
        name: Of the class or function, or of the provider.
    """

    def __init__(self, create: Callable[[], Any], name: str) -> None:
        self._create = functools.cache(create)
        self._name = name

    def __call__(self) -> Any:
        """Return the interceptor."""
        return self._create()

    def __str__(self) -> str:
        return self._name


_WRITE = (
    "write a function that takes a Call, decorated with asynccontextmanager, a class with such a "
    "__call__, or a provider of either"
)


class Interceptors:
    """The interceptors of an application, each created once, at the start.

    Attributes:
        injector: Fills the constructors of classes.
    """

    def __init__(self, container: containers.Container, injector: Injector) -> None:
        self.injector = injector
        self._container = container
        self._created: dict[int, Creator] = {}

    def of(self, class_: type[Consumer]) -> tuple[Creator, ...]:
        """Return what creates the interceptors of a class, the outermost first.

        Raises:
            DeclarationError: With every fault of those that the container or the class names.
        """
        where, found = describe_class(class_), class_.interceptors
        if not isinstance(found, list | tuple):
            one = getattr(found, "__name__", None)
            what, such = (repr(found), "") if one is None else (one, f", such as [{one}]")
            raise DeclarationError(f"{where}: interceptors is {what}: write a list{such}")
        return self._all("the container", _listed(self._container)) + self._all(where, found)

    def _all(self, where: str, found: Iterable[Any]) -> tuple[Creator, ...]:
        created, faults = [], []
        for number, each in enumerate(found, 1):
            try:
                created.append(self._one(each))
            except DeclarationError as error:
                faults += [f"{where}: interceptor {number}: {fault}" for fault in error.faults]
        if faults:
            raise DeclarationError(*faults)
        return tuple(created)

    def _one(self, found: Any) -> Creator:
        """Return what creates an interceptor: the same for each consumer that names it."""
        if id(found) not in self._created:
            self._created[id(found)] = Creator(self._create(found), self._name(found))
        return self._created[id(found)]

    def _create(self, found: Any) -> Callable[[], Any]:
        if isinstance(found, providers.Provider) or is_marker(found):
            provider: Callable[[], Any] = self._provider(found)
            target = getattr(provider, "cls", None)
            if isinstance(target, type):
                _check(target)
            return provider
        _check(found)
        if isinstance(found, type) and not hasattr(found, "__aenter__"):
            return self.injector.factory(found)
        return lambda: found

    def _provider(self, found: Any) -> Any:
        """Return the provider that a marker names, or that this one is in this container."""
        if is_marker(found):
            try:
                return marked(self._container, found)
            except Unresolved as error:
                raise DeclarationError(str(error)) from error
        names = self._names(found)
        return self._container.providers[names[0]] if names else found

    def _names(self, provider: Any) -> list[str]:
        """Return the names that a provider has in the container."""
        names = [name for name, each in self._container.providers.items() if each is provider]
        # A class names the provider of the class of the container, Container.audit.
        parent = getattr(self._container, "declarative_parent", None)
        declared = {} if parent is None else parent.providers
        return names + [name for name, each in declared.items() if each is provider]

    def _name(self, found: Any) -> str:
        """Return the name of a provider, or that of the class or function."""
        if is_marker(found):
            return str(found.provider)
        if isinstance(found, providers.Provider):
            if names := self._names(found):
                return names[0]
            found = getattr(found, "provides", None) or found
        named = found if hasattr(found, "__qualname__") else type(found)
        return f"{named.__module__}.{named.__qualname__}"


def _listed(container: containers.Container) -> Sequence[Any]:
    """Return the entries of the container's list: providers, classes or functions.

    Raises:
        DeclarationError: It is no list.
    """
    declared = container.providers.get("interceptors")
    if declared is None:
        return ()
    provider = effective(declared)
    if isinstance(provider, providers.List):
        return tuple(provider.args)
    if isinstance(provider, providers.Object) and isinstance(found := provider(), list | tuple):
        return found
    raise DeclarationError(
        f"the container's interceptors is a provider of type {type(provider).__name__}: "
        "write providers.List(...)"
    )


def check_created(found: Any) -> None:
    """Check that what a provider gives, or a class creates, has the form of an interceptor.

    Raises:
        DeclarationError: It has not.
    """
    if isinstance(found, type) and not hasattr(found, "__aenter__"):
        named = describe_class(found)
        raise DeclarationError(f"{named} is a class: write it in the list, or a Singleton of it")
    _check(found)


def _check(found: Any) -> None:
    """Check that something has the form of an interceptor.

    Raises:
        DeclarationError: It has not.
    """
    if isinstance(found, type) and hasattr(found, "__aenter__"):
        return
    named = describe_class(found)
    if isinstance(found, AsyncContextDecorator) and not isinstance(found, type):
        named = describe_class(getattr(found, "func", found))
        raise DeclarationError(f"{named} was called: write it without calling it")
    call: Any = found
    if not inspect.isroutine(found):
        owners = found.__mro__ if isinstance(found, type) else type(found).__mro__
        call = next((vars(each)["__call__"] for each in owners if "__call__" in vars(each)), None)
    if call is None:
        raise DeclarationError(f"{named} is no interceptor: {_WRITE}")
    if inspect.isasyncgenfunction(call) or inspect.iscoroutinefunction(call):
        right = "decorate it with asynccontextmanager, and yield once"
        raise DeclarationError(f"{named} returns no context manager: {right}")
    if inspect.isgeneratorfunction(inspect.unwrap(call)):
        right = "make it an `async def` decorated with asynccontextmanager"
        raise DeclarationError(f"{named} is not asynchronous: {right}")
    _check_parameters(named, call, () if call is found else (found,))


def _check_parameters(named: str, call: Any, first: tuple[Any, ...]) -> None:
    """Check that a function can be called with a `Call`, after *first*.

    Raises:
        DeclarationError: It takes no argument, or needs more of them.
    """
    if not inspect.isfunction(call) and not inspect.ismethod(call):
        return  # A partial, a static method, a function in C: their parameters are not known here.
    signature = inspect.signature(call)
    try:
        signature.bind(*first, None)
    except TypeError:
        raise DeclarationError(
            f"{named} takes {signature}: it is called with one argument, the Call"
        ) from None
