"""The container of an application: its providers, and those of the framework."""

from typing import Any

from dependency_injector import containers, providers

from workerkit.amqp.consumer import AMQPConsumer
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.transport import AMQPTransport
from workerkit.codec import Codecs, codec_faults
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.describe import describe_class, describe_error
from workerkit.errors import DeclarationError, RunError
from workerkit.http.transport import HTTPTransport
from workerkit.http.view import HTTPView
from workerkit.observe import log_settled
from workerkit.periodic.consumer import PeriodicTask
from workerkit.periodic.transport import PeriodicTransport
from workerkit.safe_text import Redact
from workerkit.signature import given
from workerkit.sse.consumer import SSEConsumer
from workerkit.sse.cursor import CursorStore, MemoryCursors
from workerkit.sse.transport import SSETransport
from workerkit.tasks import guard, run_all
from workerkit.transport import Transport


class WorkerContainer(containers.DeclarativeContainer):
    """Subclass it and add providers; consumers get them by the names of their parameters.

    None of these providers depends on another one, so a subclass may replace any of them.

    Attributes:
        settings: Replace it with `providers.Singleton(Settings)` of your own class.
        publisher: Publishes to RabbitMQ.
        observers: Called with a `Settled` record for each delivery.
        cursors: Keeps the cursors of event streams: in memory, or in files where the settings name
            a directory; your own `CursorStore` replaces both.
        transports: The built-in transports, each with the base class of its consumers, in the
            order in which they start. Replace it to run without some of them.
        extra_transports: Transports of your own, added to the built-in ones:
            `providers.Dict({QueueConsumer: providers.Singleton(QueueTransport)})`. One for the base
            class of a built-in transport replaces that.
        codecs: Your own codecs for further content types of messages, each a `Codec`:
            `providers.List(providers.Singleton(YAMLCodec))`. One for a content type of a built-in
            codec replaces that.
        middlewares: aiohttp's, around every request, the outermost first.
        interceptors: Around every call of `handle` of all consumers, the outermost first; see
            `Interceptor`. `providers.List(providers.Singleton(Audit, ...))` sets them.
        redact: A function that is called with the text and the traceback of an exception before
            they become headers of a dead letter, and with each text of our log records; it
            returns the text to write. `providers.Object(hide_cards)` sets it.
    """

    settings = providers.Singleton(WorkerSettings)
    publisher = providers.Singleton(Publisher)
    observers = providers.List(providers.Object(log_settled))
    cursors: "providers.Provider[CursorStore]" = providers.Singleton(MemoryCursors)
    transports = providers.Dict(
        {
            AMQPConsumer: providers.Singleton(AMQPTransport),
            HTTPView: providers.Singleton(HTTPTransport),
            SSEConsumer: providers.Singleton(SSETransport),
            PeriodicTask: providers.Singleton(PeriodicTransport),
        }
    )
    extra_transports: "providers.Dict" = providers.Dict()
    codecs: "providers.List" = providers.List()
    middlewares = providers.List()
    interceptors = providers.List()
    redact: "providers.Object[Redact | None]" = providers.Object(None)


def transports_of(container: containers.Container) -> dict[type[Consumer], Transport]:
    """Return the transport of each base class: the built-in ones, then the extra ones."""
    transports: dict[type[Consumer], Transport] = dict(container.providers["transports"]())
    extra = container.providers.get("extra_transports")
    return transports if extra is None else {**transports, **extra()}


def unprovided(container: containers.Container) -> list[str]:
    """Return a fault for each provider of the framework that was replaced by a plain value.

    dependency_injector ignores such a value, and goes on with the provider of the base class.
    """
    faults = {}
    for found in (container, getattr(container, "declarative_parent", None)):
        for name, provider in WorkerContainer.providers.items():
            value = getattr(found, name, provider)
            if not isinstance(value, providers.Provider):
                where = describe_class(found if isinstance(found, type) else type(found))
                faults[name] = (
                    f"{where}: {name} is of type {type(value).__qualname__}, not a provider, and "
                    f"would be ignored: write {name} = providers.{type(provider).__name__}(...)"
                )
    return list(faults.values())


def codecs_of(container: containers.Container) -> Codecs:
    """Return the codecs that the container's `codecs` provides, and the built-in ones.

    Raises:
        DeclarationError: With a fault for each one that is no codec, or cannot be created.
    """
    provider = container.providers.get("codecs")
    try:
        found = () if provider is None else provider()
    except Exception as error:
        text = f"the container's codecs could not be created: {describe_error(error)}"
        raise DeclarationError(text) from error
    if not isinstance(found, list | tuple):
        kind = type(found).__qualname__
        raise DeclarationError(
            f"the container's codecs provides a {kind}: it should be a list, such as"
            " providers.List(providers.Singleton(YAMLCodec))"
        )
    if faults := [text for each in found for text in codec_faults(each)]:
        raise DeclarationError(*(f"the container's codecs: {each}" for each in faults))
    return Codecs(found)


def redact_of(container: containers.Container) -> Redact | None:
    """Return the function that the container's `redact` provides.

    Raises:
        DeclarationError: It is not a function.
    """
    found = container.providers["redact"]()
    if found is not None and not callable(found):
        kind = type(found).__qualname__
        raise DeclarationError(
            f"the container's redact provides a {kind}: it should be a function that takes a str "
            "and returns one, as providers.Object(function)"
        )
    function: Redact | None = found
    return function


class Resources:
    """The resources of a container, opened one by one and closed in reverse order."""

    def __init__(self, container: containers.Container) -> None:
        self._wanted = _in_order(container)
        self._opened: list[tuple[str, providers.Resource[Any]]] = []

    async def open(self) -> None:
        """Open every resource, those it depends on first.

        Raises:
            RunError: One could not be opened; those before it are open.
        """
        for name, resource in self._wanted:
            self._opened.append((name, resource))
            try:
                await guard(given(resource.init()))
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                raise RunError(
                    f"resource {name!r} could not be opened: {describe_error(error)}"
                ) from error

    async def close(self, seconds: float) -> dict[str, str]:
        """Close what was opened, the last one first, even if some of them fail.

        Args:
            seconds: For each one that closes asynchronously.

        Returns:
            The failures by name, as `workerkit.tasks.run_all` returns them.
        """
        failures: dict[str, str] = {}
        while self._opened:
            name, resource = self._opened.pop()
            failures |= await run_all({f"resource {name!r}": _closed(resource)}, seconds)
        return failures


async def _closed(resource: "providers.Resource[Any]") -> None:
    await given(resource.shutdown())


def _in_order(container: containers.Container) -> list[tuple[str, providers.Resource[Any]]]:
    """Return every resource with its name, after those that it depends on."""
    names = {id(provider): name for name, provider in container.providers.items()}
    found: dict[int, tuple[str, providers.Resource[Any]]] = {}
    seen: set[int] = set()

    def visit(provider: providers.Provider[Any]) -> None:
        if id(provider) in seen:
            return
        seen.add(id(provider))
        if provider.last_overriding is not None:
            visit(provider.last_overriding)
            return
        for dependency in provider.related:
            visit(dependency)
        if isinstance(provider, providers.Resource):
            found[id(provider)] = names.get(id(provider), repr(provider.provides)), provider

    for provider in container.providers.values():
        visit(provider)
    return list(found.values())
