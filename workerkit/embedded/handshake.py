"""How a client logs in: what the broker says of itself, and what it makes of the answer."""

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

PROTOCOL = b"AMQP\x00\x00\x09\x01"
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


class SilentRefusal(Exception):
    """A client is not let in, and RabbitMQ would close the socket without a word; for the log."""


class _Stage(Enum):
    """How far it is."""

    STARTING = "starting"
    TUNING = "tuning"
    OPENING = "opening"


class Handshake:
    """One client's way in.

    Attributes:
        channel_max: Channels that may be open, as negotiated.
        heartbeat: Seconds, as negotiated; 0 is none.
        understands_blocked: The client wants to know when publishing has to wait.
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
        """The first thing that the broker says."""
        behaviour = self._broker.behaviour
        return methods.start(_server_properties(behaviour.release), behaviour.mechanisms)

    def take(self, method: base.Frame) -> Reply | None:
        """Answer a client.

        Raises:
            Refusal: It may not come in.
            SilentRefusal: The same, but it is not told.
        """
        match self._stage, method:
            case _Stage.STARTING, Connection.StartOk():
                return self._log_in(method)
            case _Stage.TUNING, Connection.TuneOk():
                self._tune(method)
                return None
            case _Stage.OPENING, Connection.Open():
                return self._open(method)
        raise SilentRefusal(f"{method.name} while {self._stage.value}")

    def _log_in(self, method: Connection.StartOk) -> Reply:
        properties: Any = method.client_properties
        response: Any = method.response
        if method.mechanism == _ANONYMOUS and b"ANONYMOUS" in self._broker.behaviour.mechanisms:
            user, password = _ANONYMOUS_USER, self._broker.users[_ANONYMOUS_USER]
        else:
            user, password = credentials(method.mechanism, response)
        if self._broker.users.get(user) != password:
            if not capability(properties, "authentication_failure_close"):
                raise SilentRefusal("a wrong user or password")
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
            raise SilentRefusal(f"a channel_max of {channels}, not of 1 to {_CHANNEL_MAX}")
        if not self._broker.behaviour.smallest_frame <= frame <= self._outbox.frame_max:
            raise SilentRefusal(f"a frame_max of {frame}, less than the least or more than ours")
        self.channel_max = channels
        self.heartbeat = method.heartbeat
        self._outbox.frame_max = frame
        self._stage = _Stage.OPENING

    def _open(self, method: Connection.Open) -> Reply:
        vhost = self._broker.vhost(method.virtual_host)
        self.session = Session(self._user, vhost, self._outbox, self._wants_cancels)
        return methods.CONNECTION_OPEN_OK


def _server_properties(version: str) -> Table:
    """The server properties of connection.start.

    The version is that of the copied RabbitMQ, because clients depend on it; product, platform and
    information are those of the embedded broker.
    """
    capabilities = {name: Field("bool", True) for name in _CAPABILITIES}
    return {
        "capabilities": Field("table", capabilities),
        "cluster_name": text("workerkit-embedded"),
        "information": text("The embedded broker of workerkit, for demo and tests only"),
        "platform": text("Python"),
        "product": text("workerkit embedded broker"),
        "version": text(version),
    }


def credentials(mechanism: str, response: bytes) -> tuple[str, str]:
    """User and password.

    Raises:
        SilentRefusal: The mechanism is unknown, or its response cannot be read.
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
    raise SilentRefusal(f"a response to {mechanism} that cannot be read")


def capability(client_properties: Table, name: str) -> bool:
    """Whether a client says that it understands something."""
    capabilities = client_properties.get("capabilities")
    if capabilities is None or capabilities.type != "table":
        return False
    return bool(name in capabilities.value and capabilities.value[name].value is True)
