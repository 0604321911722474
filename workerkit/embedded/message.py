"""A message as it was published: never changed, and shared by all queues that hold it."""

from workerkit.embedded import properties, table
from workerkit.embedded.errors import Refusal
from workerkit.embedded.methods import short
from workerkit.embedded.properties import FLAGS, Properties
from workerkit.embedded.table import Table

# What one message costs in memory beside its bytes, about.
_OVERHEAD = 500
_HEADERS = FLAGS["headers"]
_COPIES = ("CC", "BCC")


class Message:
    """One message.

    Args:
        address: Exchange and routing key as two short strings: a publish ends with them as every
            delivery does, so they are never encoded again.
        properties: Flags and values as they stand in the header frame.
        died: The broker itself has dead-lettered it before.
        deliveries: The delivery count of earlier queues; see `counting`.

    Attributes:
        flags: Which properties there are, see `properties.FLAGS`.
        size: Bytes that it takes in memory.
    """

    __slots__ = (
        "address",
        "body",
        "deliveries",
        "died",
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
        died: bool = False,
        deliveries: int = 0,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.address = address or short(exchange) + short(routing_key)
        self.died = died
        self.deliveries = deliveries
        self.flags = properties[0] << 8 | properties[1]
        self.size = len(body) + len(properties) + _OVERHEAD

    def read_properties(self) -> Properties:
        """The properties, decoded. They were readable when the message came."""
        return properties.read(self.properties)

    def headers(self) -> Table:
        """The headers, empty where there are none."""
        return (self.read_properties().headers or {}) if self.flags & _HEADERS else {}

    def changed(self, new: Properties) -> "Message":
        """The same message with other properties."""
        return Message(
            self.exchange,
            self.routing_key,
            properties.write(new),
            self.body,
            address=self.address,
            died=self.died,
            deliveries=self.deliveries,
        )

    @property
    def has_copies(self) -> bool:
        """Whether it may have the headers CC or BCC; never wrong when it says no, and quick."""
        return bool(self.flags & _HEADERS) and (
            b"\x02CC" in self.properties or b"\x03BCC" in self.properties
        )


def routing_keys(message: Message) -> list[str]:
    """The routing key and those of the headers CC and BCC.

    Raises:
        Refusal: One of them is no list of text.
    """
    keys = [message.routing_key]
    if message.has_copies:
        headers = message.headers()
        for name in _COPIES:
            if name in headers:
                keys += _texts(name, headers[name])
    return keys


def without_bcc(message: Message) -> Message:
    """The message as queues get it: nobody sees who got a blind copy."""
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
