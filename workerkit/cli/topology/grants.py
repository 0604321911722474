"""The least permissions of each user of a package, as lines for a shell."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from workerkit.amqp.needs import Needs
from workerkit.amqp.permissions import Permissions, permissions, undeclared_at_run_time
from workerkit.cli.topology.needs import PackageNeeds
from workerkit.config.connections import AMQPSettings
from workerkit.config.variables import Variables
from workerkit.safe_text import one_line

_OF_CERTIFICATE = "USER"
_PUBLISHES = (
    "not included: exchanges that the code publishes to and no class names in `publishes`: add them"
    " to write"
)
_ON_DEMAND = (
    "not included: <queue>.retry.<delay> for `raise Retry` with a delay that `retry` of the class"
    " does not have, and <queue>.dlq for `raise Reject` in a class that dead-letters nothing else:"
    " a worker declares them on demand, or with `never` they have to exist"
)


@dataclass(slots=True)
class Grant:
    """What one user may do on one virtual host.

    Attributes:
        connections: The names of the connections that log in as this user.
        variables: The variables that stop workers on these connections from declaring.
        declares: If the worker declares its queues itself.
        applied: If they were created before.
        notes: What the class has to change, or what cannot be known.
    """

    vhost: str
    user: str
    connections: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    declares: Permissions = field(default_factory=Permissions)
    applied: Permissions = field(default_factory=Permissions)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        names = ("configure", "write", "read")
        patterns = {
            each: dict(zip(names, getattr(self, each).patterns(), strict=True))
            for each in ("declares", "applied")
        }
        return {**asdict(self), **patterns}


def grants(package: PackageNeeds, version: tuple[int, ...]) -> list[Grant]:
    """Return the permissions of each user on each virtual host."""
    found: dict[tuple[Any, ...], Grant] = {}
    for needs in package.every:
        settings = package.broker(needs)
        user = _user(settings)
        # set_permissions replaces: connections of the same user need one line.
        grant = found.setdefault((settings.servers, needs.vhost, user), Grant(needs.vhost, user))
        variable = Variables(type(package.settings)).name(("amqp", needs.connection, "declare"))
        if needs.connection not in grant.connections:
            grant.connections.append(needs.connection)
            grant.variables.append(f"{variable}=never")
        grant.declares.add(permissions(needs, applied=False, version=version))
        grant.applied.add(permissions(needs, applied=True, version=version))
        grant.notes += [each for each in _notes(needs) if each not in grant.notes]
    return list(found.values())


def grants_lines(every: list[Grant], version: str) -> Iterator[str]:
    """Yield comments and commands for a shell, each on one line."""
    for number, grant in enumerate(every):
        if number:
            yield ""
        names = " and ".join(grant.connections)
        yield one_line(f"# connection {names}, RabbitMQ {version}: the worker declares its queues")
        yield _command(grant, grant.declares)
        yield one_line(
            f"# after `workerkit topology apply` or an import, with {' '.join(grant.variables)}"
        )
        yield _command(grant, grant.applied)
        for note in grant.notes:
            yield one_line(f"# {note}")


def _command(grant: Grant, granted: Permissions) -> str:
    words = ["-p", grant.vhost, grant.user, *granted.patterns()]
    return " ".join(["rabbitmqctl set_permissions", *map(quoted, words)])


def _user(settings: AMQPSettings) -> str:
    if settings.auth == "external":
        return _OF_CERTIFICATE
    return settings.address().user or _OF_CERTIFICATE


def _notes(needs: Needs) -> Iterator[str]:
    for each in undeclared_at_run_time(needs):
        yield (
            f"queue {each.queue.name!r} of {each.consumer} exists only at run time, and no worker"
            " declares it with `never`: set declare = 'missing' in the class"
        )
    yield _PUBLISHES
    if any(each.needed.purpose == "messages" for each in needs.uses):
        yield _ON_DEMAND


def quoted(word: str) -> str:
    """Quote a word for a POSIX shell, on one line.

    A word with characters that are not printable has the form `$'...'` of POSIX.1-2024, which bash,
    zsh and ksh know.
    """
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    encoded = character.encode(errors="surrogateescape")
    return "".join(f"\\{byte:03o}" for byte in encoded)
