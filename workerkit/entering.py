"""Which providers give something that would have to be entered or iterated first."""

import contextlib
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any

from dependency_injector import providers

from workerkit.places import place

MADE_ANEW = (providers.Factory, providers.Callable, providers.Coroutine)
"""Providers of what is made for one call; an asynchronous context manager of theirs is entered."""

_ITERATED = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)
_MANAGERS = (contextlib.AbstractContextManager, contextlib.AbstractAsyncContextManager)
# Locks and the like are shared, and entered by whoever takes them.
_SHARED = frozenset({"asyncio", "threading", "_thread", "multiprocessing"})


def not_entered(provider: "providers.Provider[Any]", wanted: Any) -> str | None:
    """Return why a parameter of a call would get something raw, and what to write; else None.

    Whatever only shows when the provider is called is not found here.

    Args:
        wanted: The class that the parameter is annotated with. A parameter that is annotated as an
            iterator or a context manager gets it as it is.
    """
    provider = _effective(provider)
    made = _made_by(provider)
    if made is None or wanted in _MANAGERS or is_iterated(wanted):
        return None
    if reason := not_iterated(provider, wanted):
        return reason
    if isinstance(made, type):
        return _class_not_entered(made, isinstance(provider, MADE_ANEW))
    decorated = inspect.unwrap(made)
    if inspect.isgeneratorfunction(decorated):
        return _not_asynchronous(decorated, "decorate an `async def` with asynccontextmanager")
    if inspect.isasyncgenfunction(decorated) and not isinstance(provider, MADE_ANEW):
        return _not_made_anew(decorated)
    return None


def _class_not_entered(made: type, anew: bool) -> str | None:
    if made.__module__.partition(".")[0] in _SHARED:
        return None
    if hasattr(made, "__aenter__"):
        return None if anew else _not_made_anew(made)
    # One that is shared is an executor or a connection, which nobody enters for each call.
    if hasattr(made, "__enter__") and anew:
        right = "provide an `async def` decorated with asynccontextmanager that enters it"
        return _not_asynchronous(made, right)
    return None


def _not_asynchronous(made: Any, right: str) -> str:
    found = f"whose context manager {place(made)} is not asynchronous and would not be entered"
    return f"{found}: {right}"


def _not_made_anew(made: Any) -> str:
    return (
        f"whose context manager {place(made)} would not be entered because it is shared: write "
        f"providers.Factory({made.__name__}) to enter one for each call, or take it in __init__, "
        "from a providers.Resource"
    )


def not_iterated(provider: "providers.Provider[Any]", wanted: Any) -> str | None:
    """Return why a parameter would get a raw generator, and what to write; else None."""
    made = _made_by(_effective(provider))
    if is_iterated(wanted):
        return None
    kind = "asynchronous " if inspect.isasyncgenfunction(made) else ""
    if not kind and not inspect.isgeneratorfunction(made):
        return None
    right = "decorate it" if kind else "make it an `async def` and decorate it"
    right += " with asynccontextmanager to enter it for each call of `handle`"
    shared = "or write providers.Resource to open it once per process"
    return f"whose {kind}generator {place(made)} would be passed as it is: {right}, {shared}"


def is_iterated(wanted: Any) -> bool:
    """Whether a parameter is annotated as what a generator is."""
    return wanted in _ITERATED


def _effective(provider: "providers.Provider[Any]") -> "providers.Provider[Any]":
    """The provider that is called: the last one that overrides it, if any does."""
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _made_by(provider: "providers.Provider[Any]") -> Any:
    """The class or the function that a provider calls; None where it calls nothing of the kind."""
    if not isinstance(provider, (*MADE_ANEW, providers.BaseSingleton)):
        return None
    made = provider.provides
    return made if isinstance(made, type) or inspect.isroutine(made) else None
