"""Consumers out of a container, and containers with some of their providers replaced."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from dependency_injector import containers, providers

from workerkit.errors import DeclarationError
from workerkit.places import place
from workerkit.plan import Plan

T = TypeVar("T")


def build(class_: type[T], container: containers.Container) -> T:
    """Make a consumer with what a container has for its constructor, as the Runner does.

    Raises:
        DeclarationError: Nothing fills a parameter; or what fills it is asynchronous and not
            ready, and then the text names the providers to override or to initialise first.
    """
    factory = Plan(container).factory(class_)
    made = factory()
    if not asyncio.isfuture(made):
        return _typed(class_, made)
    if made.done():
        return _typed(class_, made.result())
    # Not cancelled: that would leave a resource half open for good.
    waiting = sorted(name for name, provider in factory.kwargs.items() if _is_waiting(provider))
    raise DeclarationError(
        f"{place(class_)}: {', '.join(waiting)} comes from an asynchronous resource that is not "
        "ready; override it, or await container.init_resources() first"
    )


@contextmanager
def override(container: containers.Container, **replacements: Any) -> Iterator[None]:
    """Replace providers of *container* inside the block, by values or by other providers.

    Singletons are forgotten on both sides, so nothing made with a replacement outlives the block,
    and nothing made before it is used inside. Blocks nest.

    Raises:
        DeclarationError: The container has no such provider.
    """
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            provider = container.providers.get(name)
            if provider is None:
                known = ", ".join(sorted(container.providers))
                raise DeclarationError(f"override: there is no provider {name!r}, only {known}")
            if not isinstance(replacement, providers.Provider):
                replacement = providers.Object(replacement)
            stack.enter_context(provider.override(replacement))
        container.reset_singletons()
        stack.callback(container.reset_singletons)
        yield


def _typed(class_: type[T], made: Any) -> T:
    if not isinstance(made, class_):
        raise DeclarationError(f"{place(class_)}: the container made {made!r} of it")
    return made


def _is_waiting(provider: Any) -> bool:
    value = provider()
    return asyncio.isfuture(value) and not value.done()
