"""Dispatch by type: what the body of a message is read as, if the class has `types`.

The sender chooses the name of the type. It is text of any content, or missing; every name that the
class does not know is an `UnknownMessageType`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message import AMQPMessage
from workerkit.codec import STRUCTURED_IN_ANY, decoder, event_attribute, label_of
from workerkit.delivery import Action
from workerkit.errors import UnknownMessageType
from workerkit.named_types import unused_types
from workerkit.reading import Read
from workerkit.safe_text import excerpt, one_line

Find = Callable[[AMQPMessage[Any]], object]
"""Returns the type of a message as its sender wrote it: usually text; None if it is missing."""

_LONGEST = 200
_MOST_NAMES = 10


def type_reader(options: AMQPOptions, read_as: Callable[[Any], Read]) -> Read:
    """Return the function that reads a message as the type that its sender names.

    It raises `UnknownMessageType` if `types` does not have the name. Before that it decides what
    happens to the message, if `on_unknown` is set.

    Args:
        read_as: Creates the function that reads a message with a body of a type.
    """
    assert options.types is not None
    readers = {name: read_as(type_) for name, type_ in options.types.items()}
    find, place = _source(options.type_from, readers)
    by_pattern = _by_pattern(readers) if options.type_from == "routing_key" else _no_reader
    action = options.on_unknown

    def read(message: AMQPMessage[Any]) -> Any:
        name = find(message)
        known = None
        if isinstance(name, str):
            known = readers.get(name) or by_pattern(name)
        if known is not None:
            return known(message)
        if action is not None:
            message.decide(action)
        text = f"{place} {_found(name)}; {options.name} knows {_names(readers)}"
        raise UnknownMessageType(text, skipped=action is Action.ACK)

    return read


def type_warnings(options: AMQPOptions, body: Any) -> Iterator[str]:
    """Yield what is allowed in `types`, but probably not intended.

    Args:
        body: The type of the body that `handle` takes.
    """
    types = options.types or {}
    yield from unused_types("types", types, body)
    if options.type_from != "routing_key":
        for name in filter(is_pattern, types):
            yield f"types[{name!r}] is a pattern only with type_from = 'routing_key'"


def is_pattern(name: str) -> bool:
    """Return whether a routing key is a pattern of a topic exchange: a word of it is `*` or `#`."""
    return not {"*", "#"}.isdisjoint(name.split("."))


def matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether a pattern matches a routing key, as in a topic exchange.

    Args:
        pattern: Its words; `*` matches one word, `#` any number.
        words: Of the routing key.
    """
    # Steps in parallel through all positions of the pattern: the sender chooses the words, and
    # backtracking could take exponential time.
    at = _after_hashes(pattern, {0})
    for word in words:
        stays = {each for each in at if each < len(pattern) and pattern[each] == "#"}
        moves = {
            each + 1 for each in at if each < len(pattern) and pattern[each] in ("*", "#", word)
        }
        at = _after_hashes(pattern, stays | moves)
    return len(pattern) in at


def _after_hashes(pattern: Sequence[str], at: set[int]) -> set[int]:
    """Add the positions that can be reached without a word: after a `#`."""
    found = set(at)
    for position, word in enumerate(pattern):
        if position in found and word == "#":
            found.add(position + 1)
    return found


def _by_pattern(readers: Mapping[str, Read]) -> Callable[[str], Read | None]:
    """Return the lookup among the patterns: the first one that matches, in the order of `types`."""
    patterns = [(name.split("."), read) for name, read in readers.items() if is_pattern(name)]

    def find(routing_key: str) -> Read | None:
        words = routing_key.split(".") if routing_key else []
        return next((read for pattern, read in patterns if matches(pattern, words)), None)

    return find if patterns else _no_reader


def _no_reader(name: str) -> None:
    """Find nothing: there are no patterns."""


def _source(type_from: str, known: Mapping[str, Read]) -> tuple[Find, str]:
    """Return the function that finds the type of a message, and where it looks, for errors."""
    if type_from == "type":
        return lambda message: message.type, "property 'type'"
    if type_from == "routing_key":
        return lambda message: message.routing_key, "the routing key"
    if type_from == "cloudevents":
        return _cloudevents(known), "the CloudEvents attribute 'type'"
    kind, _, name = type_from.partition(":")
    if kind == "header":
        return lambda message: message.sent.get(name), f"header {name!r}"
    return _field(name, known), f"field {name!r} of the body"


def _cloudevents(known: Mapping[str, Read]) -> Find:
    """Return the lookup of CloudEvents: a header in binary mode, a field in structured mode."""
    of_body = _field("type", known)

    def find(message: AMQPMessage[Any]) -> object:
        if label_of(message.content_type or "").startswith(STRUCTURED_IN_ANY):
            return of_body(message)
        return event_attribute(message.sent, "type")

    return find


def _field(name: str, known: Mapping[str, Read]) -> Find:
    """Return the lookup of a field of a JSON object: text, or a list whose first known item counts.

    MassTransit lists a type with its interfaces.
    """
    make: Any = TypedDict
    decode = decoder(make("Fields", {name: Any}, total=False))

    def find(message: AMQPMessage[Any]) -> object:
        found = decode(message.content(text=True)).get(name)
        if isinstance(found, list):
            names = [each for each in found if isinstance(each, str)]
            return next((each for each in names if each in known), names[0] if names else found)
        return found

    return find


def _found(name: object) -> str:
    """Describe a type that is not known; its length and its characters are the sender's choice."""
    if name is None:
        return "is missing"
    if not isinstance(name, str):
        return f"is no text but of type {type(name).__name__}"
    return f"is unknown: {one_line(excerpt(name, _LONGEST))!r}"


def _names(known: Mapping[str, Read]) -> str:
    names = ", ".join(repr(each) for each in list(known)[:_MOST_NAMES])
    more = len(known) - _MOST_NAMES
    return f"{names} and {more} more" if more > 0 else names
