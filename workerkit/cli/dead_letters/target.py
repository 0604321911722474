"""Find the dead-letter queue that a command line names."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, Queue
from workerkit.app.assembly import Assembly
from workerkit.cli.application import is_url, load_container, settings_of
from workerkit.cli.parameters import Container
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.errors import ConfigurationError
from workerkit.options import folded
from workerkit.runner import Runner

_OTHER_CONNECTION = "To use the queue anyway, add --connection"


@dataclass(frozen=True, slots=True)
class Target:
    """The arguments and options that name a queue and its broker.

    Attributes:
        package: The first argument: a package, in which the consumer of the queue is looked up, or
            a URL. With the option `url`, it is the queue.
        queue: The second argument: the name of the queue, or that of its dead-letter queue.
        connection: Instead of the consumer's. With it, no consumer has to read the queue.
    """

    package: Annotated[
        str | None,
        typer.Argument(
            metavar="PACKAGE",
            help="The package of the queue's consumer, or an amqp:// URL; omit it with --url.",
            show_default=False,
        ),
    ] = None
    queue: Annotated[
        str | None,
        typer.Argument(
            metavar="QUEUE", help="The queue where the messages failed.", show_default=False
        ),
    ] = None
    url: Annotated[
        str | None, typer.Option(help="An amqp:// URL, instead of PACKAGE.", metavar="URL")
    ] = None
    connection: Annotated[
        str | None, typer.Option(help="A named connection, instead of the consumer's.")
    ] = None
    vhost: Annotated[
        str | None, typer.Option(help="A virtual host, instead of the consumer's.")
    ] = None
    container: Container = None

    def names(self) -> tuple[str, str]:
        """Return the package or URL, and the queue.

        Raises:
            ConfigurationError: There are too few, too many, or the URL is not one.
        """
        names = [each for each in (self.package, self.queue) if each is not None]
        if self.url is not None and not is_url(self.url):
            raise ConfigurationError("--url is wrong: should start with amqp:// or amqps://")
        given = names if self.url is None else [self.url, *names]
        if len(given) == 2:
            return given[0], given[1]
        # A URL may hold a password.
        shown = ["a URL" if "://" in name else repr(name) for name in names]
        found = " and ".join(shown if self.url is None else ["--url", *shown])
        raise ConfigurationError(
            f"expected PACKAGE QUEUE, or --url URL QUEUE; found {found or 'nothing'}"
        )


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """A dead-letter queue, and how to connect to its broker.

    Attributes:
        connection: Its name in the settings.
        vhost: None for the connection's own.
        source: The queue where the messages failed.
        note: A hint about consumers that the command names and the package does not have; empty if
            it has all of them.
    """

    settings: WorkerSettings
    connection: str
    vhost: str | None
    source: str
    note: str = ""

    @property
    def name(self) -> str:
        """The name of the queue that holds the dead letters."""
        return self.source + DEAD_LETTER_SUFFIX

    @property
    def broker(self) -> AMQPSettings:
        """The connection, with the present content of its secret files."""
        return self.settings.connection(self.connection)

    def __str__(self) -> str:
        return f"queue {self.name!r} on {self.broker.display(self.vhost)}"


def find(target: Target, consumers: Sequence[str] = ()) -> DeadLetterQueue:
    """Find a dead-letter queue.

    Args:
        consumers: Names of consumers that the command filters by; unknown ones are noted.

    Raises:
        StartError: The package or its settings are wrong, or do not determine one broker.
    """
    package, queue = target.names()
    queue = queue.removesuffix(DEAD_LETTER_SUFFIX)
    if not queue:
        raise ConfigurationError("the name of the queue is empty")
    try:
        Queue(queue + DEAD_LETTER_SUFFIX)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    note, connection, vhost = "", target.connection, target.vhost
    if is_url(package):
        settings, reader = settings_of(package, target.container), None
    else:
        container = load_container(package, target.container)
        assembly = Runner(container, packages=[package]).assemble()
        note = _unknown_consumers(assembly, package, consumers)
        settings, reader = assembly.settings, _reader(assembly, queue, connection, vhost)
        if reader is None and connection is None:
            raise ConfigurationError(_no_reader(assembly, package, queue))
    if reader is not None:
        connection = connection or reader.connection
        vhost = reader.vhost if vhost is None else vhost
    name = (connection or DEFAULT_CONNECTION).casefold()
    if name not in settings.amqp:
        listed = ", ".join(sorted(settings.amqp))
        raise ConfigurationError(f"the settings have no connection {connection!r}, only {listed}")
    return DeadLetterQueue(settings, name, vhost, queue, note)


def _unknown_consumers(assembly: Assembly, package: str, consumers: Sequence[str]) -> str:
    """Describe the names that no consumer has; empty if there are none."""
    names = [each.options.name for each in assembly.declared]
    unknown = [each for each in consumers if folded(each) not in map(folded, names)]
    if not unknown:
        return ""
    nearest = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f", only {', '.join(names)}"
    return f"{package} has no consumer {' or '.join(unknown)}{hint}"


def _no_reader(assembly: Assembly, package: str, queue: str) -> str:
    """Describe a queue that no consumer reads."""
    options = (declared.options for declared in assembly.declared)
    read = sorted(
        {str(q) for each in options if isinstance(each, AMQPOptions) for q in each.queues}
    )
    nearest = difflib.get_close_matches(queue, read, n=1)
    others = f", only {', '.join(read)}" if read else ", or any other"
    hint = f"; did you mean {nearest[0]!r}? " if nearest else ". "
    return f"no consumer of {package} reads queue {queue!r}{others}{hint}{_OTHER_CONNECTION}"


def _reader(
    assembly: Assembly, queue: str, connection: str | None, vhost: str | None
) -> AMQPOptions | None:
    """Return the options of a consumer that reads *queue*; None if there is none.

    Raises:
        ConfigurationError: Consumers read queues of this name on several brokers.
    """
    places: dict[tuple[str, str], AMQPOptions] = {}
    for each in (declared.options for declared in assembly.declared):
        if not isinstance(each, AMQPOptions) or queue not in map(str, each.queues):
            continue
        name = each.connection.casefold()
        if connection is None or connection.casefold() == name:
            places[name, assembly.settings.amqp[name].vhost_name(each.vhost)] = each
    connections = {name for name, _ in places}
    if len(connections) > 1 or (len(places) > 1 and vhost is None):
        where = " and ".join(
            f"{each.name} on connection {name!r}, virtual host {host!r}"
            for (name, host), each in sorted(places.items())
        )
        raise ConfigurationError(
            f"queue {queue!r} is read by {where}: choose with --connection and --vhost"
        )
    return next(iter(places.values()), None)
