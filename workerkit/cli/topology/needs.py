"""Collect what the consumers of a package need on each virtual host."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.destination import Destination
from workerkit.amqp.needs import NeededQueue, Needs, needed_queues, with_default_types
from workerkit.amqp.publisher import Publisher
from workerkit.app.assembly import Assembly
from workerkit.cli.application import loaded
from workerkit.cli.parameters import Container, Package
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.errors import ConfigurationError
from workerkit.periodic.singleton import SingletonOptions, queue_of_lease
from workerkit.runner import Runner
from workerkit.transport import Declared


@dataclass(frozen=True, slots=True)
class PackageOptions:
    """The arguments and options that name a package."""

    package: Package
    container: Container = None
    connection: Annotated[
        str | None,
        typer.Option(help="Only this named connection.", metavar="NAME"),
    ] = None


@dataclass(frozen=True, slots=True)
class PackageNeeds:
    """What a package needs at its brokers.

    Attributes:
        every: One entry for each connection and virtual host.
    """

    settings: WorkerSettings
    every: list[Needs]

    def broker(self, needs: Needs) -> AMQPSettings:
        """Return the connection, with the present content of its secret files."""
        return self.settings.connection(needs.connection)


def needs_of(options: PackageOptions) -> PackageNeeds:
    """Collect what a package needs.

    Raises:
        StartError: The package or its settings are wrong, or there is no such connection.
    """
    container = loaded(options.package, options.container)
    assembly = Runner(container, packages=[options.package]).assemble()
    settings, every = assembly.settings, _collect(assembly, container.providers["publisher"])
    if options.connection is not None:
        name = options.connection.casefold()
        if name not in settings.amqp:
            listed = ", ".join(sorted(settings.amqp))
            raise ConfigurationError(
                f"the settings have no connection {options.connection!r}, only {listed}"
            )
        every = [each for each in every if each.connection == name]
    return PackageNeeds(settings, every)


def _collect(assembly: Assembly, publisher: object) -> list[Needs]:
    settings = assembly.settings
    found: dict[tuple[str, str], Needs] = {}

    def place(connection: str, vhost: str | None) -> Needs:
        name = connection.casefold()
        key = name, settings.amqp[name].vhost_name(vhost)
        return found.setdefault(key, Needs(*key))

    for each in assembly.declared:
        options = each.options
        if isinstance(options, AMQPOptions):
            needs = place(options.connection, options.vhost)
            _add_queues(needs, options, settings.amqp[needs.connection])
            needs.publishes |= each.signature.answers and options.replies != "off"
        elif isinstance(options, SingletonOptions) and options.singleton:
            needs = place(options.connection, options.vhost)
            queue = queue_of_lease(each.consumer, options, settings.amqp[needs.connection])
            needs.add([NeededQueue(queue, queue, "lease")], options.name, None)
        for key in options.publishes:
            to = Destination(key) if isinstance(key, str) else key
            _add_target(place(to.connection, to.vhost), to)
        if _uses(each, publisher) and DEFAULT_CONNECTION in settings.amqp:
            place(DEFAULT_CONNECTION, None).publishes = True
    return list(found.values())


def _add_queues(needs: Needs, options: AMQPOptions, settings: AMQPSettings) -> None:
    typed = with_default_types(options, settings)
    for queue, written in zip(typed.queues, options.queues, strict=True):
        needs.add(needed_queues(typed, queue, written), options.name, options.declare)


def _add_target(needs: Needs, to: Destination) -> None:
    if to.exchange:
        needs.targets.append(to.exchange)
    else:
        needs.publishes = True


def _uses(declared: Declared, publisher: object) -> bool:
    """Return whether a consumer gets the container's publisher, perhaps within another object."""
    factories: list[Any] = [declared.factory, *declared.interceptors]
    given = (
        provider
        for factory in factories
        if hasattr(factory, "traverse")
        for provider in factory.traverse()
    )
    return any(each is publisher for each in given) or any(
        issubclass(each, Publisher) for each in _parameter_types(declared)
    )


def _parameter_types(declared: Declared) -> Iterator[type]:
    for method in declared.signatures:
        for type_ in get_type_hints(getattr(declared.consumer, method)).values():
            if isinstance(type_, type):
                yield type_
