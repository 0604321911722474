"""Decoding of an event's data to the type that `handle` takes, or to a type for each event name."""

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from workerkit.codec import UnknownType, decoder, is_verbatim
from workerkit.errors import InvalidBody
from workerkit.reading import Read
from workerkit.sse.consumer import Types
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
    default = _decoder(body)
    decoders = {name: _decoder(type_) for name, type_ in types.items()}

    def read(event: SSEEvent[Any]) -> Any:
        if event.oversized:
            raise InvalidBody("the event is longer than max_event_size")
        decode = decoders.get(event.name, default) if decoders else default
        body = event.body = decode(event.raw)
        return event if whole else body

    return read


def types_of(events: object) -> Types:
    """Return the types in the attribute `events` of a class; none if it only has names."""
    return events if isinstance(events, Mapping) else {}


def type_faults(body: Any, types: Types) -> list[str]:
    """Return the faults of *types* if `handle` takes a *body*, one phrase each."""
    union = get_origin(body) in (Union, UnionType)
    taken = get_args(body) if union else (body,)
    found = []
    for name, type_ in types.items():
        if isinstance(type_, str):
            found.append(f"events[{name!r}] is {type_!r}: write the type itself, not its name")
            continue
        try:
            decoder(type_)
        except UnknownType as error:
            found.append(f"events[{name!r}] cannot be decoded from data: {error}")
            continue
        if not any(_is_part(type_, each) for each in taken):
            found.append(f"events[{name!r}] is not a type that handle takes")
    return found


def _is_part(type_: Any, of: Any) -> bool:
    if type_ == of or of in (Any, object):
        return True
    return isinstance(type_, type) and isinstance(of, type) and issubclass(type_, of)


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
