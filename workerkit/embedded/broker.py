"""What all connections share: users, virtual hosts, the clock, memory and its alarm."""

from typing import Protocol

from workerkit.embedded.behaviour import Behaviour
from workerkit.embedded.channel import Channel, Session
from workerkit.embedded.clock import Clock
from workerkit.embedded.errors import Refusal
from workerkit.embedded.injected_faults import Faults
from workerkit.embedded.memory import Memory
from workerkit.embedded.vhost import VirtualHost


class Client(Protocol):
    """A connection, as the broker sees it."""

    session: Session | None

    def channels(self) -> list[Channel]:
        """The open channels, in the order in which they were opened."""

    def refuse(self, refusal: Refusal) -> None:
        """Close, and say why."""

    def close_channel(self, channel: Channel, refusal: Refusal) -> None:
        """Close a channel, and say why."""

    def abort(self) -> None:
        """Close the socket without a word."""

    def alarm(self, on: bool) -> None:
        """Block what publishes, or let it go on."""

    def freeze(self) -> None:
        """Neither read nor write."""

    def thaw(self) -> None:
        """Read and write again."""


class Broker:
    """State; no sockets.

    Args:
        behaviour: What differs between versions of RabbitMQ.
        max_memory: Bytes that messages may take before publishers are blocked.
        heartbeat: Seconds, as proposed to clients.

    Attributes:
        frozen: Nothing is read and written.
    """

    def __init__(self, behaviour: Behaviour, *, max_memory: int, heartbeat: int) -> None:
        self.behaviour = behaviour
        self.heartbeat = heartbeat
        self.clock = Clock()
        self.memory = Memory(max_memory, lambda on: self.set_alarm("memory", on))
        self.faults = Faults()
        self.users = {"guest": "guest"}
        self.vhosts: dict[str, VirtualHost] = {}
        self.clients: set[Client] = set()
        self.frozen = False
        self._alarms: set[str] = set()
        self.add_vhost("/")

    def add_vhost(self, name: str, default_queue_type: str | None = None) -> None:
        """Create a virtual host; one that is there stays as it is."""
        if name not in self.vhosts:
            self.vhosts[name] = VirtualHost(
                name, self.clock, self.memory, self.behaviour, default_queue_type
            )

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and close its connections, if it is there."""
        vhost = self.vhosts.pop(name, None)
        if vhost is None:
            return
        for client in list(self.clients):
            if client.session is not None and client.session.vhost is vhost:
                client.refuse(Refusal("CONNECTION_FORCED", f"vhost '{name}' is deleted"))
        for queue in list(vhost.queues.values()):
            vhost.delete_queue(queue)

    def vhost(self, name: str) -> VirtualHost:
        """The virtual host of that name, or NOT_ALLOWED."""
        vhost = self.vhosts.get(name)
        if vhost is None:
            raise Refusal("NOT_ALLOWED", f"vhost {name} not found")
        return vhost

    @property
    def alarmed(self) -> bool:
        """Whether publishers are blocked."""
        return bool(self._alarms)

    def set_alarm(self, source: str, on: bool) -> None:
        """Raise or clear an alarm; publishers are blocked while there is one."""
        before = self.alarmed
        if on:
            self._alarms.add(source)
        else:
            self._alarms.discard(source)
        if self.alarmed != before:
            for client in list(self.clients):
                client.alarm(on)

    def forget(self) -> None:
        """Forget every queue and message, but not users and the names of virtual hosts."""
        for name, vhost in list(self.vhosts.items()):
            self.delete_vhost(name)
            self.add_vhost(name, vhost.default_queue_type)
        self.clock.stop()
        self._alarms.clear()
