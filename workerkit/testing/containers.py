"""Create consumers from a container, and replace providers of a container."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from dependency_injector import containers, providers

from workerkit.app.injection import Injector
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError

T = TypeVar("T")


def build(class_: type[T], container: containers.Container) -> T:
    """Create a consumer from a container, as the Runner does.

    Raises:
        DeclarationError: Nothing fills a parameter; or what fills it is asynchronous and not
            ready, and then the text names the providers to override or to initialise first.
    """
    values = {}
    waiting = []
    for name, provider in Injector(container).factory(class_).kwargs.items():
        value = provider() if isinstance(provider, providers.Provider) else provider
        # If anything is asynchronous, even a value that is ready comes in a future.
        if not asyncio.isfuture(value):
            values[name] = value
        elif value.done():
            values[name] = value.result()
        else:
            waiting.append(name)
    if waiting:
        raise DeclarationError(
            f"{describe_class(class_)}: {', '.join(waiting)} comes from an asynchronous resource"
            " that is not ready; override it, or await container.init_resources() first"
        )
    return class_(**values)


@contextmanager
def override(container: containers.Container, **replacements: Any) -> Iterator[None]:
    """Replace providers of *container* inside the block, by values or by other providers.

    Singletons are reset at both ends of the block, so nothing created with a replacement outlives
    it, and nothing created before it is used inside. Blocks nest.

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
