"""What the channels of a connection have in common."""

from dataclasses import dataclass

from workerkit.embedded.outbox import Outbox
from workerkit.embedded.vhost import VirtualHost


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A client that is logged in. It owns the exclusive queues that it declares.

    Attributes:
        user: Its name.
        outbox: Of its connection.
        wants_cancels: It understands basic.cancel from the broker.
    """

    user: str
    vhost: VirtualHost
    outbox: Outbox
    wants_cancels: bool
