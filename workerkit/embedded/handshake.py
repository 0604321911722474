"""The handshake of a connection: start, login, tune and open."""

from enum import Enum
from typing import Any

from pamqp import base
from pamqp.commands import Connection

from workerkit.embedded import methods, table
from workerkit.embedded.broker import Broker
from workerkit.embedded.channel import Session
from workerkit.embedded.errors import Refusal
from workerkit.embedded.methods import Reply
from workerkit.embedded.outbox import Outbox
from workerkit.embedded.table import Field, MalformedTable, Table, text

# AMQP 0-9-1, and 0-9: RabbitMQ does not tell them apart, and old clients send the second one.
PROTOCOLS = (b"AMQP\x00\x00\x09\x01", b"AMQP\x01\x01\x00\x09")
PROTOCOL_SIZE = 8  # bytes
_ANONYMOUS, _ANONYMOUS_USER = "ANONYMOUS", "guest"
_CHANNEL_MAX = 2047
_CAPABILITIES = (
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
)


class SilentRejection(Exception):
    """A failed handshake where RabbitMQ closes the socket without connection.close."""


class _Stage(Enum):
    """The stage of a handshake."""

    STARTING = "starting"
    TUNING = "tuning"
    OPENING = "opening"


class Handshake:
    """The handshake of one client.

    Attributes:
        channel_max: The negotiated maximum of open channels.
        heartbeat: The negotiated interval in seconds; 0 is none.
        understands_blocked: The client accepts connection.blocked.
        session: The result.
    """

    def __init__(self, broker: Broker, outbox: Outbox) -> None:
        self.channel_max = _CHANNEL_MAX
        self.heartbeat = 0
        self.understands_blocked = False
        self.session: Session | None = None
        self._broker = broker
        self._outbox = outbox
        self._stage = _Stage.STARTING
        self._user = ""
        self._wants_cancels = False

    def greet(self) -> Reply:
        """Return connection.start."""
        behaviour = self._broker.behaviour
        return methods.start(_server_properties(behaviour.release), behaviour.mechanisms)

    def take(self, method: base.Frame) -> Reply | None:
        """Handle a method and return the reply.

        Raises:
            Refusal: The client is rejected with connection.close.
            SilentRejection: The client is rejected without it.
        """
        match self._stage, method:
            case _Stage.STARTING, Connection.StartOk():
                return self._log_in(method)
            case _Stage.TUNING, Connection.TuneOk():
                self._tune(method)
                return None
            case _Stage.OPENING, Connection.Open():
                return self._open(method)
        raise SilentRejection(f"{method.name} while {self._stage.value}")

    def _log_in(self, method: Connection.StartOk) -> Reply:
        properties: Any = method.client_properties
        response: Any = method.response
        if method.mechanism == _ANONYMOUS and b"ANONYMOUS" in self._broker.behaviour.mechanisms:
            user, password = _ANONYMOUS_USER, self._broker.users[_ANONYMOUS_USER]
        else:
            user, password = credentials(method.mechanism, response)
        if self._broker.users.get(user) != password:
            if not capability(properties, "authentication_failure_close"):
                raise SilentRejection("wrong user or password")
            raise Refusal(
                "ACCESS_REFUSED",
                f"Login was refused using authentication mechanism {method.mechanism}."
                " For details see the broker logfile.",
            )
        self._user = user
        self._wants_cancels = capability(properties, "consumer_cancel_notify")
        self.understands_blocked = capability(properties, "connection.blocked")
        self._stage = _Stage.TUNING
        return methods.tune(_CHANNEL_MAX, self._outbox.frame_max, self._broker.heartbeat)

    def _tune(self, method: Connection.TuneOk) -> None:
        channels, frame = method.channel_max, method.frame_max
        if not 0 < channels <= _CHANNEL_MAX:
            raise SilentRejection(f"channel_max is {channels}, not from 1 to {_CHANNEL_MAX}")
        if not self._broker.behaviour.smallest_frame <= frame <= self._outbox.frame_max:
            raise SilentRejection(f"frame_max is {frame}, too small or larger than proposed")
        self.channel_max = channels
        self.heartbeat = method.heartbeat
        self._outbox.frame_max = frame
        self._stage = _Stage.OPENING

    def _open(self, method: Connection.Open) -> Reply:
        vhost = self._broker.vhost(method.virtual_host)
        self.session = Session(self._user, vhost, self._outbox, self._wants_cancels)
        return methods.CONNECTION_OPEN_OK


def _server_properties(version: str) -> Table:
    """Return the server properties of connection.start.

    The version is that of RabbitMQ, because clients depend on it. Product, platform and information
    are those of the embedded broker.
    """
    capabilities = {name: Field("bool", True) for name in _CAPABILITIES}
    return {
        "capabilities": Field("table", capabilities),
        "cluster_name": text("workerkit-embedded"),
        "information": text("The embedded broker of workerkit, for demos and tests only"),
        "platform": text("Python"),
        "product": text("workerkit embedded broker"),
        "version": text(version),
    }


def credentials(mechanism: str, response: bytes) -> tuple[str, str]:
    """Return user and password.

    Raises:
        SilentRejection: The mechanism is unknown, or its response cannot be decoded.
    """
    if mechanism == "PLAIN":
        parts = response.decode(errors="surrogateescape").split("\0")
        if len(parts) == 3:
            return parts[1], parts[2]
    elif mechanism == "AMQPLAIN":
        try:
            fields, _ = table.read(len(response).to_bytes(4, "big") + response)
            return str(fields["LOGIN"].value), str(fields["PASSWORD"].value)
        except (MalformedTable, KeyError):
            pass
    raise SilentRejection(f"the response to {mechanism} cannot be decoded")


def capability(client_properties: Table, name: str) -> bool:
    """Return whether a client declares a capability."""
    capabilities = client_properties.get("capabilities")
    if capabilities is None or capabilities.type != "table":
        return False
    return bool(name in capabilities.value and capabilities.value[name].value is True)
