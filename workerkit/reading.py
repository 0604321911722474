"""Read the body of a delivery as the type that `handle` declares."""

from collections.abc import Callable
from typing import Any

from workerkit.codec import (
    BodyReader,
    CloudEventReader,
    Codecs,
    Decode,
    is_bytes,
    is_cloud_event,
)
from workerkit.delivery import Delivery
from workerkit.errors import InvalidBody

Read = Callable[[Any], Any]


def body_reader(
    type_: Any, delivery: type[Delivery] | None, codecs: Codecs, *, whole: bool = False
) -> Read:
    """Create the function that reads the body of a delivery, and keeps it as `delivery.body`.

    Args:
        delivery: The type of the deliveries.
        whole: The function returns the delivery, and not the body alone.

    Raises:
        UnknownType: No body can be read as *type_*.
    """
    if is_cloud_event(type_):
        return _event_reader(CloudEventReader(type_, codecs), whole)
    reader = codecs.reader(type_)
    if not _states_content(delivery):
        return _raw_reader(reader.default, whole)
    if is_bytes(type_):
        return _bytes_reader(reader.default, whole)
    return _body_reader(reader, whole)


def _states_content(delivery: type[Delivery] | None) -> bool:
    """Return whether deliveries state how their payload is encoded."""
    own = (Delivery.content, Delivery.decoded)
    return any(getattr(delivery, each.__name__, each) is not each for each in own)


def _raw_reader(decode: Decode, whole: bool) -> Read:
    def read(delivery: Any) -> Any:
        body = delivery.body = decode(delivery.raw)
        return delivery if whole else body

    return read


def _bytes_reader(decode: Decode, whole: bool) -> Read:
    """Create the reader of bytes, which no codec decodes."""

    def read(delivery: Any) -> Any:
        try:
            body = delivery.body = decode(delivery.content(text=False))
        except InvalidBody as error:
            raise error.after(delivery.unknown_content) from None
        return delivery if whole else body

    return read


def _body_reader(reader: BodyReader, whole: bool) -> Read:
    """Create the reader for deliveries whose properties state how the payload is encoded."""

    def read(delivery: Any) -> Any:
        body = delivery.body = delivery.decoded(reader)
        return delivery if whole else body

    return read


def _event_reader(reader: CloudEventReader, whole: bool) -> Read:
    def read(delivery: Any) -> Any:
        body = delivery.body = delivery.cloud_event(reader)
        return delivery if whole else body

    return read
