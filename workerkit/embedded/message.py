"""A published message, which is immutable and shared by all queues that hold it."""

from workerkit.embedded import properties, table
from workerkit.embedded.errors import Refusal
from workerkit.embedded.methods import short
from workerkit.embedded.properties import FLAGS, Properties
from workerkit.embedded.table import Table

# Approximate memory of a message besides its bytes.
_OVERHEAD = 500
_HEADERS = FLAGS["headers"]
_COPIES = ("CC", "BCC")


class Message:
    """One message.

    Args:
        address: Exchange and routing key as two short strings, which a publish and a delivery have
            in common: they are not encoded again.
        properties: Flags and values as in the header frame.
        dead_lettered: This broker has dead-lettered it before.
        deliveries: The delivery count of earlier queues; see `counting`.

    Attributes:
        flags: The flags of its properties, see `properties.FLAGS`.
        size: Its memory in bytes.
    """

    __slots__ = (
        "address",
        "body",
        "dead_lettered",
        "deliveries",
        "exchange",
        "flags",
        "properties",
        "routing_key",
        "size",
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        properties: bytes,
        body: bytes,
        *,
        address: bytes = b"",
        dead_lettered: bool = False,
        deliveries: int = 0,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.address = address or short(exchange) + short(routing_key)
        self.dead_lettered = dead_lettered
        self.deliveries = deliveries
        self.flags = properties[0] << 8 | properties[1]
        self.size = len(body) + len(properties) + _OVERHEAD

    def read_properties(self) -> Properties:
        """Return the decoded properties, which were checked when the message was published."""
        return properties.read(self.properties)

    def headers(self) -> Table:
        """Return the headers; empty if there are none."""
        return (self.read_properties().headers or {}) if self.flags & _HEADERS else {}

    def changed(self, new: Properties) -> "Message":
        """Return the message with other properties."""
        return Message(
            self.exchange,
            self.routing_key,
            properties.write(new),
            self.body,
            address=self.address,
            dead_lettered=self.dead_lettered,
            deliveries=self.deliveries,
        )

    @property
    def has_copies(self) -> bool:
        """Whether it may have the headers CC or BCC: a quick check that misses none."""
        return bool(self.flags & _HEADERS) and (
            b"\x02CC" in self.properties or b"\x03BCC" in self.properties
        )


def routing_keys(message: Message) -> list[str]:
    """Return the routing key and those of the headers CC and BCC.

    Raises:
        Refusal: A header is not a list of texts.
    """
    keys = [message.routing_key]
    if message.has_copies:
        headers = message.headers()
        for name in _COPIES:
            if name in headers:
                keys += _texts(name, headers[name])
    return keys


def without_bcc(message: Message) -> Message:
    """Return the message without the header BCC, as queues get it."""
    if not message.has_copies:
        return message
    read = message.read_properties()
    if not read.headers or "BCC" not in read.headers:
        return message
    del read.headers["BCC"]
    return message.changed(read)


def _texts(name: str, field: table.Field) -> list[str]:
    wrong = field if field.type != "array" else None
    if wrong is None:
        wrong = next((each for each in field.value if each.type != "longstr"), None)
    if wrong is not None:
        fault = f'{{unacceptable_type_in_header,"{name}",{wrong.type}}}'
        raise Refusal("PRECONDITION_FAILED", f"invalid message: {fault}")
    return [each.value for each in field.value]
