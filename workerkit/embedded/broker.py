"""The state that all connections share: users, virtual hosts, clock, memory and alarms."""

from typing import Protocol

from workerkit.embedded.behaviour import Behaviour
from workerkit.embedded.channel import Channel, Session
from workerkit.embedded.clock import Clock
from workerkit.embedded.errors import Refusal
from workerkit.embedded.injected_faults import InjectedFaults
from workerkit.embedded.memory import Memory
from workerkit.embedded.vhost import VirtualHost


class Client(Protocol):
    """A connection as the broker uses it."""

    session: Session | None

    def channels(self) -> list[Channel]:
        """Return the open channels, in the order in which they were opened."""

    def refuse(self, refusal: Refusal) -> None:
        """Close the connection with an error."""

    def close_channel(self, channel: Channel, refusal: Refusal) -> None:
        """Close a channel with an error."""

    def abort(self) -> None:
        """Close the socket without connection.close."""

    def alarm(self, on: bool) -> None:
        """Block publishing, or unblock it."""

    def freeze(self) -> None:
        """Stop reading and writing."""

    def thaw(self) -> None:
        """Resume reading and writing."""


class Broker:
    """The state of a broker; it opens no sockets.

    Args:
        behaviour: The RabbitMQ version to imitate.
        max_memory: Bytes that messages may take before publishers are blocked.
        heartbeat: Seconds, proposed to clients.

    Attributes:
        frozen: Reading and writing have stopped.
    """

    def __init__(self, behaviour: Behaviour, *, max_memory: int, heartbeat: int) -> None:
        self.behaviour = behaviour
        self.heartbeat = heartbeat
        self.clock = Clock()
        self.memory = Memory(max_memory, lambda on: self.set_alarm("memory", on))
        self.faults = InjectedFaults()
        self.users = {"guest": "guest"}
        self.vhosts: dict[str, VirtualHost] = {}
        self.clients: set[Client] = set()
        self.frozen = False
        self._alarms: set[str] = set()
        self.add_vhost("/")

    def add_vhost(self, name: str, default_queue_type: str | None = None) -> None:
        """Create a virtual host; one that exists is not changed."""
        if name not in self.vhosts:
            self.vhosts[name] = VirtualHost(
                name, self.clock, self.memory, self.behaviour, default_queue_type
            )

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host, if it exists, and close its connections."""
        vhost = self.vhosts.pop(name, None)
        if vhost is None:
            return
        for client in list(self.clients):
            if client.session is not None and client.session.vhost is vhost:
                client.refuse(Refusal("CONNECTION_FORCED", f"vhost '{name}' is deleted"))
        for queue in list(vhost.queues.values()):
            vhost.delete_queue(queue)

    def vhost(self, name: str) -> VirtualHost:
        """Return the virtual host *name*, or raise NOT_ALLOWED."""
        vhost = self.vhosts.get(name)
        if vhost is None:
            raise Refusal("NOT_ALLOWED", f"vhost {name} not found")
        return vhost

    @property
    def alarmed(self) -> bool:
        """Whether an alarm blocks publishers."""
        return bool(self._alarms)

    def set_alarm(self, source: str, on: bool) -> None:
        """Raise or clear an alarm; while there is one, publishers are blocked."""
        before = self.alarmed
        if on:
            self._alarms.add(source)
        else:
            self._alarms.discard(source)
        if self.alarmed != before:
            for client in list(self.clients):
                client.alarm(on)

    def forget(self) -> None:
        """Delete every queue and message; keep users and the names of virtual hosts."""
        for name, vhost in list(self.vhosts.items()):
            self.delete_vhost(name)
            self.add_vhost(name, vhost.default_queue_type)
        self.clock.stop()
        self._alarms.clear()
