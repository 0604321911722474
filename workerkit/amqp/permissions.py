"""The least permissions of a user with whom a worker runs. Pure: no I/O.

RabbitMQ checks (https://www.rabbitmq.com/docs/access-control):

* `configure` on what is declared. A queue with a dead-letter exchange also needs `read` on the
  queue and `write` on that exchange; an exchange with an alternate one likewise.
* `write` on the queue and `read` on the exchange of a binding.
* `read` on a queue that is consumed, and `write` on the exchange that is published to. The name of
  the default exchange is `amq.default` here.
* In 4.3, not in 4.0, one of the three on what a passive declaration asks for. `write` on a queue
  permits least: bindings, and these need `read` on the exchange as well.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from workerkit.amqp.needs import ConsumerQueue, Needs
from workerkit.amqp.queue import Binding, Exchange, Queue
from workerkit.amqp.topology import PROCESS_SUFFIX

_DEFAULT_EXCHANGE = "amq.default"
_PASSIVE_CHECKED_SINCE = (4, 1)  # Seen on 4.3.6, and not on 4.0.5.
_NOT_LITERAL = re.compile(r"[^\w@%:;,=<>/~!'\"&` -]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Regular expressions of all names that one user may touch, each for one name.

    Attributes:
        configure: What it may declare and delete.
        write: What it may publish to and bind.
        read: What it may consume, and bind to.
    """

    configure: set[str] = field(default_factory=set)
    write: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)

    def add(self, other: "Permissions") -> None:
        """Add those of another connection of the same user."""
        self.configure.update(other.configure)
        self.write.update(other.write)
        self.read.update(other.read)

    def patterns(self) -> tuple[str, str, str]:
        """Return the arguments of `rabbitmqctl set_permissions`: configure, write, read."""
        return _pattern(self.configure), _pattern(self.write), _pattern(self.read)


def permissions(needs: Needs, *, applied: bool, version: tuple[int, ...]) -> Permissions:
    """Return the permissions for one virtual host.

    Args:
        applied: The queues, exchanges and bindings were created before, and the connection has
            `declare = "never"`. Without it, the worker declares them.
        version: The version of the broker.
    """
    found = Permissions()
    checked = set()
    for use in needs.uses:
        name = _name(use.queue)
        if use.needed.purpose in ("messages", "lease"):
            found.read.add(name)
        if not applied or use.at_run_time or use.declare == "always":
            _declare(found, use.queue, name)
        else:
            checked.add(name)
        if not applied or use.at_run_time or use.declare in ("missing", "always"):
            _bind(found, name, use.queue.bindings)
    if not applied:
        for exchange in needs.exchanges.values():
            if isinstance(exchange, Exchange) and not exchange.is_built_in:
                _declare_exchange(found, exchange)
    found.write.update(literal(str(each)) for each in needs.targets)
    if needs.publishes:
        found.write.add(_DEFAULT_EXCHANGE_PATTERN)
    if version >= _PASSIVE_CHECKED_SINCE:
        found.write.update(checked - found.configure - found.read)
    return found


def undeclared_at_run_time(needs: Needs) -> list[ConsumerQueue]:
    """Return the queues that no worker declares if the connection has `declare = "never"`.

    They exist only at run time, so they cannot be created before.
    """
    return [
        each
        for each in needs.queues
        if each.at_run_time and not each.queue.per_process and each.declare in (None, "never")
    ]


def _declare(found: Permissions, queue: Queue, name: str) -> None:
    found.configure.add(name)
    dead_letters = queue.declared_arguments.get("x-dead-letter-exchange")
    if dead_letters is not None:
        found.read.add(name)
        found.write.add(literal(dead_letters or _DEFAULT_EXCHANGE))


def _declare_exchange(found: Permissions, exchange: Exchange) -> None:
    name = literal(exchange.name)
    found.configure.add(name)
    alternate = exchange.declared_arguments.get("alternate-exchange")
    if alternate is not None:
        found.read.add(name)
        found.write.add(literal(alternate))


def _bind(found: Permissions, queue: str, bindings: Iterable[Binding]) -> None:
    for binding in bindings:
        found.write.add(queue)
        found.read.add(literal(str(binding.exchange)))


def _name(queue: Queue) -> str:
    return literal(queue.name) + (PROCESS_SUFFIX if queue.per_process else "")


def literal(name: str) -> str:
    r"""Return a regular expression that matches a name, for RabbitMQ: it compares bytes.

    Characters that are not printable become escapes such as `\x0a`.
    """
    return _NOT_LITERAL.sub(lambda found: _escaped(found[0]), name)


def _escaped(character: str) -> str:
    if character.isascii() and character.isprintable():
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def _pattern(names: set[str]) -> str:
    if len(names) > 1:
        return f"^({'|'.join(sorted(names))})$"
    return f"^{next(iter(names), '')}$"


_DEFAULT_EXCHANGE_PATTERN = literal(_DEFAULT_EXCHANGE)
