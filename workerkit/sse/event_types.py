"""Decoding of an event's data to the type that `handle` takes, or to a type for each event name."""

from collections.abc import Callable
from typing import Any

from workerkit.codec import UnknownType, decoder, is_verbatim
from workerkit.errors import InvalidBody
from workerkit.named_types import Types
from workerkit.reading import Read
from workerkit.sse.event import SSEEvent

Decode = Callable[[str], Any]


def reader(body: Any, whole: bool, types: Types) -> Read:
    """Return the function that decodes an event.

    Args:
        body: The type of the data of events that are not in *types*.
        whole: Whether `handle` takes the event with its body, and not only the body.
        types: Types by event name.

    Raises:
        UnknownType: Data cannot be decoded to one of the types.
    """
    default = _default(body, types)
    decoders = {name: _decoder(type_) for name, type_ in types.items()}

    def read(event: SSEEvent[Any]) -> Any:
        if event.oversized:
            raise InvalidBody("the event is longer than max_event_size")
        decode = decoders.get(event.name, default) if decoders else default
        body = event.body = decode(event.raw)
        return event if whole else body

    return read


def _default(body: Any, types: Types) -> Decode:
    """Return what decodes the events that are not in *types*: names that an operator has added."""
    try:
        return _decoder(body)
    except UnknownType:
        if not types:
            raise
        return _refuse


def _refuse(raw: str) -> Any:
    raise InvalidBody("events of the class has no type for this event")


def _decoder(type_: Any) -> Decode:
    if type_ is str:
        return _unchanged
    if type_ is bytes:
        return str.encode
    if is_verbatim(type_):
        checked = decoder(type_)
        return lambda raw: checked(raw.encode())
    # Decoders of JSON read text as well as bytes.
    json_decoder: Any = decoder(type_)
    decode: Decode = json_decoder
    return decode


def _unchanged(raw: str) -> str:
    return raw
