"""Where the dead letters are that a command is about."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, Queue
from workerkit.app.assembly import Assembly
from workerkit.cli.application import is_url, load_container, settings_of
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.errors import ConfigurationError
from workerkit.options import folded
from workerkit.runner import Runner


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A queue, and how to get there.

    Attributes:
        queue: The one whose dead letters are meant.
        connection: Its name in the settings.
        vhost: None for the connection's own.
        doubt: Why no letter may be from the consumers that are asked for; empty if all are there.
    """

    settings: WorkerSettings
    connection: str
    vhost: str | None
    queue: str
    doubt: str = ""

    @property
    def dead_letters(self) -> str:
        """The name of the queue that holds them."""
        return self.queue + DEAD_LETTER_SUFFIX

    @property
    def broker(self) -> AMQPSettings:
        """The connection, with what its secret files say now."""
        return self.settings.connection(self.connection)

    def __str__(self) -> str:
        return f"queue {self.dead_letters!r} on {self.broker.display(self.vhost)}"


def named(url: str | None, *arguments: str | None) -> tuple[str, str]:
    """The target and the queue that a command line names.

    Args:
        url: Instead of the target.
        arguments: Target and queue; those that are None are not there.

    Raises:
        ConfigurationError: There are too few, too many, or it is no URL.
    """
    names = [each for each in arguments if each is not None]
    if url is not None and not is_url(url):
        raise ConfigurationError("--url is wrong: should start with amqp:// or amqps://")
    given = names if url is None else [url, *names]
    if len(given) == 2:
        return given[0], given[1]
    # A URL may hold a password.
    told = ["a URL" if "://" in name else repr(name) for name in names]
    found = " and ".join(told if url is None else ["--url", *told])
    raise ConfigurationError(f"found {found or 'nothing'}: write PACKAGE QUEUE, or --url URL QUEUE")


def find(
    target: str,
    queue: str,
    *,
    container: str | None = None,
    connection: str | None = None,
    vhost: str | None = None,
    consumers: Sequence[str] = (),
) -> Whereabouts:
    """Find the dead letters of a queue.

    Args:
        target: A package, in which the consumer that reads the queue knows the way; or a URL.
        queue: Its name, or that of its dead-letter queue.
        connection, vhost: Instead of the consumer's. With a connection, any queue will do.
        consumers: Names of consumers that are asked for; renamed ones have letters all the same.

    Raises:
        StartError: The package or its settings are wrong, or leave open which broker is meant.
    """
    queue = queue.removesuffix(DEAD_LETTER_SUFFIX)
    if not queue:
        raise ConfigurationError("the dead letters of which queue? Its name is empty")
    try:
        Queue(queue + DEAD_LETTER_SUFFIX)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    doubt = ""
    if is_url(target):
        settings, known = settings_of(target, container), None
    else:
        assembly = Runner(load_container(target, container), packages=[target]).assemble()
        doubt = _doubt(assembly, target, consumers)
        settings, known = assembly.settings, _reader(assembly, queue, connection, vhost)
        if known is None and connection is None:
            raise ConfigurationError(_unread(assembly, target, queue))
    if known is not None:
        connection = connection or known.connection
        vhost = known.vhost if vhost is None else vhost
    name = (connection or DEFAULT_CONNECTION).casefold()
    if name not in settings.amqp:
        listed = ", ".join(sorted(settings.amqp))
        raise ConfigurationError(f"the settings have no connection {connection!r}, only {listed}")
    return Whereabouts(settings, name, vhost, queue, doubt)


def _doubt(assembly: Assembly, package: str, consumers: Sequence[str]) -> str:
    """What is said of names that no consumer has, if one of them has been asked for."""
    names = [each.options.name for each in assembly.declared]
    unknown = [each for each in consumers if folded(each) not in map(folded, names)]
    if not unknown:
        return ""
    nearest = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f", only {', '.join(names)}"
    return f"{package} has no consumer {' or '.join(unknown)}{hint}"


def _unread(assembly: Assembly, package: str, queue: str) -> str:
    """What is said of a queue that no consumer reads."""
    options = (declared.options for declared in assembly.declared)
    read = sorted(
        {str(q) for each in options if isinstance(each, AMQPOptions) for q in each.queues}
    )
    nearest = difflib.get_close_matches(queue, read, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    listed = f"they read {', '.join(read)}" if read else "they read no queues"
    return (
        f"no consumer of {package} reads queue {queue!r}: {listed}; "
        f"to look there all the same, add --connection{hint}"
    )


def _reader(
    assembly: Assembly, queue: str, connection: str | None, vhost: str | None
) -> AMQPOptions | None:
    """The options of a consumer that reads *queue*; None if there is none.

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
